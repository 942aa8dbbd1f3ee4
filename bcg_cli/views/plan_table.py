"""A dry run as text for the terminal: buckets, memory, inputs, the map, findings."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bcg.report import InputRow, PlanReport
from bcg.sizes import format_size
from bcg_cli.views.findings import found_parts
from bcg_cli.views.map_table import map_view
from bcg_cli.views.ruled_table import RuledTable
from bcg_cli.views.words import BOUNDARIES_EXPLAINED, format_mebibytes, weights_words

NOTHING_NEEDED = "no GPU, no data"


def plan_view(report: PlanReport) -> RenderableType:
    """Returns all that ``bcg capture --dry-run`` shows.

    Args:
        report: The report; nothing else is read.
    """
    parts: list[RenderableType] = [
        Text.assemble((report.model.name, "bold"), f": {planned_words(report)}"),
        Text.assemble(("dry run", "bold"), f": torch {report.environment.torch}, {NOTHING_NEEDED}"),
        Text(),
        _bucket_table(report),
        Text(BOUNDARIES_EXPLAINED, "dim"),
        Text(),
        Text("\n").join(_memory_lines(report)),
        Text(),
        _input_table(report),
        Text(),
        *map_view(report, shows_externals=True),
    ]
    parts += found_parts(report.automatic_breaks, report.workload, report.warnings)
    parts += [Text(), Text("A dry run can't know", "bold"), *(Text(f"- {line}") for line in report.unknown)]
    return Group(*parts)


def planned_words(report: PlanReport) -> str:
    """Returns what was planned: only the shapes of its weights are there."""
    return f"{weights_words(report.model)}, none loaded"


def shape_words(row: InputRow) -> str:
    """Returns dtype and shape of a static input: ``int64 [1, tokens]``."""
    shape = ", ".join("tokens" if size == -1 else str(size) for size in row.shape)
    return f"{row.dtype} [{shape}]"


def _bucket_table(report: PlanReport) -> RuledTable:
    table = RuledTable()
    for header in ("tokens", "pool\nMiB", "of it used\nMiB", "boundaries\nMiB"):
        table.add_column(header, justify="right", vertical="top")
    for bucket in report.buckets:
        table.add_row(
            f"{bucket.tokens:,}",
            format_mebibytes(bucket.pool_bytes),
            format_mebibytes(bucket.used_bytes),
            format_mebibytes(bucket.boundary_bytes),
        )
    return table


def of_ranks(report: PlanReport) -> str:
    """Returns whose memory is estimated, where a model is sharded."""
    num_ranks = report.options.get("tp")
    return f" of each of {num_ranks} ranks" if num_ranks else ""


def _memory_lines(report: PlanReport) -> Iterator[Text]:
    totals = report.totals
    yield Text(
        f"Estimate{of_ranks(report)}: weights {format_size(totals.weight_bytes)}, "
        f"static inputs {format_size(totals.input_bytes)}, one pool {format_size(totals.pool_bytes)} for all buckets, "
        f"graphs about {format_size(totals.graph_bytes)}; together {format_size(totals.needed_bytes)}."
    )
    if totals.gpu is not None and totals.gpu_bytes is not None:
        verdict = ("fits", "green") if totals.fits else ("doesn't fit", "red")
        yield Text.assemble(verdict, f" {totals.gpu}, which has {format_size(totals.gpu_bytes)}.")


def _input_table(report: PlanReport) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    for _ in range(4):
        table.add_column()
    for row in report.inputs:
        table.add_row("static input", Text(row.name), Text(shape_words(row)), format_size(row.num_bytes))
    return table
