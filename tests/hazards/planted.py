"""What the planted models share: a place between two linear layers, and inputs of eight columns."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn

WIDTH = 8

MakeInputs = Callable[[int, torch.device, torch.Generator], dict[str, Tensor]]


def make_inputs(num_tokens: int, device: torch.device, generator: torch.Generator) -> dict[str, Tensor]:
    """Return `num_tokens` rows of numbers between 0 and 1."""
    return {"input": torch.rand(num_tokens, WIDTH, device=device, generator=generator)}


def between_layers(planted: nn.Module) -> tuple[nn.Module, MakeInputs]:
    """Return a model in which `planted` is the module ``planted``, and how to make its inputs."""
    layers = OrderedDict(before=nn.Linear(WIDTH, WIDTH), planted=planted, after=nn.Linear(WIDTH, WIDTH))
    return nn.Sequential(layers), make_inputs
