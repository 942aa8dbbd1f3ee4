"""A capture report as text for the terminal: a table of buckets, the map of one of them, warnings."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.text import Text

from bcg.report import CaptureBucket, CaptureReport
from bcg.sizes import format_size
from bcg_cli.views.findings import found_parts
from bcg_cli.views.map_table import map_view
from bcg_cli.views.ruled_table import RuledTable
from bcg_cli.views.text_parts import header_text
from bcg_cli.views.words import BOUNDARIES_EXPLAINED, OUTSIDE_THE_POOL, format_mebibytes

_STATUS_STYLE = {"captured": "green", "out of memory": "yellow", "failed": "red"}


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
    parts += found_parts(report.automatic_breaks, report.workload, report.warnings, report.cards)
    return Group(*parts)


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
