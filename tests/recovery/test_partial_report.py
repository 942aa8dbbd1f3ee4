"""When a bucket fails, the report of those before it is shown and written, and the exit code is 1."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bcg.report import CaptureReport, read_report

MODELS = """
import torch
from torch import nn

from bcg import current_capture


class FailsWhenSmall(nn.Module):
    def __init__(self, fail):
        super().__init__()
        self.layer = nn.Embedding(4, 4)
        self.fail = fail

    def forward(self, input_ids):
        rows = self.layer(input_ids[0])
        if input_ids.shape[-1] == 4:
            self.fail(rows)
        return rows[None]


def make_inputs(num_tokens, device, generator):
    return {"input_ids": torch.randint(4, (1, num_tokens), device=device, generator=generator)}


def raise_error(rows):
    if current_capture() is not None:
        raise ValueError("planted")


def fault(rows):
    rows[torch.full((1,), 10**6, device=rows.device)]
    torch.cuda.synchronize()


def raises():
    return FailsWhenSmall(raise_error), make_inputs


def loses_the_device():
    return FailsWhenSmall(fault), make_inputs


"""


@pytest.fixture
def models(tmp_path: Path) -> Path:
    path = tmp_path / "models.py"
    path.write_text(MODELS)
    return path


def capture(models: Path, factory: str, tokens: str, device: str) -> tuple[subprocess.CompletedProcess[str], Path]:
    report = models.parent / "report.json"
    command = [sys.executable, "-m", "bcg_cli", "capture", f"{models}:{factory}", "--tokens", tokens]
    options = ["--device", device, "--json", str(report), "--no-auto-break"]
    return subprocess.run([*command, *options], capture_output=True, text=True, timeout=250), report


@pytest.fixture(autouse=True)
def _path_of_the_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).parents[2]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(root / "runtime"), str(root), *sys.path)))


def test_the_buckets_before_the_failed_one_are_reported(device: str, models: Path) -> None:
    done, path = capture(models, "raises", "32,16,4,2", device)
    assert done.returncode == 1, done.stderr
    assert "error: bucket of 4 tokens: ValueError: planted, in segment 0" in done.stderr
    assert "3 of" not in done.stdout and "2 of 3" in done.stdout
    report = read_report(path)
    assert isinstance(report, CaptureReport)
    assert [(row.tokens, row.status) for row in report.buckets] == [(32, "captured"), (16, "captured"), (4, "failed")]
    assert report.buckets[-1].error is not None and "planted" in report.buckets[-1].error
    assert report.map_tokens == 32 and report.map == ["segment:0"]
    assert report.totals.num_captured == 2


def test_where_nothing_was_captured_nothing_is_shown_but_the_failure_is_written(device: str, models: Path) -> None:
    done, path = capture(models, "raises", "4", device)
    assert done.returncode == 1
    assert done.stdout == ""
    report = read_report(path)
    assert isinstance(report, CaptureReport)
    assert [(row.tokens, row.status) for row in report.buckets] == [(4, "failed")]


@pytest.mark.gpu
def test_a_lost_device_is_told_plainly_and_the_report_so_far_is_there(models: Path) -> None:
    done, path = capture(models, "loses_the_device", "32,4", "cuda")
    assert done.returncode == 1, done.stderr
    assert "error: bucket of 4 tokens: " in done.stderr
    assert "hint: the error has cost this process the GPU" in done.stderr
    report = read_report(path)
    assert isinstance(report, CaptureReport)
    assert [(row.tokens, row.status) for row in report.buckets] == [(32, "captured"), (4, "failed")]
    assert report.segments[0].num_kernels
