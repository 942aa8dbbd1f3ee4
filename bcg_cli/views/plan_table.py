"""A dry run as text for the terminal: buckets, memory, inputs, the map, findings."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bcg.report import OptionValue, PlanReport, PlanTotals
from bcg_cli.views.findings import automatic_breaks_view
from bcg_cli.views.table import RuledTable, format_count, format_mebibytes, format_size, map_view, warning_text


def plan_view(report: PlanReport) -> RenderableType:
    """Returns all that ``bcg capture --dry-run`` shows.

    Args:
        report: The report; nothing else is read.
    """
    model = report.model
    parts: list[RenderableType] = [
        Text.assemble(
            (model.name, "bold"),
            f": {model.architecture}, {format_count(model.num_parameters)} {model.dtype} weights, none loaded",
        ),
        Text.assemble(("dry run", "bold"), f": torch {report.environment.torch}, no GPU, no data"),
        Text(),
        _bucket_table(report),
        Text(),
        Text("\n").join(_memory_lines(report.totals, report.options.get("tp"))),
        Text(),
        _input_table(report),
        Text(),
        *map_view(report.map_tokens, report.map, report.segments, report.breaks, shows_externals=True),
    ]
    if report.automatic_breaks:
        parts += [Text(), automatic_breaks_view(report.automatic_breaks)]
    for warning in report.warnings:
        parts += [Text(), warning_text(warning)]
    parts += [Text(), Text("A dry run can't know", "bold"), *(Text(f"- {line}") for line in report.unknown)]
    return Group(*parts)


def _bucket_table(report: PlanReport) -> RuledTable:
    table = RuledTable()
    for header in ("tokens", "pool\nMiB", "of it used\nMiB", "boundaries\nMiB"):
        table.add_column(header, justify="right", vertical="top")
    for bucket in report.buckets:
        table.add_row(
            str(bucket.tokens),
            format_mebibytes(bucket.pool_bytes),
            format_mebibytes(bucket.used_bytes),
            format_mebibytes(bucket.boundary_bytes),
        )
    return table


def _memory_lines(totals: PlanTotals, num_ranks: OptionValue) -> Iterator[Text]:
    of = f" of each of {num_ranks} ranks" if num_ranks else ""
    yield Text(
        f"Estimate{of}: weights {format_size(totals.weight_bytes)}, static inputs {format_size(totals.input_bytes)}, "
        f"one pool {format_size(totals.pool_bytes)} for all buckets, graphs about {format_size(totals.graph_bytes)}; "
        f"together {format_size(totals.needed_bytes)}."
    )
    if totals.gpu is not None and totals.gpu_bytes is not None:
        verdict = ("fits", "green") if totals.fits else ("doesn't fit", "red")
        yield Text.assemble(verdict, f" {totals.gpu}, which has {format_size(totals.gpu_bytes)}.")


def _input_table(report: PlanReport) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    for _ in range(4):
        table.add_column()
    for row in report.inputs:
        shape = ", ".join("tokens" if size == -1 else str(size) for size in row.shape)
        table.add_row("static input", Text(row.name), Text(f"{row.dtype} [{shape}]"), format_size(row.num_bytes))
    return table
