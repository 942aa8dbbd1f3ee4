"""Remedies that need no change of code: breaks and pins of a size, and putting them into effect."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from bcg.breaks import BreakLabel, call_break, current_capture, is_following
from bcg.diagnose.survey import Finding
from bcg.functions import FunctionReference, functions_broken
from bcg.report import BreakSize
from bcg.rules import break_module
from bcg.structure import is_wrapped
from bcg.target import Target
from bcg.whereabouts import users_frame

_FROM_HOST_DATA = {"torch.tensor", "torch.as_tensor", "torch.asarray"}
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


def remedies_for(finding: Finding) -> list[Remedy]:
    """Return what may help with a finding, the smallest first; nothing where only the root is around it."""
    found = []
    operation = finding.operation
    short = operation.removeprefix("aten.").partition(".")[0]
    if operation in _FROM_HOST_DATA or (short in _HOST_COPIES and "from pageable host memory" in finding.reason):
        found.append(Remedy("pin", operation, finding.source))
    if short in _FIXED_SHAPES or finding.hazard == "L8":
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
        self._sites: dict[tuple[str, str], Remedy] = {}
        self._fresh: dict[tuple[str, str], list[Any]] = {}
        self._held: list[Any] = []
        self._outer = target.surroundings
        target.surroundings = self.in_effect

    def choose(self, remedies: list[Remedy]) -> None:
        """Put these remedies into effect, and no others but modules that were broken before."""
        self.chosen = list(remedies)
        self._target.warms_up_whole = any(remedy.size == "pin" for remedy in remedies)
        self._sites = {
            (remedy.name, remedy.source): remedy for remedy in remedies if remedy.size in ("pin", "operation")
        }
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
            if self._sites:
                calls = _Calls(self, follows)
                stack.enter_context(_Dispatch(calls))
                stack.enter_context(_Functions(calls))
            yield


class _Calls:
    """The calls of one forward that have a remedy.

    Args:
        owner: Whose remedies.
        follows: Whether somebody follows this forward; else the values of pins are noted.
    """

    def __init__(self, owner: Remedies, follows: bool) -> None:
        self._owner = owner
        self._follows = follows
        self._num_taken: dict[tuple[str, str], int] = {}
        self._names = {name for name, _ in owner._sites}
        if not follows:
            owner._fresh = {}

    def call(self, name: str, function: Any, args: Any, kwargs: Any) -> Any:
        if name not in self._names:
            return function(*args, **kwargs)
        frame = users_frame(sys._getframe(2))
        site = (name, f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame is not None else "")
        remedy = self._owner._sites.get(site)
        if remedy is None or (remedy.size == "operation" and not self._follows):
            return function(*args, **kwargs)
        if remedy.size == "operation":
            return call_break(function, args, kwargs, BreakLabel(name, None, "automatic"))
        if not self._follows:
            result = function(*args, **kwargs)
            self._owner._fresh.setdefault(site, []).append(result)
            return result
        pinned = self._pinned(site)
        return function(*args, **kwargs) if pinned is None else pinned

    def _pinned(self, site: tuple[str, str]) -> Any:
        """Return the value that the forward before had here; None if it had none, and a pin does not help."""
        index = self._num_taken.get(site, 0)
        self._num_taken[site] = index + 1
        values = self._owner._fresh.get(site, [])
        if index >= len(values):
            return None
        self._owner._held.append(values[index])
        return values[index]


class _Dispatch(TorchDispatchMode):
    def __init__(self, calls: _Calls) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._calls = calls

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if is_wrapped(types):
            return NotImplemented
        return self._calls.call(str(func), func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    def __init__(self, calls: _Calls) -> None:
        super().__init__()
        self._calls = calls

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = f"torch.{getattr(func, '__name__', '')}"
        if name not in _FROM_HOST_DATA:
            return func(*args, **kwargs)
        return self._calls.call(name, func, args, kwargs)
