"""Where a forward is: the innermost line of the user's or the architecture's code, and the innermost module."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import sys
import sysconfig
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as nn_module

_LIBRARIES = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
_STANDARD_LIBRARY = sysconfig.get_path("stdlib") + os.sep


@functools.cache
def is_users(file: str) -> bool:
    """Tell whether a file is neither torch's nor bcg's, nor of Python's standard library."""
    if file.startswith(_STANDARD_LIBRARY):
        return "-packages" in file
    return not file.startswith((*_LIBRARIES, "<frozen"))


def users_frame(frame: FrameType | None) -> FrameType | None:
    """Return the innermost frame from `frame` outwards that is neither torch's nor bcg's."""
    while frame is not None and not is_users(frame.f_code.co_filename):
        frame = frame.f_back
    return frame


def line_of(frame: FrameType | None) -> str:
    """Return ``file:line`` of where a frame is; empty where there is none."""
    return f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame is not None else ""


def users_line(error: BaseException) -> str:
    """Return ``file:line`` of the innermost line of an error's traceback that is neither torch's nor bcg's."""
    lines = [
        f"{frame.f_code.co_filename}:{line}"
        for frame, line in traceback.walk_tb(error.__traceback__)
        if is_users(frame.f_code.co_filename)
    ]
    return lines[-1] if lines else ""


def source_line_of(function: Any) -> str:
    """Return ``file:line`` of a function, or of what an object that is called runs; empty where there is none."""
    function = inspect.unwrap(function)
    while isinstance(function, functools.partial):
        function = inspect.unwrap(function.func)
    if not hasattr(function, "__code__") and not inspect.ismethod(function):
        function = getattr(type(function), "__call__", function)  # noqa: B004 - an object's own, not its metaclass's
    code = getattr(inspect.unwrap(function), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code is not None else ""


def torchs_function(error: BaseException) -> str | None:
    """Return the qualified name of the function of torch that raised an error; None where it was not torch's."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    if not frames or not frames[-1].f_code.co_filename.startswith(_LIBRARIES[0]):
        return None
    return frames[-1].f_code.co_qualname


def from_search_path(file: str) -> str:
    """Return `file` relative to the place on Python's search path where it was found, so that reports can travel."""
    places = [f"{Path(place).resolve()}{os.sep}" for place in sys.path]
    found = max((place for place in places if file.startswith(place)), key=len, default="")
    return file.removeprefix(found)


class ModulePath:
    """Follows which module's forward is running on the thread that made it.

    Args:
        on_enter: Called before every module.
        on_leave: Told the path of every module that is left, by an error or not.
    """

    def __init__(
        self, on_enter: Callable[[], None] = lambda: None, on_leave: Callable[[str], None] = lambda _: None
    ) -> None:
        self._on_enter = on_enter
        self._on_leave = on_leave
        self._thread = threading.get_ident()
        self._stack: list[str] = []
        self._names: dict[nn.Module, str] = {}

    @property
    def path(self) -> str:
        return self._stack[-1] if self._stack else ""

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(reversed(self._stack[1:]))

    @contextlib.contextmanager
    def followed(self) -> Iterator[None]:
        # Where the forward runs compiled code, its compiler would take these for the model's, which it can't trace.
        enter: Callable[..., None] = torch.compiler.disable(self._enter)
        leave: Callable[..., None] = torch.compiler.disable(self._leave)
        handles = [
            nn_module.register_module_forward_pre_hook(enter),
            nn_module.register_module_forward_hook(leave, always_call=True),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, module: nn.Module, args: Any) -> None:
        if threading.get_ident() != self._thread:
            return
        name = self._names.get(module)
        if name is None:
            self._names.update({part: path for path, part in module.named_modules() if path})
            name = self._names[module] = self._names.get(module, type(module).__name__)
        self._stack.append(name)
        self._on_enter()

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if threading.get_ident() == self._thread and self._stack:
            self._on_leave(self._stack.pop())
