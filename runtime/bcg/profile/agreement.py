"""Whether a mode computes what eager computes: a wrong mode gets no time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bcg.checking.compare import same_bits
from bcg.structure import tensors_in

_LIMITS = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 1e-1}
"""Largest relative error, by dtype. A compiler keeps other roundings than eager, and they add up over layers."""


@dataclass(frozen=True)
class Agreement:
    """How far a result is from eager's.

    Attributes:
        relative_error: Norm of the difference over the norm of eager's result, the worst of all tensors.
        within: Whether that is explained by rounding in the result's dtype; never with NaN on one side only.
    """

    bitwise: bool = True
    within: bool = True
    max_abs_error: float = 0.0
    relative_error: float = 0.0

    def joined(self, other: Agreement) -> Agreement:
        """Return the worse of both."""
        return Agreement(
            self.bitwise and other.bitwise,
            self.within and other.within,
            max(self.max_abs_error, other.max_abs_error),
            max(self.relative_error, other.relative_error),
        )


def agreement(expected: Any, got: Any) -> Agreement:
    """Compare the tensors of two results, in order."""
    ones, others = list(tensors_in(expected)), list(tensors_in(got))
    total = Agreement()
    if len(ones) != len(others):
        return Agreement(False, False, float("inf"), float("inf"))
    for one, other in zip(ones, others, strict=True):
        total = total.joined(_tensors(one, other))
    return total


def _tensors(expected: Tensor, got: Tensor) -> Agreement:
    if expected.shape != got.shape or expected.dtype != got.dtype:
        return Agreement(False, False, float("inf"), float("inf"))
    if same_bits(expected, got):
        return Agreement()
    one, other = expected.double(), got.double()
    if not torch.equal(one.isnan(), other.isnan()):
        return Agreement(False, False, float("inf"), float("inf"))
    one, other = one.nan_to_num(), other.nan_to_num()
    error, norm = one - other, float(one.norm())
    relative = float(error.norm()) / norm if norm else float("inf")
    return Agreement(False, relative <= _LIMITS.get(expected.dtype, 0.0), float(error.abs().max()), relative)
