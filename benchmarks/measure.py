"""Everything that a GPU has to show, in a few calls: the GPU tests, and recorded reports for `docs/measurements/`.

    PYTHONPATH=runtime:. python benchmarks/measure.py OUT [--only tests captures …] [--minutes 9]

Each step is a command of its own with a time limit; what one step breaks does not stop the next. Tests that measure
no time and read no memory but their own run side by side. At its limit a step is interrupted as by Ctrl-C, so that a
profile keeps what it has measured. A line is printed as each step ends; the exit code is 1 if one did not end well.
Reports that came out whole are copied by hand to `docs/measurements/`; then `python benchmarks/tables.py` makes the
README's tables from them.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bcg.buckets import engine_ladder

GRACE_S = 30
MEMORY_TEST = "tests/behaviours/test_streams_and_pool.py"
SIDE_BY_SIDE = {
    "hazards": ["tests/hazards", "-k", "not healthy"],
    "healthy-twins": ["tests/hazards", "-k", "healthy"],
    "checking": ["tests/checking"],
    "diagnose": ["tests/diagnose", "tests/unit"],
    "behaviours": ["tests/behaviours", "tests/gpu/test_feed.py", "--ignore", MEMORY_TEST],
    "fuzz": ["tests/fuzz", "--fuzz-examples", "2000"],
    "recovery": ["tests/recovery"],
    "driver-log": ["tests/gpu/test_driver_log.py", "tests/gpu/test_plan.py"],
    "attention": ["tests/gpu/test_attention.py", "tests/gpu/test_cudnn_attention.py"],
    "check": ["tests/gpu/test_check.py"],
    "profile": ["tests/gpu/test_profile.py"],
}
ALONE = {
    "streams-and-pool": [MEMORY_TEST],
    "loading": ["tests/gpu/test_loading.py"],
    "models": ["tests/gpu/test_models.py"],
    "ranks": ["tests/gpu/test_ranks.py"],
}
"""Tests that read the memory of the whole GPU, or fill it."""
CAPTURED = ("qwen3-0.6b", "qwen3-8b", "qwen3-30b-a3b", "nemotron-h-8b")
PROFILED = {
    "qwen3-8b": ["--tokens", "16,64,256,1024,4096", "--rounds", "7"],
    "qwen3-0.6b": ["--tokens", "16,32,64,128,256,512,1024,2048,4096", "--rounds", "7"],
    "qwen3-30b-a3b": ["--tokens", "16,1024", "--rounds", "5"],
    "nemotron-h-8b": ["--tokens", "16,1024", "--rounds", "5"],
    "qwen3-32b": ["--tokens", "16,1024", "--rounds", "5"],
}
"""The compiler's two modes take 26 to 36 s for each token count of the 0.6B and 30 to 50 s for each of the 8B; a
profile takes 8 to 13 minutes (H100 or H200). NemotronH-8B is recorded with mamba-ssm and causal-conv1d installed."""
LADDERS = {"qwen3-0.6b": "13", "qwen3-8b": "5"}
"""Models whose `breakable` is compared with `full` at every bucket, and in how many rounds: 3 and 4 minutes."""


@dataclass(frozen=True)
class Step:
    """One command, and the longest that it may take."""

    group: str
    name: str
    command: list[str]
    limit_s: int


def steps(out: Path) -> Iterator[Step]:
    """All steps, the most telling first; those of one group follow each other."""
    pytest = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "--tb=short", "--show-capture=no"]
    bcg = [sys.executable, "-m", "bcg_cli"]
    for name, words in SIDE_BY_SIDE.items():
        yield Step("tests", name, [*pytest, *words], 240)
    for name, words in ALONE.items():
        yield Step("alone", name, [*pytest, *words], 240)
    for model in CAPTURED:
        path = str(out / f"capture-{model}.json")
        yield Step("captures", f"capture-{model}", [*bcg, "capture", model, "--json", path], 60)
    path = str(out / "check-qwen3-0.6b.json")
    yield Step("captures", "check-qwen3-0.6b", [*bcg, "replay-check", "qwen3-0.6b", "--json", path], 60)
    for name, limit_s in {"capture": 200, "curve": 60}.items():
        path = str(out / f"benchmark-{name}.json")
        yield Step(
            "benchmarks", f"benchmark-{name}", [sys.executable, f"benchmarks/{name}.py", "--json", path], limit_s
        )
    yield Step("benchmarks", "ranges", [sys.executable, "benchmarks/ranges.py"], 60)
    path = str(out / "startup-qwen3-8b-fused.json")
    yield Step("benchmarks", "startup", [sys.executable, "benchmarks/startup.py", "--json", path], 70)
    path = str(out / "plan.json")
    yield Step("benchmarks", "plan", [sys.executable, "-m", "benchmarks.plan", "--measure", "--json", path], 90)
    path = str(out / "sweep.json")
    sweep = [sys.executable, "-m", "benchmarks.sweep", "--device", "cuda", "--jobs", "8", "--json", path]
    yield Step("sweep", "sweep", sweep, 300)
    ladder = ",".join(str(tokens) for tokens in engine_ladder() if tokens >= 16)
    for model, rounds in LADDERS.items():
        words = ["--modes", "full,breakable", "--tokens", ladder, "--rounds", rounds]
        path = str(out / f"buckets-{model}.json")
        yield Step("ladders", f"buckets-{model}", [*bcg, "profile", model, *words, "--json", path], 300)
    for model, words in PROFILED.items():
        path = str(out / f"profile-{model}.json")
        yield Step("profiles", f"profile-{model}", [*bcg, "profile", model, *words, "--json", path], 620)


def run(together: Sequence[Step], out: Path, environment: dict[str, str]) -> bool:
    """Run steps side by side, each with its output in a file of its own; say how each ended, return if all did well."""
    begun = time.monotonic()
    running, endings = [], []
    for step in together:
        with (out / f"{step.name}.txt").open("w") as log:
            running.append(
                (step, subprocess.Popen(step.command, stdout=log, stderr=subprocess.STDOUT, env=environment))
            )
    for step, process in running:
        ending = _ending(process, step.limit_s - (time.monotonic() - begun))
        endings.append(ending)
        last = (out / f"{step.name}.txt").read_text(errors="replace").strip().rpartition("\n")[2]
        print(f"{step.name:24} {time.monotonic() - begun:6.1f} s  {ending:20} {last[:100]}", flush=True)
    return all(ending == "ok" for ending in endings)


def _ending(process: subprocess.Popen[bytes], limit_s: float) -> str:
    try:
        code = process.wait(max(limit_s, 0))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
        return "interrupted"
    return "ok" if code == 0 else f"exit {code}"


def main() -> None:
    groups = list(dict.fromkeys(step.group for step in steps(Path())))
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"steps or groups ({', '.join(groups)})")
    parser.add_argument("--minutes", type=float, default=9.0, help="begin no step after this time")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    started, is_well = time.monotonic(), True
    chosen = [step for step in steps(options.out) if not options.only or {step.group, step.name} & set(options.only)]
    with tempfile.TemporaryDirectory() as bytecode:
        # Where bytecode can't be kept beside its source, every process would compile all of torch anew.
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": os.environ.get("PYTHONPYCACHEPREFIX", bytecode)}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        side_by_side = [step for step in chosen if step.group == "tests"]
        for together in ([side_by_side] if side_by_side else []) + [[step] for step in chosen if step.group != "tests"]:
            if time.monotonic() - started > options.minutes * 60:
                print(f"not begun, no time left: {', '.join(step.name for step in together)}", flush=True)
            else:
                is_well = run(together, options.out, environment) and is_well
    sys.exit(not is_well)


if __name__ == "__main__":
    main()
