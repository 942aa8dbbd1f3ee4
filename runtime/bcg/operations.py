"""Operations as breaks: the calls of one operation that come from one line of the user's code.

They are recognized at the dispatcher, those that make values from Python data at the call of torch's function, while a
forward is followed.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch.overrides import TorchFunctionMode

from bcg.breaks import BreakLabel, call_break, is_following
from bcg.dispatch import DispatchMode
from bcg.errors import UsageError
from bcg.report import BreakSource
from bcg.whereabouts import from_search_path, users_frame

FROM_HOST_DATA = ("torch.tensor", "torch.as_tensor", "torch.asarray")
"""Functions that copy from the host before they reach the dispatcher."""


@dataclass(frozen=True)
class OperationPlace:
    """Calls of an operation from one line of code, in whatever module.

    Attributes:
        name: Such as ``aten.index_put_.default`` or ``torch.tensor``.
        file: Of the innermost line that is neither torch's nor bcg's; its last parts are enough.
        line: Its number.
    """

    name: str
    file: str
    line: int

    @property
    def path(self) -> str:
        """What ``--break`` calls it: ``OPERATION@FILE:LINE``."""
        return f"{self.name}@{from_search_path(self.file)}:{self.line}"

    def is_at(self, file: str, line: int) -> bool:
        """Tell whether a line of code is the one that is meant."""
        return line == self.line and (file == self.file or file.endswith(os.sep + self.file))


Handler: TypeAlias = Callable[[OperationPlace, Callable[..., Any], Any, Any], Any]
"""Makes a call: it gets the place, the function, its arguments, and returns the result."""


@contextlib.contextmanager
def calls_handled(places: Sequence[OperationPlace], handle: Handler) -> Iterator[None]:
    """Let `handle` make the calls of these places inside the block."""
    if not places:
        yield
        return
    calls = _Calls(places, handle)
    with _Dispatch(calls), _Functions(calls):
        yield


@contextlib.contextmanager
def operations_broken(places: Sequence[OperationPlace], source: BreakSource) -> Iterator[None]:
    """Make operations breaks inside the block, if somebody follows the forward."""

    def run(place: OperationPlace, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        return call_break(function, args, kwargs, BreakLabel(place.name, None, source, place.path))

    with calls_handled(places if is_following() else (), run):
        yield


def find_operation(path: str) -> OperationPlace:
    """Return the place that ``OPERATION@FILE:LINE`` names.

    Raises:
        UsageError: It is written in another way.
    """
    name, _, source = path.partition("@")
    file, _, line = source.rpartition(":")
    if not (name and file and line.isdecimal()):
        raise UsageError(f"--break {path!r} names no operation", hint="give OPERATION@FILE:LINE, as the table shows it")
    return OperationPlace(name, os.path.normpath(file), int(line))


class _Calls:
    """The calls of one forward that are handled."""

    def __init__(self, places: Sequence[OperationPlace], handle: Handler) -> None:
        self._places = places
        self._handle = handle
        self.names = {place.name for place in places}

    def call(self, name: str, function: Any, args: Any, kwargs: Any) -> Any:
        frame = users_frame(sys._getframe(1)) if name in self.names else None
        if frame is not None:
            for place in self._places:
                if place.name == name and place.is_at(frame.f_code.co_filename, frame.f_lineno):
                    return self._handle(place, function, args, kwargs)
        return function(*args, **kwargs)


class _Dispatch(DispatchMode):
    def __init__(self, calls: _Calls) -> None:
        super().__init__()
        self._calls = calls

    def run(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._calls.call(str(function), function, args, kwargs)

    def run_higher_order(self, function: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._calls.call(name, function, args, kwargs)


class _Functions(TorchFunctionMode):
    def __init__(self, calls: _Calls) -> None:
        super().__init__()
        self._calls = calls

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = f"torch.{getattr(func, '__name__', '')}"
        return self._calls.call(name, func, args, kwargs) if name in FROM_HOST_DATA else func(*args, **kwargs)
