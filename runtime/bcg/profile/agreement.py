"""Whether a mode computes what eager computes: a wrong mode gets no time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bcg.checking.yardstick import ExactErrors, exact_errors
from bcg.nearness import as_doubles, differences, distance
from bcg.structure import same_bits, tensors_in

_LIMITS = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 1e-1}
"""Largest relative error, by dtype, where there is no exact result to tell how far off eager is itself."""


@dataclass(frozen=True)
class Agreement:
    """How far results are from eager's.

    Attributes:
        alike: Shapes and dtypes are the same, NaN and infinity are at the same places, and what has no exact result
            is within the fixed limits.
        relative_error: Norm of the difference over the norm of eager's result, the worst of all tensors; where eager
            fills in a huge number, as for masked logits, the difference counts relative to that one.
        exact: Errors of both against the exact result, by tensor; of several runs the worst of each.
    """

    bitwise: bool = True
    alike: bool = True
    max_abs_error: float = 0.0
    relative_error: float = 0.0
    exact: tuple[ExactErrors, ...] = ()

    @property
    def within(self) -> bool:
        """Whether the difference is explained by rounding."""
        return self.alike and all(errors.within for errors in self.exact)

    @property
    def worst(self) -> ExactErrors | None:
        """The errors of the tensor that is worst by them."""
        return max(self.exact, key=lambda errors: errors.excess, default=None)

    def joined(self, other: Agreement) -> Agreement:
        """Return the worse of two runs of one mode."""
        if not (self.exact and other.exact):
            return self._worse(other, self.exact or other.exact)
        return self._worse(other, tuple(map(ExactErrors.joined, self.exact, other.exact)))

    def beside(self, other: Agreement) -> Agreement:
        """Return the worse of two tensors of one run."""
        return self._worse(other, self.exact + other.exact)

    def _worse(self, other: Agreement, exact: tuple[ExactErrors, ...]) -> Agreement:
        return Agreement(
            self.bitwise and other.bitwise,
            self.alike and other.alike,
            max(self.max_abs_error, other.max_abs_error),
            max(self.relative_error, other.relative_error),
            exact,
        )


_APART = Agreement(False, False, float("inf"), float("inf"))


def agreement(expected: Any, got: Any, exact: Any = None) -> Agreement:
    """Compare the tensors of two results, in order.

    Args:
        expected: What eager gives.
        got: What is judged.
        exact: What eager gives in a wider dtype, see `bcg.checking.yardstick`; without it, fixed limits count.
    """
    ones, others = tensors_in(expected), tensors_in(got)
    if len(ones) != len(others):
        return _APART
    exacts = [None] * len(ones) if exact is None else tensors_in(exact)
    total = Agreement()
    for one, other, exactly in zip(ones, others, exacts, strict=True):
        total = total.beside(_tensors(one, other, exactly))
    return total


def _tensors(expected: Tensor, got: Tensor, exact: Tensor | None) -> Agreement:
    if expected.shape != got.shape or expected.dtype != got.dtype:
        return _APART
    if same_bits(expected, got):
        return Agreement(exact=_errors(expected, got, exact))
    one, other = as_doubles(expected), as_doubles(got)
    if not _same_where_infinite(one, other):
        return _APART
    errors = _errors(expected, got, exact)
    relative = distance(one, other, order=2)
    alike = bool(errors) or relative <= _LIMITS.get(expected.dtype.to_real(), 0.0)
    return Agreement(False, alike, float(differences(one, other).max()), relative, errors)


def _errors(expected: Tensor, got: Tensor, exact: Tensor | None) -> tuple[ExactErrors, ...]:
    if exact is None or not expected.is_floating_point():
        return ()
    return (exact_errors(expected, got, exact.to(expected.device)),)


def _same_where_infinite(expected: Tensor, got: Tensor) -> bool:
    """Tell whether two tensors have NaN, and infinity of either sign, at the same places."""
    same = (expected == got) | (expected.isnan() & got.isnan())
    return bool((same | (expected.isfinite() & got.isfinite())).all())
