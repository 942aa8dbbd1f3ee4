"""A few tiny architectures of transformers, without any break of ours: captured, or broken automatically, never wrong.

`make sweep` runs all of them.
"""

from __future__ import annotations

import pytest
import torch

from benchmarks.sweep import architectures, sweep_one


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("qwen2_moe", "captured"),
        ("deepseek_v3", "captured"),
        ("mamba2", "captured"),
        ("llama4_text", "captured"),
        ("qwen3_moe+eager", "broken"),
        ("cpmant", "broken"),
        ("xlm", "refused"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_an_architecture(name: str, status: str) -> None:
    row = sweep_one(name, torch.device("cpu"), attention_break=False)
    assert row.status == status, row
    assert bool(row.breaks) == (status == "broken")


def test_the_sweep_covers_what_transformers_has() -> None:
    assert len(architectures()) > 100
