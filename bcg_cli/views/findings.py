"""What a capture found besides its graphs, as text: cards, automatic breaks, bucket lists."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bcg.hazards import is_loud
from bcg.report import AutomaticBreak, BucketFitRow, Card, ReportWarning
from bcg.sizes import MIB
from bcg_cli.views.text_parts import warning_text

FIT_COLUMNS = ("buckets", "count", "used", "padded", "of real", "replayed", "memory")
"""What `fit_cells` gives."""

_NO_BREAK = "none: only the root module is around it"


def card_head(card: Card) -> tuple[str, str, str]:
    """Returns the row of the catalogue, or that there is none; the title; and how often it was found."""
    times = f" ({card.occurrences} places)" if card.occurrences > 1 else ""
    row = card.hazard or ("" if card.remedy else "unknown cause:")
    return (f"{row} " if row else "", card.title, times)


def card_rows(card: Card) -> list[tuple[str, str]]:
    """Returns all else that a card says, by name."""
    where = f"in {card.module}" if card.module else "outside any submodule"
    rows = (
        ("operation", card.operation),
        ("module", where),
        ("line", card.source_line),
        ("driver", card.driver_text),
        ("cause", card.cause),
        ("remedy", card.remedy),
        ("break", card.break_option or (_NO_BREAK if is_loud(card.hazard) else "")),
    )
    return [(name, value) for name, value in rows if value]


def card_view(card: Card) -> RenderableType:
    """Returns a diagnosis card.

    Args:
        card: The card; nothing else is read.
    """
    row, title, times = card_head(card)
    table = Table.grid(padding=(0, 1, 0, 2))
    table.add_column(no_wrap=True, style="dim")
    table.add_column(overflow="fold")
    for name, value in card_rows(card):
        table.add_row(name, Text(value))
    return Group(Text.assemble((row, "bold red"), (title, "bold"), times), table)


def found_parts(
    automatic_breaks: Sequence[AutomaticBreak] = (),
    workload: Sequence[BucketFitRow] = (),
    warnings: Sequence[ReportWarning] = (),
    cards: Sequence[Card] = (),
) -> Iterator[RenderableType]:
    """Yields what a report says besides its tables, with an empty line before each."""
    views = [automatic_breaks_view(automatic_breaks)] if automatic_breaks else []
    views += [workload_view(workload)] if workload else []
    views += [warning_text(warning) for warning in warnings]
    views += [card_view(card) for card in cards]
    for view in views:
        yield from (Text(), view)


def automatic_breaks_view(breaks: Sequence[AutomaticBreak]) -> RenderableType:
    """Returns which breaks were added, why, whether replays showed them right, and what makes them explicit."""
    doubt = next((item.doubt for item in breaks if item.doubt), "")
    verified = f"not verified: {doubt}" if doubt else "verified by replays of full buckets with other inputs"
    parts: list[RenderableType] = [
        Text.assemble(("Automatic breaks", "bold"), (f", {verified}", "yellow" if doubt else "bold"))
    ]
    for item in breaks:
        place = f" in {item.module}" if item.module and item.module != item.name else ""
        name = f"{item.module} ({item.name})" if item.size == "module" else f"{item.name}{place}"
        parts.append(Text.assemble((item.size, "yellow"), " ", name))
        table = Table.grid(padding=(0, 1, 0, 2))
        table.add_column(no_wrap=True, style="dim")
        table.add_column(overflow="fold")
        causes: dict[str, Card] = {}
        for card in (item.card, *item.other_cards):
            causes.setdefault(card.hazard, card)
        for card in causes.values():
            word = "why" if card is item.card else "also"
            table.add_row(word, Text(f"{card.hazard}: {card.operation} at {card.source_line}: {card.title}"))
            if card.driver_text:
                table.add_row("driver", Text(card.driver_text))
        num_more = 1 + len(item.other_cards) - len(causes)
        if num_more:
            table.add_row("", Text(f"and at {num_more} more {'line' if num_more == 1 else 'lines'}"))
        if item.option:
            table.add_row("explicit", Text(item.option))
        if item.decorator:
            table.add_row("or", Text(item.decorator))
        parts.append(table)
    return Group(*parts)


def workload_view(rows: Sequence[BucketFitRow]) -> RenderableType:
    """Returns what bucket lists do to the workload that the first one was chosen for."""
    table = Table.grid(padding=(0, 2, 0, 0))
    for header in FIT_COLUMNS:
        table.add_column(justify="left" if header == "buckets" else "right", overflow="fold")
    table.add_row(*(Text(header, "bold") for header in FIT_COLUMNS))
    for row in rows:
        table.add_row(*fit_cells(row))
    return Group(Text(f"Workload of {rows[0].num_steps:,} steps", "bold"), table, Text(chosen_words(rows), "dim"))


def fit_cells(row: BucketFitRow) -> Iterator[str]:
    """Yields what a bucket list does, a cell for each of `FIT_COLUMNS`."""
    yield row.name
    yield str(len(row.buckets))
    yield str(row.used_buckets)
    yield f"{row.padded_tokens:,}"
    yield f"{row.padded_tokens / row.real_tokens:.1%}" if row.real_tokens else "–"
    yield f"{row.replayed_steps / row.num_steps:.1%}"
    yield "–" if row.memory_bytes is None else f"{row.memory_bytes / MIB:,.0f} MiB"


def chosen_words(rows: Sequence[BucketFitRow]) -> str:
    """Returns the first list as words of the command line."""
    return f"--tokens {','.join(str(tokens) for tokens in rows[0].buckets)}"
