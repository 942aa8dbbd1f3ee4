"""Sharded models on one machine, in one call: each checked, then profiled in every mode.

    python benchmarks/multi_gpu.py --gpus 2 --out OUT        the rows for 2 GPUs; also 1, 4 and 8
    python benchmarks/multi_gpu.py --gpus 0 --out OUT        tiny models over 2 processes on CPUs, to try the script

Checks come first, profiles after them, each as a command of its own. What is done lies in OUT as a report at once;
when the budget is spent, the command that runs is ended and the rest is listed as not run. Leave NVLink as it is.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from bcg.errors import ReportError
from bcg.report import CheckReport, PlanReport, ProfileReport, read_report
from bcg_cli.views.words import format_error

BUCKETS = "16,32,64,128,256,512,1024,2048,4096"
MODES = "eager,piecewise,compiled,breakable,fused"
KINDS = ("plan", "check", "profile")


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    model: str
    tp: int
    ep: bool = False

    @property
    def name(self) -> str:
        return f"{self.model}-tp{self.tp}{'-ep' if self.ep else ''}"

    @property
    def words(self) -> list[str]:
        return [self.model, "--tp", str(self.tp), *(["--ep"] if self.ep else [])]


ROWS = {
    0: (Row("qwen3-tiny", 2), Row("qwen3-moe-tiny", 2), Row("qwen3-moe-tiny", 2, ep=True)),
    1: (Row("qwen3-0.6b", 1), Row("qwen3-8b", 1), Row("qwen3-30b-a3b", 1, ep=True)),
    2: (
        Row("qwen3-8b", 2),
        Row("qwen3-30b-a3b", 2),
        Row("qwen3-30b-a3b", 2, ep=True),
        Row("nemotron-h-8b", 2),
    ),
    4: (Row("qwen3-32b", 4),),
    8: (Row("qwen3-235b-a22b", 8), Row("qwen3-235b-a22b", 8, ep=True)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpus", type=int, choices=sorted(ROWS), required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for the reports")
    parser.add_argument("--rows", nargs="*", help="names of rows, such as qwen3-8b-tp2; all by default")
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=list(KINDS))
    parser.add_argument("--budget", type=float, default=570, help="seconds in all")
    parser.add_argument("--tokens", help="buckets of the checks")
    parser.add_argument("--profile-tokens", help="buckets of the profiles; compilers take half a minute for each")
    parser.add_argument("--modes", default=MODES)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    on_host = given.gpus == 0
    device = ["--device", "cpu" if on_host else "cuda"]
    tokens = given.tokens or ("16,64" if on_host else BUCKETS)
    profiled = given.profile_tokens or ("16,64" if on_host else "16,512,4096")
    modes = "eager,breakable" if on_host else given.modes
    rows = [row for row in ROWS[given.gpus] if not given.rows or row.name in given.rows]
    commands = {
        "plan": lambda row: ["capture", *row.words, "--dry-run", "--tokens", tokens],
        "check": lambda row: ["replay-check", *row.words, *device, "--tokens", tokens, "--rounds", "1"],
        "profile": lambda row: [
            *("profile", *row.words, *device, "--tokens", profiled, "--modes", modes),
            *("--rounds", str(given.rounds)),
        ],
    }
    end = time.monotonic() + given.budget
    for kind in given.kinds:
        for row in rows:
            report = given.out / f"{row.name}.{kind}.json"
            outcome = run([*commands[kind](row), "--json", str(report)], end, given.out / f"{row.name}.{kind}.log")
            print(f"{row.name:28} {kind:8} {outcome}", flush=True)
    print()
    for row in rows:
        print(*lines_of(row, given.out), sep="\n")


def run(words: list[str], end: float, log: Path) -> str:
    """Run one command until it ends, or the time is up; return in words how it went."""
    started = time.monotonic()
    if started >= end:
        return "not run: no time left"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "bcg_cli", *words], stdout=output, stderr=output, start_new_session=True
        )
        try:
            code = process.wait(end - started)
        except subprocess.TimeoutExpired:
            end_group(process)
            return "ended: no time left"
    seconds = f"{time.monotonic() - started:.0f} s"
    errors = [line for line in log.read_text(errors="replace").splitlines() if line.startswith("error:")]
    return f"{seconds}, exit code {code}" + (f": {errors[0]}" if errors else "")


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a command and the processes that it started; the ranks notice that their launcher is gone."""
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def lines_of(row: Row, folder: Path) -> list[str]:
    """Return what the reports of a row say, one line a fact."""
    lines = [row.name]
    for kind in KINDS:
        try:
            report = read_report(folder / f"{row.name}.{kind}.json")
        except ReportError:
            continue
        if isinstance(report, PlanReport):
            lines.append(f"  planned: {report.totals.needed_bytes / 2**30:.1f} GiB on each rank")
        elif isinstance(report, CheckReport):
            whole = report.assembled
            told = "not compared"
            if whole is not None:
                told = f"{whole.verdict}, mean difference {format_error(whole.mean_rel_error)}"
            ranks = ", ".join(f"{one.verdict}{' (bitwise)' if one.bitwise else ''}" for one in report.ranks)
            lines.append(f"  check: {report.verdict}; ranks {ranks}; against one process: {told}")
        elif isinstance(report, ProfileReport):
            lines += profile_lines(report)
    return lines


def profile_lines(report: ProfileReport) -> list[str]:
    """Return a line a mode: tokens per second by bucket, start-up and memory."""
    lines = []
    for mode in report.modes:
        speeds = [
            f"{measured.tokens_per_s:,.0f} at {bucket.tokens}"
            for bucket in report.buckets
            for measured in bucket.modes
            if measured.mode == mode.mode and measured.tokens_per_s is not None
        ]
        told = f"{', '.join(speeds) or 'nothing measured'} tokens/s"
        lines.append(f"  {mode.mode:10} {told}, start-up {mode.startup_s:.1f} s")
    for rank in report.ranks:
        weights, pool, driver = rank.weight_bytes / 2**30, rank.pool_bytes / 2**20, rank.driver_bytes / 2**20
        lines.append(f"  rank {rank.rank}: weights {weights:.1f} GiB, pool {pool:.0f} MiB, driver {driver:.0f} MiB")
    return lines


if __name__ == "__main__":
    main()
