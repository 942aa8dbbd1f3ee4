"""A capture report as an HTML page."""

from __future__ import annotations

from html import escape

from bcg.report import CaptureBucket, CaptureReport
from bcg.sizes import format_size
from bcg_cli.views import figures
from bcg_cli.views.map_html import map_section
from bcg_cli.views.page import Figure, header, page, pair, plot_box, section, table, tiles
from bcg_cli.views.page_parts import (
    about_lines,
    automatic_sections,
    card_sections,
    footer,
    options_section,
    warning_sections,
    workload_sections,
)
from bcg_cli.views.ranks import ranks_section
from bcg_cli.views.words import BOUNDARIES_EXPLAINED, OUTSIDE_THE_POOL, format_mebibytes


def capture_page(report: CaptureReport) -> str:
    """Returns all that a capture report holds as one page.

    Args:
        report: The report; nothing else is read.
    """
    plots: dict[str, Figure] = {}
    body = [
        header("capture report", report.model.name, about_lines(report.model, report.environment, len(report.ranks)))
    ]
    body.append(tiles(_facts(report)))
    body += warning_sections(report.warnings)
    if report.totals.num_captured:
        plots = {"memory": figures.capture_memory(report.buckets), "time": figures.capture_time(report.buckets)}
        body.append(
            pair(
                section("Memory", _about_memory(report), plot_box("memory")),
                section("Start-up", "Warm-up and capture of each token count.", plot_box("time")),
            )
        )
    about = "Largest first, as they were captured." + (f" {BOUNDARIES_EXPLAINED}" if report.breaks else "")
    body.append(section("Token counts", about, _bucket_table(report)))
    body.append(map_section(report))
    body += [ranks_section(report.ranks)] if report.ranks else []
    body += automatic_sections(report.automatic_breaks)
    body += card_sections(report.cards)
    body += workload_sections(report.workload)
    body.append(options_section(report.options))
    body.append(footer(report.environment, on_host=report.on_host))
    return page(f"{report.model.name}: bcg capture", body, plots)


def _facts(report: CaptureReport) -> list[tuple[str, str]]:
    totals, peak = report.totals, report.totals.eager_peak_bytes
    return [
        (f"{totals.num_captured} of {len(report.buckets)}", "token counts captured"),
        (f"{totals.capture_ms:,.0f} ms", "to capture them"),
        (format_size(totals.pool_bytes), "pool for all of them"),
        (format_size(totals.driver_bytes), "in the driver"),
        ("unknown" if peak is None else format_size(peak), "eager's transient peak"),
    ]


def _about_memory(report: CaptureReport) -> str:
    return "What each token count added: one pool serves them all." + (f" {OUTSIDE_THE_POOL}" if report.breaks else "")


def _bucket_table(report: CaptureReport) -> str:
    work = "operations" if report.on_host else "kernels"
    head = [
        *("tokens", "segments", "breaks", work, "warm-up ms", "capture ms"),
        *("pool Δ MiB", "driver Δ MiB", "boundaries MiB", "eager's peak MiB", "status"),
    ]
    return table(head, [_bucket_cells(bucket) for bucket in report.buckets], prose_columns=(10,))


def _bucket_cells(bucket: CaptureBucket) -> list[str]:
    peak = format_mebibytes(bucket.eager_peak_bytes)
    if bucket.status != "captured":
        reason = f": {bucket.error}" if bucket.error else ""
        return [f"{bucket.tokens:,}", *["–"] * 8, peak, f'<span class="warn">{escape(bucket.status + reason)}</span>']
    return [
        f"{bucket.tokens:,}",
        f"{bucket.num_segments:,}",
        f"{bucket.num_breaks:,}",
        f"{bucket.num_kernels:,}",
        f"{bucket.warmup_ms:,.1f}",
        f"{bucket.capture_ms:,.1f}",
        *(format_mebibytes(size) for size in (bucket.pool_bytes, bucket.driver_bytes, bucket.boundary_bytes)),
        peak,
        '<span class="good">captured</span>',
    ]
