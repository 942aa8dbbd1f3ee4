"""A capture report as text for the terminal: a table of buckets, the map of one of them, warnings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.box import Box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

from bcg.report import (
    BreakRow,
    CaptureBucket,
    CaptureReport,
    Environment,
    MappedReport,
    MapRow,
    ModelInfo,
    ReportWarning,
)
from bcg_cli.views.findings import automatic_breaks_view, card_view, workload_view
from bcg_cli.views.folding import Fold, Step, fold_map, step_of

MEBIBYTE = 2**20

OUTSIDE_THE_POOL = "What breaks allocate for themselves is part of eager's peak, and stays outside the pool at replay."

BOUNDARIES_EXPLAINED = (
    "Boundaries, the results of breaks, lie in the pool and share its memory: not all are in use at once."
)
NOT_FOLLOWED = "captured without following operations: modules and what it reads are not known"

MAX_WIDTH = 1000
RULED = Box("    \n    \n ── \n    \n    \n ── \n    \n    \n")
ORIGINS = {"random": "random", "safetensors": "from safetensors", "user": "as the factory made them, in eval mode"}
_STATUS_STYLE = {"captured": "green", "out of memory": "yellow", "failed": "red"}


class RuledTable(Table):
    """A table of numbers under a rule, whose last column may hold words.

    No cell is cut or folded inside a word or number: where the terminal is narrower, lines are longer.
    """

    def __init__(self, *, show_footer: bool = False) -> None:
        super().__init__(
            box=RULED, show_edge=False, padding=0, show_footer=show_footer, header_style="bold", footer_style=""
        )

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for column in self.columns[:-1]:
            column.no_wrap = True
        needed = sum(self._least(column, console, options) for column in self.columns) + len(self.columns) - 1
        return super().__rich_console__(console, options.update(width=max(options.max_width, needed)))

    def _least(self, column: Column, console: Console, options: ConsoleOptions) -> int:
        wide = options.update(width=MAX_WIDTH)
        cells = (column.header, column.footer, *column.cells)
        widths = [Measurement.get(console, wide, cell) for cell in cells]
        return max(width.maximum if column.no_wrap else width.minimum for width in widths)


def capture_view(report: CaptureReport) -> RenderableType:
    """Returns all that ``bcg capture`` shows.

    Args:
        report: The report; nothing else is read.
    """
    parts: list[RenderableType] = [
        header_text(report.model, report.environment, len(report.ranks)),
        Text(),
        _bucket_table(report),
        *_notes(report),
    ]
    if report.map:
        parts += [Text(), *map_view(report)]
    if report.automatic_breaks:
        parts += [Text(), automatic_breaks_view(report.automatic_breaks)]
    if report.workload:
        parts += [Text(), workload_view(report.workload)]
    for warning in report.warnings:
        parts += [Text(), warning_text(warning)]
    for card in report.cards:
        parts += [Text(), card_view(card)]
    return Group(*parts)


def format_mebibytes(num_bytes: int | None) -> str:
    """Returns bytes as MiB in short, or a dash where they are not known."""
    if num_bytes is None:
        return "–"
    value = num_bytes / MEBIBYTE
    if num_bytes and abs(value) < 0.005:
        return "<0.01" if value > 0 else ">-0.01"
    if abs(value) < 99.995:
        return f"{value:.2f}" if num_bytes else "0"
    return f"{value:,.1f}" if abs(value) < 9999.95 else f"{value:,.0f}"


def format_error(error: float | None) -> str:
    """Returns an error in short; a dash where it could not be compared."""
    if error is None:
        return "–"
    return f"{error:.1e}" if error else "0"


def format_size(num_bytes: int) -> str:
    """Returns bytes with a unit of their own, such as ``1.19 GiB``."""
    value, unit = float(num_bytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:,.0f} B" if unit == "B" else f"{value:,.2f} {unit}"


def format_count(count: int) -> str:
    """Returns a large count in short, such as ``8.19 billion``."""
    for size, name in ((10**9, "billion"), (10**6, "million")):
        if count >= size:
            return f"{count / size:.2f} {name}"
    return f"{count:,}"


def version_words(environment: Environment, *, with_python: bool = False) -> str:
    """Returns the versions of a run in one line; those that a machine doesn't have are left out."""
    versions = [
        f"driver {environment.driver}" if environment.driver else "",
        f"CUDA {environment.cuda}" if environment.cuda else "",
        f"torch {environment.torch}",
        f"transformers {environment.transformers}",
        *(f"{name} {version}" for name, version in environment.kernel_packages.items()),
        f"Python {environment.python}" if with_python else "",
        f"bcg {environment.bcg}",
    ]
    return ", ".join(filter(None, versions))


