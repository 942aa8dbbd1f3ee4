"""A profile report as an HTML page."""

from __future__ import annotations

from html import escape

from bcg.report import ModeName, ModeRow, ModeSummary, ProfileReport
from bcg.sizes import format_size
from bcg_cli.views import figures
from bcg_cli.views.map_html import map_section
from bcg_cli.views.page import Figure, bullets, header, page, pair, plot_box, section, table, tiles
from bcg_cli.views.page_parts import about_lines, footer, options_section, warning_sections
from bcg_cli.views.profile_table import explained, row_reasons
from bcg_cli.views.ranks import ranks_section
from bcg_cli.views.words import format_mebibytes, format_number

MODE_WORDS = {
    "eager": "operations launched one by one",
    "full": "one graph, no breaks",
    "breakable": "graph segments with eager attention between",
    "compiled": 'torch.compile(mode="reduce-overhead")',
    "piecewise": "compiled, attention as the partition point",
    "fused": "breakable capture over compiled layers",
}

_ROWS_EXPLAINED = (
    "Medians of all steps; those of segments and breaks are of replays timed step by step after the rounds, which take "
    "a little longer; graphs are launches in a step. Green is the fastest. Exact is what eager gives in a wider dtype: "
    "a mode may be off from it twice as far as eager itself."
)


def profile_page(report: ProfileReport) -> str:
    """Returns all that a profile report holds as one page.

    Args:
        report: The report; nothing else is read.
    """
    plots: dict[str, Figure] = {}
    body = [
        header("profile", report.model.name, about_lines(report.model, report.environment, len(report.ranks))),
        tiles(_facts(report)),
    ]
    body += warning_sections(report.warnings)
    if report.totals.fastest and report.buckets:
        plots |= _plots(report)
        body += _plot_sections(report, plots)
    body.append(section("Modes", _how(report), _mode_table(report)))
    body.append(section("Token counts", _ROWS_EXPLAINED, _row_table(report) + bullets(row_reasons(report))))
    for number, replay in enumerate(report.timelines):
        plots[f"timeline-{number}"] = figures.timeline(replay)
        title = f"One replay of {replay.mode} at {replay.tokens:,} tokens"
        about = f"{len(replay.steps)} steps. Hover for names; drag to zoom, double-click to see all again."
        body.append(section(title, about, plot_box(f"timeline-{number}", style="low")))
    body.append(map_section(report))
    body += [ranks_section(report.ranks)] if report.ranks else []
    body.append(options_section(report.options))
    body.append(footer(report.environment, on_host=report.on_host))
    return page(f"{report.model.name}: bcg profile", body, plots)


def _plots(report: ProfileReport) -> dict[str, Figure]:
    plots = {
        "latency": figures.latency(report.buckets),
        "speedup": figures.speedup(report.buckets),
        "against": figures.startup_against_latency(report.modes, report.buckets),
        "startup": figures.startup_parts(report.modes),
        "memory": figures.mode_memory(report.buckets),
        "share": figures.segment_share(report.buckets),
    }
    return {name: figure for name, figure in plots.items() if figure["data"]}


def _plot_sections(report: ProfileReport, plots: dict[str, Figure]) -> list[str]:
    smallest = min(bucket.tokens for bucket in report.buckets)
    sections = {
        "latency": ("Latency", "Median step of each mode; the bar reaches to the 95th percentile."),
        "speedup": ("Speed-up", f"How many times as fast as {figures.yardstick(report.buckets)} each mode is."),
        "against": ("Start-up against latency", f"At {smallest:,} tokens: low and left is good."),
        "startup": (
            "Start-up",
            "From the loaded model until every token count can be replayed; the rest is what lies between the other "
            "parts, such as rehearsals and readings of memory.",
        ),
        "memory": (
            "Memory per token count",
            "Growth of pool (solid) and driver (pale), and what eager takes for a moment.",
        ),
        "share": ("Segments and breaks", "How the time of one replay divides into segments (solid) and breaks (pale)."),
    }
    cards = [section(*sections[name], plot_box(name)) for name in sections if name in plots]
    return [pair(*cards[start : start + 2]) for start in range(0, len(cards), 2)]


