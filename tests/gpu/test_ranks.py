"""One GPU as a run of one rank: the sharded path with NCCL gives the bits of the plain one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bcg import load_target
from bcg.report import CheckReport, read_report
from tests.gpu.one_rank import replays

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore")]

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT / "runtime"), str(ROOT), *sys.path))}


@pytest.mark.parametrize(
    ("model", "options"), [("qwen3-tiny", []), ("qwen3-moe-tiny", []), ("qwen3-moe-tiny", ["ep"]), ("qwen3-0.6b", [])]
)
def test_one_rank_replays_the_bits_of_a_plain_run(tmp_path: Path, model: str, options: list[str]) -> None:
    path = tmp_path / "outputs.pt"
    script = Path(__file__).with_name("one_rank.py")
    words = ["--nproc-per-node", "1", str(script), model, "cuda", str(path), *options]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *words], env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    plain = replays(load_target(model, device="cuda"))
    sharded = torch.load(path)
    assert len(plain) == len(sharded) > 0
    assert all(torch.isfinite(one).all() for one in plain)
    assert all(torch.equal(one, other) for one, other in zip(plain, sharded, strict=True))


def test_the_command_line_checks_one_rank_against_one_process(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    words = ["replay-check", "qwen3-tiny", "--device", "cuda", "--tp", "1", "--tokens", "16,64", "--json", str(report)]
    done = subprocess.run(
        [sys.executable, "-m", "bcg_cli", *words], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = read_report(report)
    assert isinstance(found, CheckReport)
    assert found.verdict == "match"
    assert [row.bitwise for row in found.ranks] == [True]
    assert found.assembled is not None
    assert found.assembled.mean_rel_error == 0
