"""Plots of reports, as plain data for plotly; the page's script gives them the colours of its theme."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bcg.report import CaptureBucket, ModeName, ModeRow, ModeSummary, ProfileBucket, Timeline
from bcg_cli.views.axes import axis, categories, log_axis, token_axis, unit_of
from bcg_cli.views.page import Figure, plot_text

MODE_COLORS: dict[ModeName, str] = {
    "eager": "#8b95a1",
    "full": "#3b82f6",
    "breakable": "#0ea5a4",
    "compiled": "#f59e0b",
    "piecewise": "#a855f7",
    "fused": "#ef4444",
}
_BLUE, _AMBER, _TEAL, _GRAY = "#3b82f6", "#f59e0b", "#0ea5a4", "#8b95a1"
_DASHES = {"full": "dot", "compiled": "dash", "piecewise": "dashdot"}


def capture_memory(buckets: Sequence[CaptureBucket]) -> Figure:
    """Returns what each bucket added to the pool and the driver, and what eager takes for a moment."""
    shown = _captured(buckets)
    labels = [f"{bucket.tokens:,}" for bucket in shown]
    pools, drivers = [bucket.pool_bytes for bucket in shown], [bucket.driver_bytes for bucket in shown]
    peaks = [bucket.eager_peak_bytes for bucket in shown]
    unit = unit_of([*pools, *drivers, *peaks])
    bars = [
        _bar("pool", labels, unit.values(pools), _BLUE, unit.name),
        _bar("driver", labels, unit.values(drivers), _AMBER, unit.name),
    ]
    return {
        "data": [*bars, _marks("eager's transient peak", labels, unit.values(peaks), _GRAY, unit.name)],
        "layout": {"barmode": "relative", "xaxis": categories("tokens"), "yaxis": axis(unit.name, rangemode="tozero")},
    }


def capture_time(buckets: Sequence[CaptureBucket]) -> Figure:
    """Returns how long warm-up and capture of each bucket took."""
    shown = _captured(buckets)
    labels = [f"{bucket.tokens:,}" for bucket in shown]
    return {
        "data": [
            _bar("warm-up", labels, [bucket.warmup_ms for bucket in shown], _GRAY, "ms"),
            _bar("capture", labels, [bucket.capture_ms for bucket in shown], _TEAL, "ms"),
        ],
        "layout": {"barmode": "stack", "xaxis": categories("tokens"), "yaxis": axis("ms", rangemode="tozero")},
    }


def latency(buckets: Sequence[ProfileBucket]) -> Figure:
    """Returns the median step of every mode over tokens, with its 95th percentile as a bar upwards."""
    return {
        "data": [
            {
                **_line(mode, [tokens for tokens, _ in points], [row.p50_ms for _, row in points]),
                "error_y": {
                    "type": "data",
                    "symmetric": False,
                    "array": [max(0.0, (row.p95_ms or 0) - (row.p50_ms or 0)) for _, row in points],
                    "arrayminus": [0] * len(points),
                    "thickness": 1,
                    "width": 3,
                },
                "hovertemplate": "%{x:,} tokens: <b>%{y:.4~g} ms</b><extra>" + mode + "</extra>",
            }
            for mode, points in _measured(buckets).items()
        ],
        "layout": {"xaxis": _token_axis(buckets), "yaxis": log_axis("ms a step", _times(buckets))},
    }


def yardstick(buckets: Sequence[ProfileBucket]) -> ModeName | None:
    """Returns the mode that speed-ups are told against: eager, or without it the next that a user would have."""
    measured = _measured(buckets)
    others: tuple[ModeName, ...] = ("eager", "full", "compiled", "piecewise")
    return next((mode for mode in others if mode in measured), None) if len(measured) > 1 else None


def speedup(buckets: Sequence[ProfileBucket]) -> Figure:
    """Returns how many times as fast every mode is as the yardstick; nothing where there is none."""
    measured, against = _measured(buckets), yardstick(buckets)
    if against is None:
        return {"data": [], "layout": {}}
    traces = []
    for mode, points in measured.items():
        gains = {tokens: getattr(row, f"speedup_vs_{against}") for tokens, row in points}
        shared = [tokens for tokens, gain in gains.items() if gain is not None]
        hover = f"%{{x:,}} tokens: <b>%{{y:.3~g}}×</b> {against}<extra>{mode}</extra>"
        traces.append({**_line(mode, shared, [gains[tokens] for tokens in shared]), "hovertemplate": hover})
    return {
        "data": traces,
        "layout": {
            "xaxis": _token_axis(buckets),
            "yaxis": axis(f"times as fast as {against}", rangemode="tozero"),
            "shapes": [_level(1)],
        },
    }


def startup_against_latency(modes: Sequence[ModeSummary], buckets: Sequence[ProfileBucket]) -> Figure:
    """Returns start-up over the median step of the smallest bucket: low and left is good."""
    smallest = min(buckets, key=lambda bucket: bucket.tokens, default=None)
    rows = {row.mode: row for row in smallest.modes} if smallest else {}
    traces: list[dict[str, Any]] = []
    for mode in modes:
        row = rows.get(mode.mode)
        if row is None or row.p50_ms is None:
            continue
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": mode.mode,
                "x": [row.p50_ms],
                "y": [mode.startup_s],
                "cliponaxis": False,
                "marker": {"size": 15, "color": MODE_COLORS[mode.mode], "opacity": 0.85},
                "hovertemplate": "%{x:.4~g} ms a step, %{y:.3~g} s start-up<extra>" + mode.mode + "</extra>",
            }
        )
    return {
        "data": traces,
        "layout": {
            "showlegend": True,
            "xaxis": axis("ms a step", rangemode="tozero"),
            "yaxis": log_axis("s start-up", [seconds for trace in traces for seconds in trace["y"]]),
        },
    }


def startup_parts(modes: Sequence[ModeSummary]) -> Figure:
    """Returns start-up of every mode, split into its parts and what is left beside them."""
    shown = [mode for mode in modes if mode.status == "measured"][::-1]
    names = [mode.mode for mode in shown]
    parts = (
        ("compile", [mode.compile_s for mode in shown], _AMBER),
        ("warm-up", [mode.warmup_s for mode in shown], _GRAY),
        ("capture", [mode.capture_s for mode in shown], _TEAL),
        ("rest", [max(0.0, mode.startup_s - _parts_s(mode)) for mode in shown], _BLUE),
    )
    return {
        "data": [
            {
                "type": "bar",
                "orientation": "h",
                "name": name,
                "y": names,
                "x": seconds,
                "marker": {"color": color},
                "hovertemplate": "%{x:.3~g} s<extra>" + name + "</extra>",
            }
            for name, seconds, color in parts
        ],
        "layout": {
            "barmode": "stack",
            "xaxis": axis("seconds", rangemode="tozero"),
            "yaxis": {"type": "category"},
        },
    }


def mode_memory(buckets: Sequence[ProfileBucket]) -> Figure:
    """Returns what every bucket added to pool and driver, a group of bars a mode; eager's peak as marks."""
    ordered = sorted(buckets, key=lambda bucket: bucket.tokens)
    unit = unit_of(
        [
            size
            for points in _measured(ordered).values()
            for _, row in points
            for size in (row.pool_bytes, row.driver_bytes, row.transient_bytes)
        ]
    )
    traces: list[dict[str, Any]] = []
    for mode, points in _measured(ordered).items():
        labels = [f"{tokens:,}" for tokens, _ in points]
        if mode == "eager":
            peaks = unit.values([row.transient_bytes for _, row in points])
            traces.append(_marks("eager's peak", labels, peaks, _GRAY, unit.name))
            continue
        for part, color in (("pool", MODE_COLORS[mode]), ("driver", _pale(MODE_COLORS[mode]))):
            values = unit.values([row.pool_bytes if part == "pool" else row.driver_bytes for _, row in points])
            bar = _bar(f"{mode}: {part}", labels, values, color, unit.name)
            legend = {"name": mode, "legendgroup": mode, "showlegend": part == "pool"}
            traces.append({**bar, **legend, "offsetgroup": mode})
    if any(trace["type"] == "bar" for trace in traces):
        traces.append({"type": "bar", "name": "driver", "x": [None], "y": [None], "marker": {"color": _pale(_GRAY)}})
    return {
        "data": traces,
        "layout": {"barmode": "relative", "xaxis": categories("tokens"), "yaxis": axis(unit.name, rangemode="tozero")},
    }


