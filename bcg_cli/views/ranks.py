"""The ranks that a model is sharded over: rows and spread of a capture, verdicts of a check."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from html import escape

from rich.console import RenderableType
from rich.text import Text

from bcg.report import AssembledCheck, RankRow, RankVerdict, Verdict
from bcg_cli.views.page import section, table
from bcg_cli.views.ruled_table import RuledTable
from bcg_cli.views.words import format_error, format_mebibytes

VERDICT_STYLE: dict[Verdict, str] = {"match": "green", "mismatch": "bold red", "inconclusive": "yellow"}
VERDICT_CLASS: dict[Verdict, str] = {"match": "good", "mismatch": "bad", "inconclusive": "warn"}
"""How verdicts look on a terminal, and their class on pages."""

_COLUMNS: tuple[tuple[str, Callable[[RankRow], float], Callable[[float], str]], ...] = (
    ("segments", lambda row: row.num_segments, "{:.0f}".format),
    ("breaks", lambda row: row.num_breaks, "{:.0f}".format),
    ("capture\nms", lambda row: row.capture_ms, "{:.1f}".format),
    ("pool\nMiB", lambda row: row.pool_bytes, lambda size: format_mebibytes(round(size))),
    ("driver\nMiB", lambda row: row.driver_bytes, lambda size: format_mebibytes(round(size))),
    ("weights\nMiB", lambda row: row.weight_bytes, lambda size: format_mebibytes(round(size))),
)
ABOUT = "What each process captured in all, and the spread between the most and the least."


def ranks_view(rows: Sequence[RankRow]) -> RenderableType:
    """Returns a row a rank, and the spread between the most and the least."""
    shown = RuledTable(show_footer=True)
    for header, footer in zip(_headers(), _spread(rows), strict=True):
        shown.add_column(header, footer, justify="right", vertical="top")
    for row in rows:
        shown.add_row(*_cells(row))
    return shown


def ranks_section(rows: Sequence[RankRow]) -> str:
    """Returns the same for a page."""
    headers = [header.replace("\n", " ") for header in _headers()]
    return section("Ranks", ABOUT, table(headers, [*map(_cells, rows), _spread(rows)]))


def verdict_lines(rows: Sequence[RankVerdict], assembled: AssembledCheck | None) -> Iterator[Text]:
    """Yields a line a rank, and one for the whole."""
    for row in rows:
        words = "match (bitwise)" if row.verdict == "match" and row.bitwise else row.verdict
        line = f"Rank {row.rank}, {row.num_replays} replays against its own eager: "
        yield Text.assemble(line, (words, VERDICT_STYLE[row.verdict]))
    if assembled is not None:
        yield Text.assemble(
            f"All ranks together, {assembled.num_batches} batches against one process: ",
            (assembled.verdict, VERDICT_STYLE[assembled.verdict]),
            f" (mean difference {format_error(assembled.mean_rel_error)}, at most {assembled.tolerance:g})",
        )


def verdicts_section(rows: Sequence[RankVerdict], assembled: AssembledCheck | None) -> str:
    """Returns the same for a page."""
    verdicts: list[Verdict] = [row.verdict for row in rows] + ([assembled.verdict] if assembled else [])
    lines = [
        (marked(verdict, line.plain),) for verdict, line in zip(verdicts, verdict_lines(rows, assembled), strict=True)
    ]
    content = table((), lines, prose_columns=(0,))
    return section("Ranks", "Each against its own eager, and all together against one process.", content)


def marked(verdict: Verdict, text: str) -> str:
    """Returns plain text as HTML in the colour of a verdict."""
    return f'<span class="{VERDICT_CLASS[verdict]}">{escape(text)}</span>'


def _headers() -> list[str]:
    return ["rank", *(header for header, _, _ in _COLUMNS)]


def _cells(row: RankRow) -> list[str]:
    return [str(row.rank), *(form(value(row)) for _, value, form in _COLUMNS)]


def _spread(rows: Sequence[RankRow]) -> list[str]:
    values = [[value(row) for row in rows] for _, value, _ in _COLUMNS]
    return ["spread", *(form(max(of) - min(of)) for of, (_, _, form) in zip(values, _COLUMNS, strict=True))]
