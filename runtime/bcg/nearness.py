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
    return mean_distance(expected, got) <= tolerances[expected.element_size() >= 4]


def mean_distance(expected: Tensor, got: Tensor) -> float:
    """Return the mean difference relative to the mean magnitude; infinite where a number is near none.

    Args:
        expected: Any numbers; fill values count relative to themselves.
        got: Of the same shape.
    """
    one, other = as_doubles(expected), as_doubles(got)
    limit = largest_ordinary(one)
    distances = differences(one, other) * _shares(one, limit)
    ordinary = one[one.abs() <= limit].abs()
    if not ordinary.numel():
        return float("inf")
    distance, size = float(distances.sum() / ordinary.numel()), float(ordinary.mean())
    return distance / size if distance and size else (float("inf") if distance else 0.0)


def norm_distance(expected: Tensor, got: Tensor) -> float:
    """Return the norm of the difference relative to that of what was expected; else the same as `mean_distance`."""
    one, other = as_doubles(expected), as_doubles(got)
    limit = largest_ordinary(one)
    distance = float((differences(one, other) * _shares(one, limit)).norm())
    size = float(torch.where(one.abs() <= limit, one, 0.0).norm())
    return distance / size if distance and size else (float("inf") if distance else 0.0)


def _shares(values: Tensor, ordinary: float) -> Tensor:
    """Return by how much less a difference counts at each place than at an ordinary one."""
    sizes = measures(values, ordinary)
    return torch.where(sizes == 0, 1.0, ordinary / sizes) if ordinary else torch.ones_like(sizes)


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
