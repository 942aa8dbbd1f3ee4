"""Remedies that need no change of code: breaks and pins of a size, and putting them into effect."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from bcg.breaks import current_capture, is_following
from bcg.diagnose.survey import Finding
from bcg.dispatch import HIGHER_ORDER
from bcg.functions import FunctionReference, functions_broken
from bcg.operations import FROM_HOST_DATA, Handler, OperationPlace, calls_handled, operations_broken
from bcg.report import BreakSize
from bcg.rules import break_module
from bcg.target import Target

_HOST_COPIES = {"_to_copy", "to", "copy_", "_pin_memory", "pin_memory"}
_FIXED_SHAPES = {"index_put", "index_put_", "_index_put_impl_", *_HOST_COPIES}
"""Operations that need the host but whose results have fixed shapes and are no Python values."""


@dataclass(frozen=True)
class Remedy:
    """A break or a pin that may help with a finding.

    Attributes:
        size: How much of the forward runs eagerly; a pin computes a value once, and is no break.
        name: Of the operation, function or module.
        source: Of an operation: the line of code, ``file:line``, that calls it, in whatever module.
        function: Of a function.
    """

    size: BreakSize
    name: str
    source: str = ""
    function: FunctionReference | None = None

    @property
    def place(self) -> OperationPlace:
        """Of a pin or an operation: which calls it is about."""
        file, _, line = self.source.rpartition(":")
        return OperationPlace(self.name, file, int(line))


def remedies_for(finding: Finding) -> list[Remedy]:
    """Return what may help with a finding, the smallest first; nothing where only the root is around it."""
    found = []
    operation = finding.operation
    short = operation.removeprefix("aten.").partition(".")[0]
    has_line = bool(finding.source)
    is_copy = operation in FROM_HOST_DATA or (short in _HOST_COPIES and "from pageable host memory" in finding.reason)
    if has_line and is_copy:
        found.append(Remedy("pin", operation, finding.source))
    if has_line and (short in _FIXED_SHAPES or operation.startswith(HIGHER_ORDER) or finding.hazard == "L8"):
        found.append(Remedy("operation", operation, finding.source))
    found += [Remedy("function", function.path, function=function) for function in finding.functions]
    found += [Remedy("module", path) for path in finding.modules]
    return found


class Remedies:
    """The automatic breaks and pins of one target, in effect while its forward is followed.

    Operations are recognized at the dispatcher (values made from Python data at the call), functions by what
    their names mean for the time of the forward. A module is made a break once and for all. Pins are taken from
    the eager forward before a capture, the warm-up of the same bucket, and are held here from then on.

    Args:
        target: Gets them as its surroundings.
    """

    def __init__(self, target: Target) -> None:
        self.chosen: list[Remedy] = []
        self._target = target
        self._fresh: dict[OperationPlace, list[Any]] = {}
        self._held: list[Any] = []
        self._outer = target.surroundings
        target.surroundings = self.in_effect

    def choose(self, remedies: list[Remedy]) -> None:
        """Put these remedies into effect, and no others but modules that were broken before."""
        self.chosen = list(remedies)
        self._target.warms_up_whole = any(remedy.size == "pin" for remedy in remedies)
        for remedy in remedies:
            if remedy.size == "module":
                break_module(self._target.module, remedy.name, "automatic")

    @contextlib.contextmanager
    def in_effect(self) -> Iterator[None]:
        """Surround one forward."""
        follows = is_following()
        if current_capture() is not None and not follows:
            yield
            return
        functions = [remedy.function for remedy in self.chosen if remedy.function is not None]
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._outer())
            stack.enter_context(functions_broken(functions, "automatic"))
            stack.enter_context(operations_broken(self._places("operation"), "automatic"))
            stack.enter_context(calls_handled(self._places("pin"), self._pinned() if follows else self._noted()))
            yield

    def _places(self, size: BreakSize) -> list[OperationPlace]:
        return [remedy.place for remedy in self.chosen if remedy.size == size]

    def _noted(self) -> Handler:
        """Return what calls a pinned operation, and notes its result, in a forward that nobody follows."""
        self._fresh = {}

        def call(place: OperationPlace, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            self._fresh.setdefault(place, []).append(result)
            return result

        return call

    def _pinned(self) -> Handler:
        """Return what gives the values that the forward before had; where it had none, a pin does not help."""
        num_taken: dict[OperationPlace, int] = {}

        def call(place: OperationPlace, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
            index = num_taken.get(place, 0)
            num_taken[place] = index + 1
            values = self._fresh.get(place, [])
            if index >= len(values):
                return function(*args, **kwargs)
            self._held.append(values[index])
            return values[index]

        return call
