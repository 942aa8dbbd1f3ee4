"""A dispatch mode as all of ours are: it sees operations on plain tensors, and higher-order operators as wholes."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any, Self

import torch
from torch import Tensor
from torch._ops import HigherOrderOperator
from torch.utils import _python_dispatch
from torch.utils._python_dispatch import TorchDispatchMode

from bcg.structure import is_wrapped, tensors_in

HIGHER_ORDER = "higher_order."
"""What the names of operators that take functions begin with."""


class _Uncompiled:
    """Keeps torch's compiler from compiling while anybody asks for it: its stance is that of all threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_asking = 0
        self._stance: Any = None

    def __enter__(self) -> None:
        with self._lock:
            self._num_asking += 1
            if self._num_asking == 1:
                self._stance = torch.compiler.set_stance("force_eager")

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._num_asking -= 1
            if self._num_asking == 0:
                self._stance.__exit__(None, None, None)


uncompiled = _Uncompiled()
"""Code that was given to torch's compiler runs uncompiled inside of ``with uncompiled``, on every thread."""


class DispatchMode(TorchDispatchMode):
    """Is called for every operation that reaches the dispatcher inside its ``with`` block.

    Code that was given to torch's compiler runs uncompiled there: under a mode the compiler would refuse the code that
    has to be one graph, and pass by the rest, which before torch 2.14 it does ever after.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # here once, for the modes that call it

    def __enter__(self) -> Self:
        uncompiled.__enter__()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        uncompiled.__exit__()

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Run the block as if this mode, the innermost one, had not been entered."""
        with _python_dispatch._pop_mode_temporarily():
            uncompiled.__exit__()
            try:
                yield
            finally:
                uncompiled.__enter__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if is_wrapped(types):
            return NotImplemented
        if isinstance(func, HigherOrderOperator):
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
