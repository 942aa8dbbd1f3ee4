"""Collectives of torch.distributed, as the operations that reach the dispatcher.

A backend that a graph can record (NCCL on a GPU) is recorded inside a segment. One that it can't (gloo, on the
host device) is run as a break of its own: every replay calls it again, on the same addresses, and waits for it.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from bcg.alignment import Alignment
from bcg.breaks import BreakLabel, call_break
from bcg.dispatch import DispatchMode
from bcg.structure import map_tensors

_NAMESPACES = ("c10d", "_c10d_functional", "_c10d_functional_autograd")
_NO_COMMUNICATION = ("wait_tensor", "_wrap_tensor_autograd")


@functools.cache
def is_collective(operation: str) -> bool:
    """Tell whether an operation, such as ``c10d.allreduce_.default``, communicates with other ranks."""
    namespace, _, name = operation.partition(".")
    return namespace in _NAMESPACES and name.partition(".")[0] not in _NO_COMMUNICATION


def only_wraps(operation: str) -> bool:
    """Tell whether an operation merely wraps a pending result: nothing runs, and its result has no memory."""
    return operation.startswith("_c10d_functional._wrap_tensor")


def run_as_break(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], module: str) -> Any:
    """Run a collective as a break of the active capture; return what it returned.

    Those that write into tensors they are given (``c10d.allreduce_``) leave no boundary; the result of the others
    (``_c10d_functional.all_reduce``) is one, complete when the break ends.
    """
    collective = _Collective(function)
    handed = call_break(collective, args, kwargs, BreakLabel(str(function), module, "collective"))
    return collective.take_result() if collective.writes_in_place else handed


class _Collective:
    """A collective that is complete when it returns."""

    def __init__(self, function: Any) -> None:
        self.writes_in_place = str(function).startswith("c10d.")
        self._function = function
        self._is_captured = False
        self._result: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        result = self._function(*args, **kwargs)
        if not self.writes_in_place:
            return map_tensors(torch.ops._c10d_functional.wait_tensor, result)
        for part in result if isinstance(result, tuple) else (result,):
            if isinstance(part, torch.ScriptObject):
                part.wait()  # type: ignore[attr-defined]
        if not self._is_captured:
            self._result = result
        return None

    def take_result(self) -> Any:
        """Hand over what the first call returned; later calls keep nothing."""
        result, self._result, self._is_captured = self._result, None, True
        return result


def settled(tensor: Tensor) -> Tensor:
    """Return the plain tensor of a collective's pending result, and any other tensor as it is."""
    wait: Callable[[], Tensor] | None = getattr(tensor, "trigger_wait", None)
    return tensor if wait is None else wait()


class CollectiveWatch(DispatchMode):
    """Calls `before` with a collective's name before it runs, inside the ``with`` block."""

    def __init__(self, before: Callable[[str], None]) -> None:
        super().__init__()
        self._before = before

    def run(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if is_collective(str(function)):
            self._before(str(function))
        return function(*args, **kwargs)


@contextlib.contextmanager
def in_step(ranks: Alignment | None, doing: str) -> Iterator[None]:
    """Let ranks meet before every collective inside the ``with`` block, and at its end.

    Compiled code does not run as such in it.

    Args:
        ranks: All of them have begun something; None for one process, which has nobody to meet.
        doing: What the block does, in words that differ from those of the blocks before and after it.
    """
    if ranks is None:
        yield
        return
    with CollectiveWatch(lambda name: ranks.meet(f"{name} while {doing}")):
        yield
    ranks.meet(f"the end of {doing}")
