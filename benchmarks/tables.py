"""The tables of the README and of two pages of docs, made from the recorded reports under `docs/measurements/`.

    python benchmarks/tables.py          # rewrites them between their markers
    python benchmarks/tables.py --check  # exits with 1 if one is not what the reports say

A table stands between ``<!-- table: NAME -->`` and ``<!-- end -->``; NAME is a function of this file.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MEASUREMENTS = ROOT / "docs" / "measurements"
PAGES = (ROOT / "README.md", ROOT / "docs" / "results.md", ROOT / "docs" / "performance.md")
MARKED = re.compile(r"<!-- table: (\w+) -->\n.*?<!-- end -->", re.DOTALL)
MIB = 2**20


def reports(name: str) -> list[dict[str, Any]]:
    """The recorded reports in files of that name, the smallest model first."""
    loaded = [json.loads(path.read_text()) for path in sorted(MEASUREMENTS.glob(f"{name}-*.json"))]
    return sorted(loaded, key=lambda report: report["model"]["num_parameters"])


def gpu(report: dict[str, Any]) -> str:
    """Short name of the GPU that a report was made on."""
    name: str = report["environment"]["device"]
    return name.removeprefix("NVIDIA ").partition(" ")[0]


def markdown(header: str, rows: Iterable[Iterable[object]]) -> str:
    columns = header.split("|")
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    lines += [f"| {' | '.join(str(cell) for cell in row)} |" for row in rows]
    return "\n".join(lines)


def captures() -> str:
    rows = []
    for report in reports("capture"):
        largest, totals = report["buckets"][0], report["totals"]
        rows.append(
            (
                report["model"]["name"],
                gpu(report),
                f"{totals['num_captured']} to {largest['tokens']:,}",
                f"{largest['num_segments']} / {largest['num_breaks']}",
                f"{largest['num_kernels']:,}",
                f"{totals['capture_ms'] / 1e3:.2f} s",
                f"{totals['pool_bytes'] / MIB:,.0f} MiB",
                f"{totals['eager_peak_bytes'] / MIB:,.0f} MiB",
            )
        )
    return markdown("model|GPU|buckets|segments / breaks|kernels|captured in|pool|eager's peak", rows)


def modes() -> str:
    """Each mode of each profiled model: same results, speed at the smallest and largest bucket, memory, start-up."""
    rows = []
    for report in reports("profile"):
        small, large = report["buckets"][0], report["buckets"][-1]
        for mode in report["modes"]:
            first, last = (_of(bucket, mode["mode"]) for bucket in (small, large))
            name = f"{report['model']['name']}, {gpu(report)}"
            if mode["status"] != "measured":
                rows.append((name, mode["mode"], f"{mode['status']}: {mode['reason']}", "–", "–", "–", "–"))
                continue
            found = (_of(bucket, mode["mode"]) for bucket in report["buckets"])
            measured = [row for row in found if row["p50_ms"] is not None]
            errors = [row["relative_error"] for row in measured if row["relative_error"] is not None]
            same = "bitwise" if all(row["bitwise"] for row in measured) else f"within {max(errors):.1e}"
            rows.append(
                (
                    name,
                    mode["mode"],
                    same,
                    f"{_thousands(first['tokens_per_s'])} at {small['tokens']:,}",
                    f"{_thousands(last['tokens_per_s'])} at {large['tokens']:,}",
                    f"{mode['memory_bytes'] / MIB:,.0f} MiB",
                    f"{mode['startup_s']:.1f} s",
                )
            )
    return markdown("model|mode|against eager|tokens/s|tokens/s|memory|start-up", rows)


def latencies() -> str:
    """Median step in ms of every mode at every bucket."""
    names = ("eager", "full", "breakable", "compiled", "piecewise", "fused")
    rows = []
    for report in reports("profile"):
        for bucket in report["buckets"]:
            times = {row["mode"]: row["p50_ms"] for row in bucket["modes"]}
            cells = ["–" if times.get(name) is None else f"{times[name]:.2f}" for name in names]
            rows.append((report["model"]["name"], gpu(report), _thousands(bucket["tokens"]), *cells))
    return markdown("|".join(("model", "GPU", "tokens", *names)), rows)


RATIOS = (("breakable", "full"), ("fused", "compiled"), ("fused", "piecewise"), ("breakable", "eager"))


def ratios() -> str:
    """Step of one mode over that of another, from the smallest to the largest over the buckets."""
    rows = []
    for report in reports("profile"):
        cells = []
        for mode, other in RATIOS:
            found = sorted(ratio for bucket in report["buckets"] if (ratio := _ratio(bucket, mode, other)) is not None)
            cells.append(f"{found[0]:.3f} to {found[-1]:.3f}" if found else "–")
        tokens = [_thousands(bucket["tokens"]) for bucket in report["buckets"]]
        span = "; ".join(tokens) if len(tokens) == 2 else f"{len(tokens)} from {tokens[0]} to {tokens[-1]}"
        rows.append((report["model"]["name"], gpu(report), span, *cells))
    return markdown("|".join(("model", "GPU", "tokens", *(f"{mode} ÷ {other}" for mode, other in RATIOS))), rows)


def buckets() -> str:
    """Step of `breakable` over that of `full`, the least, the middle and the most of all buckets in a range."""
    rows = []
    for report in reports("buckets"):
        found = {bucket["tokens"]: _ratio(bucket, "breakable", "full") for bucket in report["buckets"]}
        for low, high in ((16, 256), (288, 1024), (1280, 4096)):
            part = [ratio for tokens, ratio in found.items() if low <= tokens <= high]
            span = f"{low:,} to {high:,}"
            cells = (f"{ratio:.3f}" for ratio in (min(part), statistics.median(part), max(part)))
            rows.append((report["model"]["name"], gpu(report), span, len(part), *cells))
    return markdown("model|GPU|tokens|buckets|least|median|most", rows)


def ranks() -> str:
    """Median step in ms of a model that is sharded over several GPUs."""
    rows = []
    for report in reports("ranks-profile"):
        for bucket in report["buckets"]:
            eager, full, breakable = (_of(bucket, mode)["p50_ms"] for mode in ("eager", "full", "breakable"))
            times = (f"{time:.2f}" for time in (eager, full, breakable))
            row = (report["model"]["name"], len(report["ranks"]), _thousands(bucket["tokens"]), *times)
            gain = _of(bucket, "breakable")["speedup_vs_eager"]
            rows.append((*row, f"{_ratio(bucket, 'breakable', 'full'):.3f}", f"{gain:.2f}"))
    return markdown("model|GPUs|tokens|eager|full|breakable|breakable ÷ full|eager ÷ breakable", rows)


def _ratio(bucket: dict[str, Any], mode: str, other: str) -> Any:
    """Return the step of a mode over that of another, as the report has it; None if one was not measured."""
    speedup = _of(bucket, mode).get(f"speedup_vs_{other}")
    return None if speedup is None else 1 / speedup


def _of(bucket: dict[str, Any], mode: str) -> dict[str, Any]:
    return next((row for row in bucket["modes"] if row["mode"] == mode), {"p50_ms": None})


def _thousands(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


FIGURES = {
    "ready_s": "until each bucket was served once",
    "whole_s": "captures and warm-ups",
    "capture_s": "captures alone",
    "memory_mib": "memory",
}


def rival() -> str:
    rows = []
    for result in json.loads((MEASUREMENTS / "benchmark-capture.json").read_text())["results"]:
        replays = result["replays"]
        ratios = [row["ratio"] for row in replays]
        equal = all(row["bitwise_equal_to_each_other_and_eager"] for row in replays)
        for name, what in FIGURES.items():
            ours, theirs = result["medians"]["ours"][name], result["medians"]["theirs"][name]
            unit = "MiB" if name == "memory_mib" else "s"
            rows.append(
                (result["model"], what, f"{ours:.2f} {unit}", f"{theirs:.2f} {unit}", f"{result['ratios'][name]:.2f}")
            )
        words = "bitwise equal" if equal else "not equal"
        span = f"{min(ratios):.3f} to {max(ratios):.3f}"
        rows.append((result["model"], f"replay, {len(replays)} sizes", words, words, span))
    return markdown("model|what|bcg|breakable-cuda-graphs 0.1.0|ratio", rows)


def curve() -> str:
    """What more buckets cost one model: at capture as many times as there are segments, at replay nothing."""
    rows = []
    for row in json.loads((MEASUREMENTS / "curve-qwen3-0.6b-h200.json").read_text())["rows"]:
        milliseconds = row["capture_s"] * 1e3
        counts = (_thousands(row["num_buckets"]), _thousands(row["num_segments"]))
        each = f"{milliseconds / row['num_segments']:.2f} ms"
        memory = (f"{row['pool_mib']:.0f} MiB", f"{row['driver_mib'] / row['num_segments']:.2f} MiB")
        rows.append((*counts, f"{row['capture_s']:.2f} s", each, *memory, f"{row['replay_ms']:.2f} ms"))
    return markdown("buckets|segments|captures|a segment|pool|driver, a segment|replay of 64 tokens", rows)


def plans() -> str:
    """The pool that a dry run plans against the one that a GPU took, a column a bucket."""
    rows: dict[str, dict[int, str]] = {}
    for row in json.loads((MEASUREMENTS / "plan-h100.json").read_text())["rows"]:
        cells = rows.setdefault(row["model"], {})
        cells[row["tokens"]] = f"{row['planned_mib']:.0f} / {row['measured_mib']:.0f}"
    tokens = sorted({bucket for cells in rows.values() for bucket in cells}, reverse=True)
    body = [[model, *(cells[bucket] for bucket in tokens)] for model, cells in rows.items()]
    return markdown("|".join(["model", *map(_thousands, tokens)]), body)


def rewritten(text: str) -> str:
    def table(match: re.Match[str]) -> str:
        name = match.group(1)
        return f"<!-- table: {name} -->\n{TABLES[name]()}\n<!-- end -->"

    return MARKED.sub(table, text)


TABLES = {
    "buckets": buckets,
    "captures": captures,
    "curve": curve,
    "latencies": latencies,
    "modes": modes,
    "plans": plans,
    "ranks": ranks,
    "ratios": ratios,
    "rival": rival,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    pages = {page: rewritten(page.read_text()) for page in PAGES}
    if options.check:
        sys.exit(any(wanted != page.read_text() for page, wanted in pages.items()))
    for page, wanted in pages.items():
        page.write_text(wanted)


if __name__ == "__main__":
    main()
