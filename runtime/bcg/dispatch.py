"""A dispatch mode as all of ours are: it sees operations on plain tensors, and higher-order operators as wholes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch._ops import HigherOrderOperator
from torch.utils._python_dispatch import TorchDispatchMode

from bcg.structure import is_wrapped, tensors_in

HIGHER_ORDER = "higher_order."
"""What the names of operators that take functions begin with."""


class DispatchMode(TorchDispatchMode):
    """Is called for every operation that reaches the dispatcher inside its ``with`` block."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if is_wrapped(types):
            return NotImplemented
        if isinstance(func, HigherOrderOperator):
            torch._dynamo.reset()  # the compiler skipped the call under this mode: without one it would fail ever after
            return self.run_higher_order(func, f"{HIGHER_ORDER}{func}", args, kwargs or {})
        return self.run(func, args, kwargs or {})

    def run(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Execute one operation on plain tensors."""
        raise NotImplementedError

    def run_higher_order(self, function: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Execute an operator that takes functions, such as ``torch.cond``; what these do is not seen."""
        return function(*args, **kwargs)


def written_by(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """Yield the tensors that an operation writes, by its schema."""
    for position, argument in enumerate(function._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield from tensors_in(kwargs.get(argument.name, args[position] if position < len(args) else None))
