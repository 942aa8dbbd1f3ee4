"""How far tensors may be apart in the mean where other kernels made them."""

from __future__ import annotations

import torch
from torch import Tensor

LOOSE_MEAN = {True: 1e-3, False: 0.25}
"""Mean difference that still is near, relative to the mean magnitude: of full-size dtypes, and of 16-bit ones, in which
deep networks with random weights turn another order of additions into several percent."""


def is_near_in_mean(expected: Tensor, got: Tensor, tolerances: dict[bool, float] = LOOSE_MEAN) -> bool:
    """Tell whether two tensors of one shape are near in the mean, as empty ones are; nothing is near NaN.

    Args:
        expected: Any numbers.
        got: Of the same shape.
        tolerances: Relative to the mean magnitude of `expected`: for full-size dtypes, and for 16-bit ones.
    """
    one, other = as_doubles(expected), as_doubles(got)
    return not one.numel() or bool(
        (one - other).abs().mean() <= tolerances[expected.element_size() >= 4] * one.abs().mean()
    )


def as_doubles(tensor: Tensor) -> Tensor:
    """Return what `tensor` holds as doubles, of complex numbers both parts, so that any two can be compared."""
    return torch.view_as_real(tensor.to(torch.complex128)) if tensor.is_complex() else tensor.double()
