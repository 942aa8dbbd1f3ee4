"""Models for profiles: small, and some with a fault that a profile has to find."""

from __future__ import annotations

import os
import signal
from typing import Any

import torch
from torch import Tensor, nn

from bcg import current_capture, eager_on_graph


@eager_on_graph
def halve_by_host(x: Tensor) -> Tensor:
    """A break that reads a value on the host: no graph can hold it."""
    return x * (0.5 if x.sum().item() > -1e9 else 2.0)


@eager_on_graph
def halve(x: Tensor) -> Tensor:
    return x * 0.5


class Layered(nn.Module):
    """Layers with a break inside each."""

    def __init__(self, break_function: Any = halve, num_layers: int = 2) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(break_function) for _ in range(num_layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Layer(nn.Module):
    def __init__(self, break_function: Any) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)
        self._break = break_function

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self._break(torch.relu(self.up(x))))


class Treacherous(Layered):
    """Computes something else while it is captured (hazard S3), between breaks that no graph can hold."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + (0.0 if current_capture() is None else 1.0)


class Tiring(Layered):
    """Is made ready, and fails in its first round."""

    def __init__(self) -> None:
        super().__init__()
        self._num_forwards = 0

    def forward(self, x: Tensor) -> Tensor:
        self._num_forwards += 1
        if self._num_forwards == 7:
            raise RuntimeError("too tired for this")
        return super().forward(x)


def _inputs(num_tokens: int, device: torch.device, generator: torch.Generator) -> dict[str, Tensor]:
    return {"x": torch.randn(num_tokens, 16, device=device, generator=generator)}


def layered() -> Any:
    return Layered(), _inputs


def treacherous() -> Any:
    return Treacherous(halve_by_host), _inputs


def tiring() -> Any:
    return Tiring(), _inputs


def killed() -> Any:
    os.kill(os.getpid(), signal.SIGKILL)
