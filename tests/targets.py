"""Targets made of a test's own modules, and modules that several tests use."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bcg import Target, make_target
from bcg.input_makers import MakeInputs


def own_target(
    module: nn.Module,
    device: str,
    make_inputs: MakeInputs | None = None,
    *,
    name: str = "test",
    break_globs: tuple[str, ...] = (),
    attention_break: bool = False,
) -> Target:
    """Make a target of `module` on `device`, by default without the default breaks."""
    place = torch.device(device, 0) if device == "cuda" else torch.device(device)
    return make_target(
        module.to(place),
        make_inputs,
        name=name,
        device=place,
        attention_break=attention_break,
        break_globs=break_globs,
    )


class Around(nn.Module):
    """Holds a module at the path ``inner``."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.inner(x)
        return result


class Between(Around):
    """Has operations of its own before and after that module."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * 2) + 1


class Seeds(nn.Module):
    """Draws the same numbers in every forward, on the host device; on a GPU it can't be captured."""

    def __init__(self, seeds: bool) -> None:
        super().__init__()
        self.seeds = seeds

    def forward(self, x: Tensor) -> Tensor:
        if self.seeds:
            torch.manual_seed(3)
        return x + torch.rand(4, device=x.device) * 1e-5
