"""``bcg capture --dry-run`` from the command line to table, file, page and exit code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bcg.report import CaptureReport, PlanReport, read_report


def test_a_plan_from_shapes_alone(bcg: Any, tmp_path: Path) -> None:
    path, page = tmp_path / "plan.json", tmp_path / "plan.html"
    words = ("capture", "qwen3-0.6b", "--dry-run", "--gpu", "h100-80gb", "--expect-breaks", 28)
    done = bcg(*words, "--json", path, "--html", page)
    assert done.code == 0, done.err
    report = read_report(path)
    assert isinstance(report, PlanReport)
    assert [bucket.tokens for bucket in report.buckets] == [4096, 2048, 1024, 512, 256, 128, 64, 32, 16]
    assert report.totals.fits
    assert "fits h100-80gb, which has 74.51 GiB." in done.out
    assert "Map of 4096 tokens: 29 segments and 28 breaks in order" in done.out
    assert "input_ids     int64 [1, tokens]" in done.out
    assert "A dry run can't know" in done.out
    assert "<title>qwen3-0.6b: dry run</title>" in page.read_text()
    again = bcg("report", path)
    assert again.out == done.out


def test_what_does_not_fit_fails(bcg: Any) -> None:
    done = bcg("capture", "qwen3-tiny", "--dry-run", "--tokens", "8", "--gpu", "100kB")
    assert done.code == 3
    assert "doesn't fit 100kB" in done.out
    assert done.err.startswith("error: qwen3-tiny doesn't fit 100kB: it needs ")
    done = bcg("capture", "qwen3-tiny", "--dry-run", "--tokens", "8", "--expect-breaks", 5)
    assert (done.code, done.err) == (3, "error: expected 5 breaks, got 4\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--gpu", "h100-80gb"), "--gpu is about a plan"),
        (("--dry-run", "--gpu", "h300"), "unknown GPU 'h300'"),
        (("--memory-budget", "1GiB"), "--memory-budget chooses buckets for a workload, and there is none"),
    ],
)
def test_wrong_words(bcg: Any, words: tuple[str, ...], message: str) -> None:
    done = bcg("capture", *words)
    assert done.code == 2
    assert done.err.startswith(f"error: {message}\n")


def test_buckets_within_a_budget_of_memory(bcg: Any, tmp_path: Path) -> None:
    steps, path = tmp_path / "steps", tmp_path / "report.json"
    steps.write_text("5\n6\n17\n")
    words = ("capture", "--device", "cpu", "--workload", steps, "--memory-budget")
    done = bcg(*words, "8MiB", "--json", path)
    assert done.code == 0, done.err
    report = read_report(path)
    assert isinstance(report, CaptureReport)
    chosen, ladder = report.workload
    assert len(chosen.buckets) == 2
    assert chosen.memory_bytes is not None
    assert ladder.memory_bytes is not None
    assert chosen.memory_bytes <= 8 * 2**20 < ladder.memory_bytes
    done = bcg(*words, "1kB")
    assert done.code == 2
    assert "a memory budget of 1,000 bytes holds no bucket" in done.err
