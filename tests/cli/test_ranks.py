"""Words about processes: refused before any is started, and planned without any."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bcg.report import PlanReport, read_report
from bcg.words import TargetWords
from bcg_cli.dry_run import ShapeWords, estimated_memory


def test_experts_need_a_number_of_processes(bcg: Any) -> None:
    done = bcg("capture", "--ep")
    assert done.code == 2
    assert done.err == "error: --ep shards experts over processes\nhint: say over how many, with --tp N\n"


def test_another_number_than_the_launchers_is_refused(bcg: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "RANK": "0",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "4",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "1",
        "TORCHELASTIC_RUN_ID": "test",
    }.items():
        monkeypatch.setenv(name, value)
    done = bcg("capture", "--tp", 2)
    assert done.code == 2
    assert done.err.startswith("error: --tp 2 in a run of 4 ranks\n")


def test_a_dry_run_plans_the_memory_of_each_rank(bcg: Any, tmp_path: Path) -> None:
    words = ("capture", "qwen3-moe-tiny", "--dry-run", "--tokens", "16,32", "--json")
    plans = []
    for name, options in (("whole", ()), ("tensor", ("--tp", 2)), ("expert", ("--tp", 2, "--ep"))):
        done = bcg(*words, tmp_path / name, *options)
        assert done.code == 0, done.err
        assert ("of each of 2 ranks" in done.out) == bool(options)
        report = read_report(tmp_path / name)
        assert isinstance(report, PlanReport)
        plans.append(report)
    whole, *sharded = plans
    for report in sharded:
        assert whole.totals.weight_bytes / 2 < report.totals.weight_bytes < whole.totals.weight_bytes * 0.6
        assert {row.source for row in report.breaks} == {"attention"}
        assert len(report.segments) == len(whole.segments)
        assert report.warnings == []


def test_a_memory_budget_is_that_of_each_rank() -> None:
    pools = []
    for tp in (None, 2):
        with estimated_memory(ShapeWords(TargetWords("qwen3-tiny"), tp=tp)) as memory:
            pools.append(memory.pool_bytes(4096))
    assert pools[1] < 0.8 * pools[0]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("qwen3-moe-tiny", "every rank holds and computes the whole attention of qwen3-moe-tiny"),
        ("nemotron-h-tiny", "only 18 % of the weights of nemotron-h-tiny are sharded over 4 ranks"),
    ],
)
def test_a_dry_run_says_what_every_rank_holds_whole(bcg: Any, tmp_path: Path, model: str, message: str) -> None:
    done = bcg("capture", model, "--dry-run", "--tokens", 16, "--tp", 4, "--html", tmp_path / "plan.html")
    if model == "nemotron-h-tiny" and "has no tensor-parallel plan for NemotronHModel" in done.err:
        pytest.skip("this version of transformers has no tensor-parallel plan for it")
    assert done.code == 0, done.err
    assert f"warning: {message}\n" in done.out
    assert message in (tmp_path / "plan.html").read_text()
