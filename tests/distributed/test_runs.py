"""Whole runs of two processes, gloo or NCCL: sharded models replay right; what goes wrong on one rank ends the run."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bcg.report import CaptureReport, CheckReport, ProfileReport, read_report
from bcg_cli.views.kinds import html_page
from tests.distributed.conftest import Run, environment_of_sources

PLANTED = Path(__file__).with_name("planted.py")
TIMEOUT_S = {"cpu": 4, "cuda": 15}
"""A first collective on GPUs takes seconds, in which a rank makes no progress."""

Ranks = Callable[..., Run]


@pytest.mark.parametrize(
    ("model", "options", "torchrun"),
    [("qwen3-tiny", ("--tp", "2"), None), ("qwen3-moe-tiny", (), 2), ("qwen3-moe-tiny", ("--tp", "2", "--ep"), None)],
    ids=["tensor", "tensor-moe-torchrun", "expert"],
)
def test_a_sharded_model_is_captured_and_replays_as_eager_and_as_one_process(
    run_ranks: Ranks, device: str, model: str, options: tuple[str, ...], torchrun: int | None
) -> None:
    run = run_ranks("replay-check", model, "--tokens", "16,32", "--rounds", 1, *options, torchrun=torchrun)
    assert run.code == 0, run.err
    assert run.out.count("match (bitwise)") == 4
    report = read_report(run.report)
    assert isinstance(report, CheckReport)
    assert report.verdict == "match"
    assert [(row.rank, row.verdict, row.bitwise) for row in report.ranks] == [(0, "match", True), (1, "match", True)]
    assert all(row.num_replays > 0 for row in report.ranks)
    assert report.assembled is not None
    assert report.assembled.verdict == "match"
    assert report.assembled.num_batches == 2
    assert 0 < report.assembled.mean_rel_error < {"cpu": 1e-5, "cuda": 0.02}[device]  # float32, bfloat16
    page = html_page(report)
    assert page.count("match (bitwise)") >= 4 and "against one process: match" in page


def test_a_sharded_model_is_profiled_and_traced(run_ranks: Ranks, device: str, tmp_path: Path) -> None:
    words = ("--tokens", 16, "--rounds", 1, "--modes", "full,breakable", "--tp", 2)
    run = run_ranks("profile", "qwen3-tiny", *words, "--trace", "trace.json")
    assert run.code == 0, run.err
    assert "trace written to trace.json" in run.err
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    named = [event for event in events if event.get("name") == "breakable: 16 tokens"]
    assert [event["cat"] for event in named if event["cat"] != "gpu_user_annotation"] == ["user_annotation"]
    report = read_report(run.report)
    assert isinstance(report, ProfileReport)
    full = {"cpu": "not available", "cuda": "measured"}[device]  # gloo's collectives can't be captured
    assert [row.status for row in report.buckets[0].modes] == [full, "measured"]


def capture_planted(run_ranks: Ranks, device: str, factory: str, *words: object, torchrun: int | None = None) -> Run:
    options = ("--tokens", "64,32", "--rank-timeout", TIMEOUT_S[device], *words)
    return run_ranks("capture", f"{PLANTED}:{factory}", *options, torchrun=torchrun)


def test_all_ranks_drop_a_bucket_that_one_of_them_fails(run_ranks: Ranks, device: str) -> None:
    run = capture_planted(run_ranks, device, "runs_out_of_memory", "--tp", 2)
    assert run.code == 0, run.err
    report = read_report(run.report)
    assert isinstance(report, CaptureReport)
    assert [(bucket.tokens, bucket.status) for bucket in report.buckets] == [(64, "captured"), (32, "out of memory")]
    assert report.buckets[1].error == "rank 1: planted on rank 1"
    num_breaks = {"cpu": 2, "cuda": 0}[device]  # NCCL's collectives are captured
    expected = [(rank, num_breaks + 1, num_breaks) for rank in (0, 1)]
    assert [(row.rank, row.num_segments, row.num_breaks) for row in report.ranks] == expected
    assert [row.source for row in report.breaks] == ["collective"] * num_breaks
    assert [row.module for row in report.breaks] == ["layers.0", "layers.1"][:num_breaks]
    assert [warning.code for warning in report.warnings] == ["weights-not-sharded"]
    assert "<h2>Ranks</h2>" in html_page(report)
    assert all(row.pool_bytes > 0 and row.weight_bytes == 4 * (32 * 8 + 2 * 8 * 8) for row in report.ranks)


def test_a_memory_budget_is_estimated_before_the_ranks_meet(run_ranks: Ranks, tmp_path: Path) -> None:
    (tmp_path / "steps").write_text("5\n6\n17\n")
    run = run_ranks("capture", "qwen3-tiny", "--workload", tmp_path / "steps", "--memory-budget", "1GiB", "--tp", 2)
    assert run.code == 0, run.err
    report = read_report(run.report)
    assert isinstance(report, CaptureReport)
    assert [bucket.tokens for bucket in report.buckets] == report.workload[0].buckets[::-1] == [17, 6, 5]


def test_an_extra_break_on_one_rank_is_named_and_does_not_hang(run_ranks: Ranks, device: str) -> None:
    run = capture_planted(run_ranks, device, "breaks_once_more", "--tp", 2)
    assert run.code == 1
    one, other = {
        "cpu": ("break break_graph in module 'Model'", "break c10d.allreduce_.default in module 'layers.1'"),
        "cuda": (
            "segment with c10d.allreduce_.default",
            "segment with c10d.allreduce_.default, c10d.allreduce_.default",
        ),
    }[device]
    step = {"cpu": "step 3", "cuda": "step 1"}[device]
    assert f"ranks differ (hazard S19): rank 1 is at {f'{step}: {one}'!r}, rank 0 at {f'{step}: {other}'!r}" in run.err
    assert run.out == ""


def test_a_layer_that_one_rank_lacks_is_named_while_loading(run_ranks: Ranks, device: str) -> None:
    run = capture_planted(run_ranks, device, "lacks_a_layer", "--tp", 2)
    assert run.code == 1
    assert "ranks differ (hazard S19): rank 1 is at 'the end of running 8 tokens', " in run.err
    assert "rank 0 at 'c10d.allreduce_.default while running 8 tokens'\n" in run.err


def test_a_rank_that_raises_ends_the_run_with_its_own_error_first(run_ranks: Ranks, device: str) -> None:
    """Under torchrun the rank itself tells it; where bcg started the ranks, as in the tests below, bcg does."""
    run = capture_planted(run_ranks, device, "raises", torchrun=2)
    assert run.code == 1
    error, hint = [line for line in run.err.splitlines() if line.startswith(("error:", "hint:"))]
    assert error == "error: rank 1: bucket of 32 tokens: ValueError: planted on rank 1"
    log = Path(hint.rsplit("the log of rank 1 is ", 1)[1])
    assert "ValueError: planted on rank 1" in log.read_text()
    assert not run.report.exists()


def test_a_rank_that_is_killed_ends_the_run(run_ranks: Ranks, device: str) -> None:
    run = capture_planted(run_ranks, device, "is_killed", "--tp", 2)
    assert run.code == 1
    assert run.err.startswith("error: rank 1: was killed by SIGKILL\n")


def test_a_rank_that_stands_still_ends_the_run_within_the_timeout(run_ranks: Ranks, device: str) -> None:
    run = capture_planted(run_ranks, device, "sleeps", "--tp", 2)
    assert run.code == 1
    assert run.err.startswith(f"error: rank 1: no progress for {TIMEOUT_S[device]} s since ")
    assert "planted.py:" in run.err.splitlines()[0]


def test_a_rank_that_leaves_too_early_is_named_with_its_log(run_ranks: Ranks, device: str) -> None:
    run = capture_planted(run_ranks, device, "leaves", "--tp", 2)
    assert run.code == 1
    assert run.err.startswith("error: rank 1: ended with exit code 0 before the run was over\n")
    assert Path(run.err.strip().rsplit("the log of rank 1 is ", 1)[1]).is_file()


def test_an_interrupted_run_leaves_nothing_behind(tmp_path: Path, device: str) -> None:
    words = ["capture", f"{PLANTED}:sleeps", "--tp", "2", "--tokens", "64,32", "--device", device]
    environment = {**environment_of_sources(), "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, "-m", "bcg_cli", *words], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    with process:
        while not list(tmp_path.glob("bcg-ranks-*/rank-1.log")):
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, b"")
    assert b"interrupted\n" in err
    assert list(tmp_path.glob("bcg-*")) == []
