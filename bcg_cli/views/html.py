"""A capture report as an HTML page, and the parts that pages of other kinds share."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from bcg.report import (
    AutomaticBreak,
    BreakRow,
    CaptureBucket,
    CaptureReport,
    Card,
    Environment,
    MappedReport,
    MapRow,
    ModelInfo,
    OptionValue,
    ReportWarning,
    SegmentRow,
)
from bcg_cli.views import figures
from bcg_cli.views.findings import card_head, card_rows, chosen_words, fit_cells
from bcg_cli.views.folding import Fold, fold_map, step_of
from bcg_cli.views.page import Figure, fold, header, page, pair, plot_box, section, table, tiles
from bcg_cli.views.ranks import ranks_section
from bcg_cli.views.table import (
    BOUNDARIES_EXPLAINED,
    NOT_FOLLOWED,
    ORIGINS,
    OUTSIDE_THE_POOL,
    device_words,
    format_count,
    format_mebibytes,
    format_size,
    modules_in_short,
    outside_words,
    plural,
    version_words,
)

SHOWN_KERNELS = 40


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
    body += [_workload_section(report)] if report.workload else []
    body.append(options_section(report.options))
    body.append(footer(report.environment, on_host=report.on_host))
    return page(f"{report.model.name}: bcg capture", body, plots)


def about_lines(model: ModelInfo, environment: Environment, num_ranks: int) -> list[str]:
    """Returns the model and the device in words."""
    seed = "" if model.seed is None else f", seed {model.seed}"
    return [
        f"{model.architecture}, {format_count(model.num_parameters)} {model.dtype} weights "
        f"({format_size(model.weight_bytes)}), {ORIGINS[model.weights]}{seed}",
        device_words(environment, num_ranks),
    ]


def map_section(report: MappedReport[Any, Any], *, shows_externals: bool = False) -> str:
    """Returns the segment map: a strip of all steps, and a table in which equal layers are folded.

    Args:
        report: Only its map is read.
        shows_externals: Say of each segment what it reads from outside, and of each break what its result takes.
    """
    if not report.map:
        return ""
    rows = report.rows_by_step()
    strip = "".join(_block(key, rows[key]) for key in report.map)
    lines = []
    for step in fold_map([step_of(key, rows[key]) for key in report.map]):
        if isinstance(step, Fold):
            lines.append([f'<span class="muted">… {step.num_steps} steps</span>', "", "", escape(str(step))])
        else:
            name, holds, where = _map_cells(step.key, rows[step.key])
            outside = outside_words(rows[step.key]) if shows_externals else ""
            lines.append([name, holds, outside, where])
    legend = '<p class="legend"><span class="segment">■ segment</span><span class="break-name">■ break</span></p>'
    content = f'<div class="strip">{strip}</div>{legend}' + table(
        ["step", "holds", "outside", "where"], lines, text_columns=(0, 1, 2), prose_columns=(3,)
    )
    details = "".join(_kernel_details(row) for row in _distinct(report.segments))
    title = f"{plural(len(report.segments), 'segment')} and {plural(len(report.breaks), 'break')}"
    return section(title, f"The steps of {report.map_tokens:,} tokens in the order of replay.", content + details)


def warning_sections(warnings: Sequence[ReportWarning]) -> list[str]:
    """Returns a card for each warning, with its cause and remedy."""
    return [
        section(
            warning.message,
            "",
            f"<dl><dt>cause</dt><dd>{escape(warning.cause)}</dd><dt>remedy</dt><dd>{escape(warning.remedy)}</dd></dl>",
            style="warning",
        )
        for warning in warnings
    ]


def options_section(options: dict[str, OptionValue]) -> str:
    """Returns the options of the run, closed at first."""
    rows = [
        [escape(name.replace("_", " ")), f"<code>{escape(_option(value))}</code>"] for name, value in options.items()
    ]
    return section("This run", "", fold("options", table(["option", "value"], rows, prose_columns=(1,))))


def footer(environment: Environment, *, on_host: bool) -> str:
    """Returns the versions, and on the host device what its times are worth."""
    host = "Measured on the host device: its times say nothing about a GPU. " if on_host else ""
    return f"<footer>{host}{escape(version_words(environment, with_python=True))}</footer>"


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


def _block(key: str, row: MapRow) -> str:
    name = key.replace(":", " ")
    if isinstance(row, BreakRow):
        return f'<i class="break" title="{escape(f"{name}: {row.name} {row.module}")}"></i>'
    work = max(1, row.num_operations if row.num_kernels is None else row.num_kernels)
    return f'<i style="flex:{work} 1 {min(60.0, 4 + 0.5 * work):.0f}px" title="{escape(f"{name}: {_work(row)}")}"></i>'


def _map_cells(key: str, row: MapRow) -> list[str]:
    name = escape(key.replace(":", " "))
    if isinstance(row, BreakRow):
        where = f"<code>{escape(row.module)}</code> {escape(row.name)}"
        return [f'<span class="break-name">{name}</span>', escape(row.source), where]
    where = f"<code>{escape(modules_in_short(row.modules))}</code>" if row.is_followed else NOT_FOLLOWED
    return [f'<span class="segment">{name}</span>', _work(row), where]


def _work(row: SegmentRow) -> str:
    if row.num_kernels is None:
        return plural(row.num_operations, "operation")
    return plural(row.num_kernels, "kernel")


def _distinct(segments: Sequence[SegmentRow]) -> list[SegmentRow]:
    """Returns one segment of each set of equal ones: those that run the same kernels."""
    seen: dict[tuple[tuple[str, int], ...], SegmentRow] = {}
    for row in segments:
        seen.setdefault(tuple(row.kernels.items()), row)
    return [row for row in seen.values() if row.kernels]


def _kernel_details(row: SegmentRow) -> str:
    ordered = sorted(row.kernels.items(), key=lambda item: -item[1])
    rows = [[str(count), f"<code>{escape(name[:300])}</code>"] for name, count in ordered[:SHOWN_KERNELS]]
    if len(ordered) > SHOWN_KERNELS:
        rows.append(["", f"… and {len(ordered) - SHOWN_KERNELS} more"])
    externals = f"reads {plural(row.num_externals, 'external tensor')} ({format_size(row.external_bytes)})"
    what = externals if row.is_followed else NOT_FOLLOWED
    return fold(f"segment {row.index}: {_work(row)}, {what}", table(["", "kernel"], rows, prose_columns=(1,)))


def automatic_sections(breaks: Sequence[AutomaticBreak]) -> list[str]:
    """Returns the section of the breaks that nobody asked for, if there are any."""
    if not breaks:
        return []
    rows = [
        [
            f'<span class="break-name">{escape(row.size)}</span> <code>{escape(row.module)}</code> {escape(row.name)}',
            "<br>".join(
                f"{escape(card.hazard)}: {escape(card.title)} <code>{escape(card.source_line)}</code>"
                for card in (row.card, *row.other_cards)
            ),
            "<br>or ".join(f"<code>{escape(words)}</code>" for words in (row.option, row.decorator) if words),
        ]
        for row in breaks
    ]
    content = table(["break", "why", "explicit"], rows, text_columns=(), prose_columns=(0, 1, 2))
    doubt = next((row.doubt for row in breaks if row.doubt), "")
    verified = f"not verified: {doubt}" if doubt else "replays of full buckets with other inputs showed them right"
    return [section("Automatic breaks", f"Nobody asked for these; {verified}.", content)]


def card_sections(cards: Sequence[Card]) -> list[str]:
    """Returns a section for each card, with all that it says."""
    return [
        section(
            "".join(card_head(card)),
            "",
            table((), [(name, escape(value)) for name, value in card_rows(card)], prose_columns=(1,)),
            style="finding",
        )
        for card in cards
    ]


def _workload_section(report: CaptureReport) -> str:
    rows = [[escape(cell) for cell in fit_cells(row)] for row in report.workload]
    head = ["buckets", "count", "used", "padded", "of real", "replayed", "memory"]
    steps = f"What lists of token counts do to the {report.workload[0].num_steps:,} steps that were observed."
    chosen = f'<p class="muted"><code>{escape(chosen_words(report.workload))}</code></p>'
    return section("Workload", steps, table(head, rows) + chosen)


def _option(value: OptionValue) -> str:
    if isinstance(value, list):
        return ", ".join(str(item) for item in value) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "default" if value is None else str(value)
