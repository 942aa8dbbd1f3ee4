"""How far tensors may be apart in the mean where other kernels made them, and what a difference is measured by."""

from __future__ import annotations

import torch
from torch import Tensor

LOOSE_MEAN = {True: 1e-3, False: 0.25}
"""Mean difference that still is near, relative to the mean magnitude: of full-size dtypes, and of 16-bit ones, in which
deep networks with random weights turn another order of additions into several percent."""

_LEAST_FILL = 1e4
_FILL_FACTOR = 100.0
"""So much larger than everything else are the numbers that stand for none, such as those of masked logits."""


def is_near_in_mean(expected: Tensor, got: Tensor, tolerances: dict[bool, float] = LOOSE_MEAN) -> bool:
    """Tell whether two tensors of one shape are near in the mean, as empty ones are; NaN alone is near nothing.

    Args:
        expected: Any numbers; whole ones have to be equal.
        got: Of the same shape.
        tolerances: Relative to the mean magnitude of `expected`: for full-size dtypes, and for 16-bit ones.
    """
    if not expected.numel():
        return True
    if not (expected.is_floating_point() or expected.is_complex()):
        return torch.equal(expected, got)
    return distance(expected, got) <= tolerances[expected.element_size() >= 4]


def distance(expected: Tensor, got: Tensor, order: int = 1) -> float:
    """Return the norm of the difference relative to that of what was expected; infinite where nothing can be told.

    Args:
        expected: Any numbers; fill values count relative to themselves.
        got: Of the same shape.
        order: Of the norm: 1 compares mean magnitudes.
    """
    one, other = as_doubles(expected), as_doubles(got)
    limit = largest_ordinary(one)
    ordinary, sizes = one[one.abs() <= limit], measures(one, limit)
    if not ordinary.numel():
        return float("inf")
    shares = torch.where(sizes > limit, limit / sizes, 1.0) if limit else 1.0
    apart = float(torch.linalg.vector_norm(differences(one, other) * shares, order))
    size = float(torch.linalg.vector_norm(ordinary, order))
    return apart / size if size else (float("inf") if apart else 0.0)


def differences(one: Tensor, other: Tensor) -> Tensor:
    """Return how far two tensors of doubles are apart: infinitely where one is not finite and the other is another."""
    same = (one == other) | (one.isnan() & other.isnan())
    infinite = float("inf")
    return torch.where(same, 0.0, (one - other).abs()).nan_to_num(nan=infinite, posinf=infinite)


def largest_ordinary(values: Tensor) -> float:
    """Return the largest finite magnitude, that of numbers aside which only fill a place, such as masked logits.

    A fill value is at least 10,000, and a hundred times larger than everything below it.
    """
    magnitudes = values[values.isfinite()].abs()
    largest = float(magnitudes.max()) if magnitudes.numel() else 0.0
    while largest >= _LEAST_FILL:
        is_below = magnitudes < largest / _FILL_FACTOR
        if bool(is_below.all()) or not bool(is_below.any()):
            break
        below = float(magnitudes[is_below].max())
        if float(magnitudes[~is_below].min()) < _FILL_FACTOR * below:
            break
        magnitudes, largest = magnitudes[is_below], below
    return largest


def measures(values: Tensor, ordinary: float) -> Tensor:
    """Return what a difference at each place is relative to: the ordinary magnitude, or that of a larger value."""
    sizes = values.abs()
    return torch.where(sizes.isfinite(), sizes.clamp(min=ordinary), ordinary)


def as_doubles(tensor: Tensor) -> Tensor:
    """Return what `tensor` holds as doubles, of complex numbers both parts, so that any two can be compared."""
    return torch.view_as_real(tensor.to(torch.complex128)) if tensor.is_complex() else tensor.double()