def device_words(environment: Environment, num_ranks: int) -> str:
    """Returns the device, and over how many of them the model is sharded; no ranks are one process."""
    return f"{num_ranks} ranks, each on {environment.device}" if num_ranks else environment.device


def header_text(model: ModelInfo, environment: Environment, num_ranks: int) -> Text:
    """Returns the model in one line, and what it was run on in another."""
    seed = "" if model.seed is None else f", seed {model.seed}"
    return Text("\n").join(
        [
            Text.assemble(
                (model.name, "bold"),
                f": {model.architecture}, {format_count(model.num_parameters)} {model.dtype} weights "
                f"({format_size(model.weight_bytes)}), {ORIGINS[model.weights]}{seed}",
            ),
            Text.assemble((device_words(environment, num_ranks), "bold"), ": ", version_words(environment)),
        ]
    )


def _bucket_table(report: CaptureReport) -> RuledTable:
    totals = report.totals
    table = RuledTable(show_footer=True)
    for header, footer in (
        ("tokens", "total"),
        ("segments", ""),
        ("breaks", ""),
        ("operations" if report.on_host else "kernels", ""),
        ("capture\nms", f"{totals.capture_ms:,.1f}"),
        ("pool Δ\nMiB", format_mebibytes(totals.pool_bytes)),
        ("driver\nΔ MiB", format_mebibytes(totals.driver_bytes)),
        ("boundary\nMiB", ""),
        ("eager\npeak", format_mebibytes(totals.eager_peak_bytes)),
    ):
        table.add_column(header, footer, justify="right", vertical="top")
    table.add_column("status", f"{totals.num_captured} of {len(report.buckets)}")
    for bucket in report.buckets:
        table.add_row(*_bucket_cells(bucket), Text(bucket.status, _STATUS_STYLE[bucket.status]))
    return table


def _bucket_cells(bucket: CaptureBucket) -> list[str]:
    eager_peak = format_mebibytes(bucket.eager_peak_bytes)
    if bucket.status != "captured":
        return [f"{bucket.tokens:,}", *["–"] * 7, eager_peak]
    return [
        f"{bucket.tokens:,}",
        f"{bucket.num_segments:,}",
        f"{bucket.num_breaks:,}",
        f"{bucket.num_kernels:,}",
        f"{bucket.capture_ms:,.1f}",
        format_mebibytes(bucket.pool_bytes),
        format_mebibytes(bucket.driver_bytes),
        format_mebibytes(bucket.boundary_bytes),
        eager_peak,
    ]


def _notes(report: CaptureReport) -> Iterator[Text]:
    totals = report.totals
    if totals.num_captured:
        peak = totals.eager_peak_bytes
        takes = "unknown memory" if peak is None else f"up to {format_size(peak)}"
        yield Text(
            f"One pool of {format_size(totals.pool_bytes)} serves every bucket; "
            f"an eager forward takes {takes} for a moment.",
            "dim",
        )
        if report.breaks:
            yield Text(OUTSIDE_THE_POOL, "dim")
    if report.breaks:
        yield Text(BOUNDARIES_EXPLAINED, "dim")
    if report.on_host:
        yield Text("Captured on the host device: its times say nothing about a GPU.", "dim")
    for bucket in report.buckets:
        if bucket.error:
            yield Text(f"{bucket.tokens:,} tokens: {bucket.error}", "yellow")


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
    count = plural(row.num_operations, "operation") if row.num_kernels is None else plural(row.num_kernels, "kernel")
    if not row.is_followed:
        return Text(name), Text(count), Text(NOT_FOLLOWED, "dim")
    return Text(name), Text(count), Text(modules_in_short(row.modules))


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


def plural(count: int, noun: str) -> str:
    """Returns a count with its noun: ``1 segment``, ``2 segments``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def warning_text(warning: ReportWarning) -> Text:
    """Returns a warning with its cause and remedy."""
    return Text.assemble(
        ("warning: ", "bold yellow"),
        warning.message,
        ("\n  cause:  ", "dim"),
        warning.cause,
        ("\n  remedy: ", "dim"),
        warning.remedy,
    )
