"""What the driver says about a failed capture reaches the card."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

MODEL = """
import torch
from torch import nn


@torch.library.custom_op("bcg_tests_driver_log::synchronize_and_double", mutates_args=())
def synchronize_and_double(x: torch.Tensor) -> torch.Tensor:
    torch.cuda.synchronize()
    return x * 2


@synchronize_and_double.register_fake
def _(x):
    return torch.empty_like(x)


class Inner(nn.Module):
    def forward(self, x):
        return synchronize_and_double(x)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(8, 4)
        self.inner = Inner()

    def forward(self, input_ids):
        return self.inner(self.embedding(input_ids))
"""


@pytest.mark.parametrize("users", [False, True], ids=["our own file", "the user's file"])
def test_the_card_says_what_the_driver_said(tmp_path: Path, users: bool) -> None:
    path, log = tmp_path / "model.py", tmp_path / "driver.log"
    path.write_text(MODEL)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    environment.pop("CUDA_LOG_FILE", None)
    if users:
        environment["CUDA_LOG_FILE"] = str(log)
    words = ["capture", f"{path}:Model", "--no-auto-break", "--device", "cuda", "--tokens", "4"]
    done = subprocess.run(
        [sys.executable, "-m", "bcg_cli", *words],
        capture_output=True,
        text=True,
        timeout=250,
        env=environment,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    card = done.stderr.partition("\nerror: ")[0]
    said = re.search(r"^ *driver +(\S.*)$", card, re.MULTILINE)
    assert said is not None, done.stderr
    # A line of the driver's log, not the "CUDA error" line of torch's exception.
    assert re.match(r"\[[\d:.]+\]\[\d+\]", said[1]), done.stderr
    assert log.exists() == users
