"""Comparing two results: bitwise first, then by tolerance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch import Tensor

from bcg.nearness import as_doubles, differences, is_near_in_mean, largest_ordinary, measures
from bcg.structure import PLAIN, SEQUENCES, same_bits, tensors_in

_FAR = 0.1
"""Part of a column's largest magnitude that replays of the same kernels do not explain."""
_RTOL = {torch.float64: 1e-12, torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


@dataclass(frozen=True)
class Tolerance:
    """How far two values may be apart.

    Attributes:
        rtol: Relative to the largest magnitude of the expected tensor, fill values such as those of masked logits aside
            (of these, to their own); by default that of its dtype.
        atol: Absolute.
    """

    rtol: float | None = None
    atol: float = 0.0

    def relative(self, dtype: torch.dtype) -> float:
        """Return `rtol`, or that of a dtype."""
        return _RTOL.get(dtype.to_real(), 0.0) if self.rtol is None else self.rtol


@dataclass(frozen=True)
class Comparison:
    """What comparing an expected result with another told.

    Attributes:
        bitwise: Every bit is the same.
        within: Every difference is within the tolerance.
        max_abs_error: Largest difference; infinite where one is NaN or missing and the other is not.
        max_rel_error: The same, relative to the largest magnitude of its tensor, fill values aside.
    """

    bitwise: bool = True
    within: bool = True
    max_abs_error: float = 0.0
    max_rel_error: float = 0.0

    def joined(self, other: Comparison) -> Comparison:
        """Return the worse of two comparisons."""
        return Comparison(
            self.bitwise and other.bitwise,
            self.within and other.within,
            max(self.max_abs_error, other.max_abs_error),
            max(self.max_rel_error, other.max_rel_error),
        )


APART = Comparison(bitwise=False, within=False, max_abs_error=float("inf"), max_rel_error=float("inf"))
"""Nothing can be compared: another structure, another shape or dtype, another number beside the tensors."""


def compare(expected: Any, got: Any, tolerance: Tolerance) -> Comparison:
    """Compare two results: their tensors, in order, and what else is in them."""
    if not are_alike(expected, got):
        return APART
    ones, others = tensors_in(expected), tensors_in(got)
    total = Comparison()
    for one, other in zip(ones, others, strict=True):
        total = total.joined(compare_tensors(one, other, tolerance))
    return total


def compare_tensors(expected: Tensor, got: Tensor, tolerance: Tolerance) -> Comparison:
    """Compare two tensors."""
    if expected.shape != got.shape or expected.dtype != got.dtype:
        return APART
    if same_bits(expected, got):
        return Comparison()
    one, other = as_doubles(expected), as_doubles(got)
    error = differences(one, other)
    if not (expected.is_floating_point() or expected.is_complex()):  # doubles round what is above 2**53
        error = torch.where(expected != got, error.clamp(min=1), 0.0)
    scale = measures(one, largest_ordinary(one))
    is_within = bool((error <= tolerance.atol + tolerance.relative(expected.dtype) * scale).all())
    relative = float(torch.where(error == 0, 0.0, error / scale).max())
    return Comparison(False, is_within, float(error.max()), relative)


def is_far_in_a_column(expected: Any, got: Any) -> bool:
    """Tell whether a column of a tensor is off by a tenth of its own largest magnitude, however small that is.

    Beside larger numbers in other columns a wrong one is within any tolerance. Only for results of the same kernels:
    in what others leave of a sum that cancels, every digit may be another.
    """
    return any(map(_is_far_in_a_column, tensors_in(expected), tensors_in(got)))


def _is_far_in_a_column(expected: Tensor, got: Tensor) -> bool:
    if expected.dim() < 2 or not expected.numel() or not (expected.is_floating_point() or expected.is_complex()):
        return False
    one, other = (as_doubles(tensor).flatten(0, expected.dim() - 2) for tensor in (expected, got))
    error, size = differences(one, other).amax(0), one.nan_to_num(0.0, 0.0, 0.0).abs().amax(0)
    return bool((error > _FAR * size).any())


def finite(error: float) -> float | None:
    """Return an error as a report holds it: None for one that is infinite."""
    return error if math.isfinite(error) else None


def are_near(expected: Any, got: Any) -> bool:
    """Tell whether two results are the same up to what other kernels for another shape may make of them."""
    return are_alike(expected, got) and all(map(_is_near, tensors_in(expected), tensors_in(got)))


def _is_near(one: Tensor, other: Tensor) -> bool:
    is_comparable = one.shape == other.shape and one.dtype == other.dtype
    return is_comparable and (is_near_in_mean(one, other) or same_bits(one, other))


def are_alike(one: Any, other: Any) -> bool:
    """Tell whether two results have one structure and the same numbers and words beside their tensors.

    A replay returns those of its capture. An object that nobody can look into is taken for the same.
    """
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return isinstance(one, Tensor) and isinstance(other, Tensor)
    if isinstance(one, SEQUENCES) and isinstance(other, SEQUENCES):
        return len(one) == len(other) and all(map(are_alike, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return list(one) == list(other) and all(map(are_alike, one.values(), other.values()))
    if isinstance(one, numpy.ndarray) or isinstance(other, numpy.ndarray):
        if type(one) is not type(other):
            return False
        return one.dtype == other.dtype and bool(numpy.array_equal(one, other, equal_nan=one.dtype.kind in "fc"))
    if isinstance(one, PLAIN) or isinstance(other, PLAIN):
        return bool(one == other or (one != one and other != other))
    return True


def has_numbers(result: Any) -> bool:
    """Tell whether a result holds anything but NaN, so that comparing it can tell something."""
    tensors: Sequence[Tensor] = [tensor for tensor in tensors_in(result) if tensor.numel()]
    return any(not bool(tensor.isnan().all()) for tensor in tensors)