def segment_share(buckets: Sequence[ProfileBucket]) -> Figure:
    """Returns, of the modes with segments, how a replay's time divides into segments and breaks."""
    traces = []
    for mode, points in _measured(buckets).items():
        known = [(tokens, row) for tokens, row in points if row.segments_ms is not None]
        labels = [f"{tokens:,}" for tokens, _ in known]
        if not known or mode == "full":
            continue
        for part, color in (("segments", MODE_COLORS[mode]), ("breaks", _pale(MODE_COLORS[mode]))):
            values = [_share(row, part) for _, row in known]
            traces.append({**_bar(f"{mode}: {part}", labels, values, color, "%"), "offsetgroup": mode})
    return {
        "data": traces,
        "layout": {
            "barmode": "relative",
            "xaxis": categories("tokens"),
            "yaxis": axis("% of a replay", range=[0, 100]),
        },
    }


def timeline(replay: Timeline) -> Figure:
    """Returns one replay as lanes of segments and breaks, on the host and on the device."""
    lanes = [("host", False)]
    if any(step.device_us is not None for step in replay.steps):
        lanes.append(("device", True))
    traces = []
    for kind, color in (("segment", _BLUE), ("break", _AMBER)):
        steps = [step for step in replay.steps if step.kind == kind]
        for lane, on_device in lanes:
            starts = [(step.device_start_us if on_device else step.host_start_us) or 0.0 for step in steps]
            widths = [(step.device_us if on_device else step.host_us) or 0.0 for step in steps]
            traces.append(
                {
                    "type": "bar",
                    "orientation": "h",
                    "name": f"{kind}s",
                    "legendgroup": kind,
                    "showlegend": lane == "host",
                    "y": [lane] * len(steps),
                    "base": starts,
                    "x": widths,
                    "width": 0.62,
                    "marker": {"color": color, "line": {"width": 0}},
                    "customdata": [plot_text(f"{step.kind} {step.index} {step.name}") for step in steps],
                    "hovertemplate": "%{customdata}<br>from %{base:.1f} µs for <b>%{x:.1f} µs</b><extra></extra>",
                }
            )
    return {
        "data": traces,
        "layout": {
            "barmode": "overlay",
            "xaxis": axis("µs from the start of the replay", rangemode="tozero"),
            "yaxis": {"type": "category", "autorange": "reversed"},
        },
    }