def _facts(report: ProfileReport) -> list[tuple[str, str]]:
    facts = []
    is_noise_known = all(warning.code != "unknown-spread" for warning in report.warnings)
    for bucket in sorted(report.buckets, key=lambda bucket: bucket.tokens)[:: max(1, len(report.buckets) - 1)]:
        name = report.totals.fastest.get(str(bucket.tokens))
        row = next((row for row in bucket.modes if row.mode == name), None)
        if row is None or row.p50_ms is None:
            continue
        has_gain = row.speedup_vs_eager and row.mode != "eager" and is_noise_known
        gain = f", {row.speedup_vs_eager:.2f}× eager" if has_gain else ""
        facts.append((f"{row.p50_ms:.3g} ms", f"{row.mode} at {bucket.tokens:,} tokens{gain}"))
    for mode in report.modes:
        if mode.status == "measured" and mode.mode in ("breakable", "fused"):
            facts.append((f"{mode.startup_s:.3g} s", f"start-up of {mode.mode}"))
            facts.append((format_size(mode.memory_bytes), f"pool and driver of {mode.mode}"))
    return facts


def _how(report: ProfileReport) -> str:
    totals = report.totals
    measured = (
        f"{totals.num_rounds} {totals.rounds} rounds of {totals.steps_per_round} steps, each mode in a process of its "
        "own, its first replays checked against eager."
    )
    return " ".join([measured, *explained(report)])


def _mode_table(report: ProfileReport) -> str:
    head = [
        "mode",
        "status",
        "start-up s",
        "compile",
        "warm-up",
        "capture",
        "pool MiB",
        "driver MiB",
        "tensors, peak MiB",
        "skips",
        "",
    ]
    return table(head, [_mode_cells(mode) for mode in report.modes], text_columns=(0, 1), prose_columns=(10,))


def _mode_cells(mode: ModeSummary) -> list[str]:
    reason = "; ".join(filter(None, [mode.reason, *mode.notes])) or MODE_WORDS[mode.mode]
    about = f'<span class="muted">{escape(reason)}</span>'
    if mode.status != "measured":
        return [_name(mode.mode), _status(mode.status), *["–"] * 8, about]
    return [
        _name(mode.mode),
        _status(mode.status),
        f"{mode.startup_s:,.2f}",
        f"{mode.compile_s:,.2f}",
        f"{mode.warmup_s:,.2f}",
        f"{mode.capture_s:,.2f}",
        format_mebibytes(mode.pool_bytes),
        format_mebibytes(mode.driver_bytes),
        format_mebibytes(mode.peak_bytes),
        f"{mode.num_skips:,}",
        about,
    ]


def _row_table(report: ProfileReport) -> str:
    head = [
        *("tokens", "mode", "p50 ms", "p95 ms", "tokens/s", "host µs", "in segments ms", "in breaks ms", "busy"),
        *("graphs", "× eager", "× full", "× compiled", "× piecewise", "error", "against exact", "eager's own"),
    ]
    rows = []
    for bucket in sorted(report.buckets, key=lambda bucket: bucket.tokens):
        fastest = report.totals.fastest.get(str(bucket.tokens))
        shown = [row for row in bucket.modes if row.status != "not available"]
        for index, row in enumerate(shown):
            tokens = f"<b>{bucket.tokens:,}</b>" if index == 0 else ""
            rows.append([tokens, *_row_cells(row, best=row.mode == fastest)])
    return table(head, rows, text_columns=(0, 1))


def _row_cells(row: ModeRow, *, best: bool) -> list[str]:
    if row.p50_ms is None or row.p95_ms is None:
        return [_name(row.mode), _status(row.status), *["–"] * 14]
    p50 = f"{row.p50_ms:,.3f}"
    speedups = (row.speedup_vs_eager, row.speedup_vs_full, row.speedup_vs_compiled, row.speedup_vs_piecewise)
    return [
        _name(row.mode),
        f'<span class="best">{p50}</span>' if best else p50,
        f"{row.p95_ms:,.3f}",
        format_number(row.tokens_per_s, ",.0f"),
        format_number(row.host_us, ",.0f"),
        format_number(row.segments_ms, ",.3f"),
        format_number(row.breaks_ms, ",.3f"),
        format_number(row.busy_share, ".0%"),
        format_number(row.graph_launches, ",.0f"),
        *(format_number(speedup, ".2f") for speedup in speedups),
        "bitwise" if row.bitwise else format_number(row.relative_error, ".1e"),
        format_number(row.error_vs_exact, ".1e"),
        format_number(row.eager_error_vs_exact, ".1e"),
    ]


def _name(mode: ModeName) -> str:
    return f'<span class="dot" style="background:{figures.MODE_COLORS[mode]}"></span>{escape(mode)}'


def _status(status: str) -> str:
    style = {"measured": "good", "wrong": "bad", "failed": "bad"}.get(status, "warn")
    return f'<span class="{style}">{escape(status)}</span>'
