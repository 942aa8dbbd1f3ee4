"""Targets made of a test's own modules."""

from __future__ import annotations

import torch
from torch import nn

from bcg import Target
from bcg.inputs import MakeInputs
from bcg.models.build import build_target


def own_target(
    module: nn.Module,
    device: str,
    make_inputs: MakeInputs | None = None,
    *,
    name: str = "test",
    break_globs: tuple[str, ...] = (),
) -> Target:
    """Make a target of `module` on `device`, without the default breaks."""
    place = torch.device(device, 0) if device == "cuda" else torch.device(device)
    return build_target(
        name,
        module.to(place),
        source="factory",
        weights="user",
        seed=None,
        device=place,
        attention_break=False,
        break_globs=break_globs,
        make_inputs=make_inputs,
    )
