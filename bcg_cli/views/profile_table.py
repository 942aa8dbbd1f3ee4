"""A profile report as text for the terminal: times per token count and mode, start-up and memory per mode, notes."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.text import Text

from bcg.report import ModeRow, ModeStatus, ModeSummary, ProfileReport
from bcg_cli.views.ruled_table import RuledTable
from bcg_cli.views.text_parts import header_text, warning_text
from bcg_cli.views.words import format_mebibytes, format_number

_SPEEDUP_EXPLAINED = "Speed-ups (×): the ratio of two modes' steps in each round, and of these the median."
_PEAK_EXPLAINED = (
    "Peak of tensors: the most that they held at once while steps were measured, weights included; memory that a graph "
    "keeps in its pool without a tensor is not in it."
)

_STYLES: dict[ModeStatus, str] = {"measured": "green", "wrong": "red", "failed": "red"}


def profile_view(report: ProfileReport) -> RenderableType:
    """Returns all that ``bcg profile`` shows.

    Args:
        report: The report; nothing else is read.
    """
    parts: list[RenderableType] = [
        header_text(report.model, report.environment, len(report.ranks)),
        Text(),
        _time_table(report),
    ]
    parts += [Text(), _mode_table(report), *_notes(report)]
    for warning in report.warnings:
        parts += [Text(), warning_text(warning)]
    return Group(*parts)


def _table(*columns: str) -> RuledTable:
    table = RuledTable()
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", vertical="bottom")
    return table


def _time_table(report: ProfileReport) -> RuledTable:
    columns = ("mode", "tokens", "p50\nms", "p95\nms", "tokens\n/s", "host\nµs", "GPU\nbusy", "graphs", "×\neager")
    table = _table(*columns, "error", *(["×\nown"] if report.has_exact_errors else []))
    for bucket in sorted(report.buckets, key=lambda bucket: bucket.tokens):
        fastest = report.totals.fastest.get(str(bucket.tokens))
        for row in bucket.modes:
            if row.status == "not available":
                continue
            if row.p50_ms is None or row.p95_ms is None:
                table.add_row(row.mode, f"{bucket.tokens:,}", Text(row.status, _STYLES.get(row.status, "yellow")))
            else:
                style = "bold green" if row.mode == fastest else ""
                own = [_error_over_eagers(row)] if report.has_exact_errors else []
                table.add_row(Text(row.mode, style), f"{bucket.tokens:,}", *_times(row, style), *own)
        table.add_section()
    return table


def _times(row: ModeRow, style: str) -> list[Text | str]:
    return [
        Text(format_number(row.p50_ms, ".3f"), style),
        format_number(row.p95_ms, ".3f"),
        format_number(row.tokens_per_s, ",.0f"),
        format_number(row.host_us, ",.0f"),
        format_number(row.busy_share, ".0%"),
        format_number(row.graph_launches, ".0f"),
        format_number(row.speedup_vs_eager, ".2f"),
        "0" if row.bitwise else format_number(row.relative_error, ".0e"),
    ]


def _error_over_eagers(row: ModeRow) -> str:
    if row.error_vs_exact is None or not row.eager_error_vs_exact:
        return "–"
    return f"{row.error_vs_exact / row.eager_error_vs_exact:.2f}"


def _mode_table(report: ProfileReport) -> RuledTable:
    table = _table(
        *("mode", "start-up\ns", "compile\ns", "warm-up\ns", "capture\ns"),
        *("pool\nMiB", "driver\nMiB", "tensors,\npeak MiB"),
    )
    table.add_column("status")
    for mode in report.modes:
        status = Text(mode.status, _STYLES.get(mode.status, "yellow"))
        table.add_row(mode.mode, *_costs(mode), status)
    return table


def _costs(mode: ModeSummary) -> list[str]:
    if mode.status != "measured":
        return ["–"] * 7
    seconds = (mode.startup_s, mode.compile_s, mode.warmup_s, mode.capture_s)
    sizes = (mode.pool_bytes, mode.driver_bytes, mode.peak_bytes)
    return [*(f"{value:.2f}" for value in seconds), *(format_mebibytes(size) for size in sizes)]


def _notes(report: ProfileReport) -> Iterator[Text]:
    totals = report.totals
    yield Text(
        f"{totals.num_rounds} {totals.rounds} rounds of {totals.steps_per_round} steps; each mode in its own process, "
        "checked against eager.",
        "dim",
    )
    for sentence in explained(report):
        yield Text(sentence, "dim")
    if report.has_exact_errors:
        yield Text("× own: error against a wider dtype over eager's own; above 2 is wrong.", "dim")
    if report.on_host:
        yield Text("Measured on the host device: its times say nothing about a GPU.", "dim")
    for mode in report.modes:
        for reason in filter(None, [mode.reason, *mode.notes]):
            yield Text(f"{mode.mode}: {reason}", "yellow")
    for line in row_reasons(report):
        yield Text(line, "yellow")


def row_reasons(report: ProfileReport) -> list[str]:
    """Returns why rows have no time, where that is not so of the whole mode."""
    told = {mode.reason for mode in report.modes}
    return [
        f"{row.mode}, {bucket.tokens:,} tokens: {row.reason}"
        for bucket in report.buckets
        for row in bucket.modes
        if row.reason and row.reason not in told
    ]


def explained(report: ProfileReport) -> list[str]:
    """Returns what the columns mean that not every report has."""
    is_told = {_SPEEDUP_EXPLAINED: report.totals.rounds == "interleaved", _PEAK_EXPLAINED: report.has_peaks}
    return [sentence for sentence, has_it in is_told.items() if has_it]
