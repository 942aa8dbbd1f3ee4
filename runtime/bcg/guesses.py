"""Stand-ins for values of tensors that have only shapes.

A break that reads values can be planned so: what it returns has a fixed shape, or it could not be captured, so what
it is told on the way does not matter for the plan. Counts are guessed at their largest: every entry is one.
Conditions are true, but where that leads to an error or has no end.
"""

from __future__ import annotations

import collections
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from bcg.dispatch import DispatchMode
from bcg.whereabouts import line_of, users_frame

_PATIENCE = 1000
"""Conditions that one line of code may ask for before they are no longer true: it may be a loop."""


class Guesses(DispatchMode):
    """Answers what a `FakeTensorMode` can't; to be entered after it."""

    def __init__(self) -> None:
        super().__init__()
        self._asked: collections.Counter[str] = collections.Counter()
        self._denied: set[str] = set()
        self._last = ""

    def deny_last(self) -> bool:
        """Answer the last condition otherwise the next time; tell whether there is one left that was true."""
        is_new = bool(self._last) and self._last not in self._denied
        self._denied.add(self._last)
        self._asked.clear()
        return is_new

    def _condition(self) -> bool:
        self._last = line_of(users_frame(sys._getframe(1))) or "somewhere"
        self._asked[self._last] += 1
        return self._last not in self._denied and self._asked[self._last] <= _PATIENCE

    def run(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            return function(*args, **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException):
            guess = _SHAPES.get(str(function))
            if guess is not None:
                return guess(*args, **kwargs)
            returned = str(function._schema.returns[0].type)
            if returned == "bool" or (returned == "number" and args[0].dtype == torch.bool):
                return self._condition()
            if returned == "number":
                return 1.0 if args[0].dtype.is_floating_point else 1  # will do as an index, a size or a divisor
            if not function._can_decompose():
                raise
            with self:
                return function.decompose(*args, **kwargs)


def _nonzero(tensor: Tensor) -> Tensor:
    return tensor.new_empty((tensor.numel(), tensor.dim()), dtype=torch.long)


def _nonzero_numpy(tensor: Tensor) -> list[Tensor]:
    return [tensor.new_empty(tensor.numel(), dtype=torch.long) for _ in range(tensor.dim())]


def _masked_select(tensor: Tensor, mask: Tensor) -> Tensor:
    return tensor.new_empty(torch.broadcast_shapes(tensor.shape, mask.shape).numel())


def _index(tensor: Tensor, indices: list[Tensor | None]) -> Tensor:
    by_number: list[Tensor | None] = []
    for index in indices:
        is_mask = index is not None and index.dtype in (torch.bool, torch.uint8)
        by_number += _nonzero_numpy(index) if index is not None and is_mask else [index]
    result: Tensor = torch.ops.aten.index.Tensor(tensor, by_number)
    return result


def _unique(tensor: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor, Tensor]:
    flat = tensor.flatten()
    return flat, torch.empty_like(tensor, dtype=torch.long), torch.empty_like(flat, dtype=torch.long)


def _repeat_interleave(repeats: Tensor, **_: Any) -> Tensor:
    return torch.empty_like(repeats, dtype=torch.long)


def _bincount(tensor: Tensor, weights: Tensor | None = None, minlength: int = 0) -> Tensor:
    return tensor.new_empty(max(minlength, 1), dtype=torch.long if weights is None else weights.dtype)


_SHAPES: dict[str, Callable[..., Any]] = {
    "aten.nonzero.default": _nonzero,
    "aten.nonzero_numpy.default": _nonzero_numpy,
    "aten.masked_select.default": _masked_select,
    "aten.index.Tensor": _index,
    "aten.unique_consecutive.default": _unique,
    "aten._unique2.default": _unique,
    "aten.repeat_interleave.Tensor": _repeat_interleave,
    "aten.bincount.default": _bincount,
}
