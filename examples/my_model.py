"""Two models that no single CUDA graph can hold: the capture of one fails, that of the other makes replays wrong."""

import torch
from torch import Tensor, nn


class Guard(nn.Module):
    """Reads a value of the device: a capture fails here."""

    def forward(self, x: Tensor) -> Tensor:
        if not torch.isfinite(x).all():
            raise ValueError("the hidden states overflow")
        return x


class Damp(nn.Module):
    """Computes with a number of Python: a capture passes, and every replay has the number of that capture."""

    def __init__(self) -> None:
        super().__init__()
        self.num_calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.num_calls += 1
        return x / self.num_calls


def guarded() -> nn.Module:
    """Make the first one. `bcg` calls a factory as ``examples/my_model.py:guarded``."""
    return nn.Sequential(nn.Embedding(1000, 64), nn.Linear(64, 64), Guard(), nn.Linear(64, 64))


def damped() -> nn.Module:
    """Make the second one."""
    return nn.Sequential(nn.Embedding(1000, 64), nn.Linear(64, 64), Damp(), nn.Linear(64, 64))
