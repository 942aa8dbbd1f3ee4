"""Runs of several processes, as a user starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Run:
    """What a run left behind."""

    code: int
    out: str
    err: str
    report: Path


def environment_of_sources() -> dict[str, str]:
    """Return this process's environment, in which others find the sources that are tested."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT / "runtime"), str(ROOT), *sys.path))}


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """The host device, and GPUs where there is one for each of two ranks."""
    if request.param == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    return str(request.param)


@pytest.fixture
def run_ranks(tmp_path: Path, device: str) -> Callable[..., Run]:
    """Runs ``bcg`` with these words on a device, and sees that no process is left behind."""

    def run(*words: object, torchrun: int | None = None) -> Run:
        report = tmp_path / "report.json"
        module = [] if torchrun is None else ["torch.distributed.run", "--nproc-per-node", str(torchrun), "-m"]
        command = [
            sys.executable,
            "-m",
            *module,
            "bcg_cli",
            *map(str, words),
            "--device",
            device,
            "--json",
            str(report),
        ]
        done = subprocess.run(command, cwd=tmp_path, env=environment_of_sources(), capture_output=True, text=True)
        assert _processes_with(str(report)) == []
        return Run(done.returncode, done.stdout, done.stderr, report)

    return run


def _processes_with(word: str) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if word.encode() in arguments:
            found.append(int(entry.name))
    return found
