"""L1: the host reads a device value. Healthy: the value stays on the device."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn

WIDTH = 8


class Scale(nn.Module):
    def __init__(self, largest: Callable[[Tensor], Tensor | float]) -> None:
        super().__init__()
        self.largest = largest

    def forward(self, x: Tensor) -> Tensor:
        return x / (1 + self.largest(x))


def make_inputs(num_tokens: int, device: torch.device, generator: torch.Generator) -> dict[str, Tensor]:
    return {"input": torch.rand(num_tokens, WIDTH, device=device, generator=generator)}


def build(largest: Callable[[Tensor], Tensor | float]) -> tuple[nn.Module, object]:
    parts = OrderedDict(before=nn.Linear(WIDTH, WIDTH), scale=Scale(largest), after=nn.Linear(WIDTH, WIDTH))
    return nn.Sequential(parts), make_inputs


def faulty() -> object:
    return build(lambda x: x.norm().item())


def healthy() -> object:
    return build(lambda x: x.norm(dim=-1, keepdim=True))