def _measured(buckets: Sequence[ProfileBucket]) -> dict[ModeName, list[tuple[int, ModeRow]]]:
    found: dict[ModeName, list[tuple[int, ModeRow]]] = {}
    for bucket in sorted(buckets, key=lambda bucket: bucket.tokens):
        for row in bucket.modes:
            if row.p50_ms is not None:
                found.setdefault(row.mode, []).append((bucket.tokens, row))
    return found


def _parts_s(mode: ModeSummary) -> float:
    return mode.compile_s + mode.warmup_s + mode.capture_s


def _share(row: ModeRow, part: str) -> float | None:
    segments_ms, breaks_ms = row.segments_ms or 0.0, row.breaks_ms or 0.0
    total = segments_ms + breaks_ms
    return 100 * (segments_ms if part == "segments" else breaks_ms) / total if total else None


def _captured(buckets: Sequence[CaptureBucket]) -> list[CaptureBucket]:
    return sorted((bucket for bucket in buckets if bucket.status == "captured"), key=lambda bucket: bucket.tokens)


def _line(mode: ModeName, tokens: list[int], values: list[float | None]) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": mode,
        "x": tokens,
        "y": values,
        "line": {"color": MODE_COLORS[mode], "width": 2.2, "dash": _DASHES.get(mode, "solid")},
        "marker": {"size": 7},
    }


def _bar(name: str, labels: list[str], values: list[float | None], color: str, unit: str) -> dict[str, Any]:
    return {
        "type": "bar",
        "name": name,
        "x": labels,
        "y": values,
        "marker": {"color": color},
        "hovertemplate": "%{x} tokens: <b>%{y:.4~g} " + unit + "</b><extra>" + name + "</extra>",
    }


def _marks(name: str, labels: list[str], values: list[float | None], color: str, unit: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": name,
        "x": labels,
        "y": values,
        "line": {"color": color, "width": 1.5, "dash": "dot"},
        "marker": {"symbol": "diamond", "size": 8, "color": color},
        "hovertemplate": "%{x} tokens: <b>%{y:.4~g} " + unit + "</b><extra>" + name + "</extra>",
    }


def _token_axis(buckets: Sequence[ProfileBucket]) -> dict[str, Any]:
    return token_axis([bucket.tokens for bucket in buckets])


def _times(buckets: Sequence[ProfileBucket]) -> list[float]:
    rows = [row for bucket in buckets for row in bucket.modes]
    return [time for row in rows for time in (row.p50_ms, row.p95_ms) if time is not None]


def _pale(color: str) -> str:
    """Returns a colour that is told apart in legends too, which ignore a bar's opacity."""
    red, green, blue = bytes.fromhex(color[1:])
    return f"rgba({red}, {green}, {blue}, 0.45)"


def _level(height: float) -> dict[str, Any]:
    line = {"width": 1, "dash": "dot", "color": _GRAY}
    return {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": height, "y1": height, "line": line}
