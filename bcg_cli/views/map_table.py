"""The map of a bucket as text: its steps in order, repeated layers folded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from bcg.report import BreakRow, MappedReport, MapRow, SegmentRow
from bcg.sizes import format_size
from bcg_cli.views.folding import Fold, Step, fold_map, step_of
from bcg_cli.views.words import plural

NOT_FOLLOWED = "captured without following operations: modules and what it reads are not known"


def map_view(report: MappedReport[Any, Any], *, shows_externals: bool = False) -> Iterator[RenderableType]:
    """Yields the map of one bucket: its steps in order, repeated layers folded.

    Args:
        report: Only its map is read.
        shows_externals: Say of each segment what it reads from outside, and of each break what its result takes.
    """
    rows = report.rows_by_step()
    steps = [step_of(key, rows[key]) for key in report.map]
    table = Table.grid(padding=(0, 2, 0, 0))
    for _ in range(3 if shows_externals else 2):
        table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for step in fold_map(steps):
        if isinstance(step, Fold):
            first, place, outside = Text("…", "dim"), Text(str(step), "dim"), Text()
            count = Text(f"{step.num_steps} steps", "dim")
        else:
            first, count, place = _map_cells(step, rows[step.key])
            outside = Text(outside_words(rows[step.key]), "dim")
        table.add_row(first, count, *([outside] if shows_externals else []), place)
    counts = f"{plural(len(report.segments), 'segment')} and {plural(len(report.breaks), 'break')}"
    yield Text(f"Map of {report.map_tokens:,} tokens: {counts} in order", "bold")
    yield table


def _map_cells(step: Step, row: MapRow) -> tuple[Text, Text, Text]:
    name = step.key.replace(":", " ")
    if isinstance(row, BreakRow):
        place = f"{row.module} ({row.name})" if row.module else row.name
        return Text(name, "yellow"), Text(row.source, "yellow"), Text(place)
    if not row.is_followed:
        return Text(name), Text(work_words(row)), Text(NOT_FOLLOWED, "dim")
    return Text(name), Text(work_words(row)), Text(modules_in_short(row.modules))


def work_words(row: SegmentRow) -> str:
    """Returns how many kernels a segment runs, or how many operations it holds on the host device."""
    if row.num_kernels is None:
        return plural(row.num_operations, "operation")
    return plural(row.num_kernels, "kernel")


def outside_words(row: MapRow) -> str:
    """Returns what a segment reads from outside, or what the result of a break takes."""
    if isinstance(row, BreakRow):
        return f"boundary {format_size(row.boundary_bytes)}"
    return f"{plural(row.num_externals, 'external')}, {format_size(row.external_bytes)}"


def modules_in_short(modules: Sequence[str]) -> str:
    """Returns the modules of a segment: two, or the first and the last."""
    if len(modules) < 3:
        return ", ".join(modules)
    return f"{modules[0]} … {modules[-1]}"
