"""Everything that a GPU has to show, in one call: recorded reports for `docs/measurements/`, and the GPU tests.

    PYTHONPATH=runtime:. python benchmarks/measure.py OUT [--only captures checks …] [--minutes 9]

Each step is a command of its own with a time limit; what one step breaks does not stop the next. The last lines are
a short table. Reports that came out whole are copied by hand to `docs/measurements/`; then `python
benchmarks/tables.py` makes the README's tables from them.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MODELS = ("qwen3-0.6b", "qwen3-8b", "qwen3-30b-a3b", "nemotron-h-8b")
PROFILED = ("qwen3-0.6b", "qwen3-8b")
MODES = "eager,full,breakable,compiled,piecewise,fused"
TESTS = ("behaviours", "gpu", "recovery", "checking", "diagnose", "hazards", "fuzz")


@dataclass(frozen=True)
class Step:
    """One command, and the longest that it may take."""

    group: str
    name: str
    command: list[str]
    limit_s: int


def steps(out: Path) -> Iterator[Step]:
    """All steps, the most telling first."""
    bcg = [sys.executable, "-m", "bcg_cli"]
    for tests in TESTS:
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-m",
            "gpu",
            "-q",
            "--tb=short",
            "--show-capture=no",
            f"tests/{tests}",
        ]
        yield Step("tests", f"tests/{tests}", command, 150)
    benchmark = [
        sys.executable,
        "benchmarks/capture.py",
        "--rounds",
        "3",
        "--json",
        str(out / "benchmark-capture.json"),
    ]
    yield Step("benchmark", "benchmark-capture", benchmark, 300)
    for model in MODELS:
        yield Step(
            "captures", f"capture-{model}", [*bcg, "capture", model, "--json", f"{out}/capture-{model}.json"], 90
        )
    for model in MODELS:
        yield Step(
            "checks", f"check-{model}", [*bcg, "replay-check", model, "--json", f"{out}/check-{model}.json"], 120
        )
    for model in PROFILED:
        options = ["--tokens", "16,256,1024,4096", "--modes", MODES, "--json", f"{out}/profile-{model}.json"]
        yield Step("profiles", f"profile-{model}", [*bcg, "profile", model, *options], 300)


def run(step: Step, out: Path) -> str:
    """Run a step with its output in a file of its own; return how it ended."""
    with (out / f"{step.name.replace('/', '-')}.txt").open("w") as log:
        try:
            done = subprocess.run(step.command, stdout=log, stderr=subprocess.STDOUT, timeout=step.limit_s, check=False)
        except subprocess.TimeoutExpired:
            return f"stopped after {step.limit_s} s"
    return "ok" if done.returncode == 0 else f"exit {done.returncode}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", nargs="+", choices=("tests", "benchmark", "captures", "checks", "profiles"))
    parser.add_argument("--minutes", type=float, default=9.0, help="begin no step after this time")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    rows = []
    for step in steps(options.out):
        if options.only and step.group not in options.only:
            continue
        begun = time.monotonic()
        late = begun - started > options.minutes * 60
        rows.append(
            (step.name, "not begun: no time left" if late else run(step, options.out), time.monotonic() - begun)
        )
    for name, ending, seconds in rows:
        print(f"{name:28} {seconds:6.1f} s  {ending}")


if __name__ == "__main__":
    main()
