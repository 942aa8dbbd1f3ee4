"""Functions as breaks: what a function's names mean while a forward is followed.

A function is patched at the names through which it is called, for the time of a followed forward only. The break
keeps the function itself, so replays need no patch.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import Any

from torch import nn

from bcg.breaks import BreakLabel, call_break, is_following
from bcg.errors import UsageError
from bcg.report import BreakSource
from bcg.whereabouts import from_search_path, is_users

FILE_MODULES = "bcg_user_"
"""What the modules that are loaded from a file of the MODEL argument are called in front."""


@dataclass(frozen=True, eq=False)
class FunctionPlace:
    """A name through which a function is called: an attribute of a module object, class or Python module.

    Attributes:
        owner: The globals of a Python module, a class, or a torch module.
        name: The key or attribute.
    """

    owner: Any
    name: str

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FunctionPlace) and self.owner is other.owner and self.name == other.name

    def __hash__(self) -> int:
        return hash((id(self.owner), self.name))

    def get(self) -> Any:
        return self.owner[self.name] if isinstance(self.owner, dict) else getattr(self.owner, self.name)

    @contextlib.contextmanager
    def replaced(self, value: Any) -> Iterator[None]:
        """Let the name mean `value` inside the block."""
        held = self.owner if isinstance(self.owner, dict) else vars(self.owner)
        before = held.get(self.name, _ABSENT)
        self._set(value)
        try:
            yield
        finally:
            if before is _ABSENT:
                delattr(self.owner, self.name)
            else:
                self._set(before)

    def _set(self, value: Any) -> None:
        if isinstance(self.owner, dict):
            self.owner[self.name] = value
        else:
            setattr(self.owner, self.name, value)


_ABSENT = object()


@dataclass(frozen=True)
class FunctionReference:
    """A function that can be made a break by what its names mean while a forward is followed.

    Attributes:
        path: ``package.module:function``, or ``file.py:function`` where the file was loaded as a MODEL argument.
        code: What identifies it.
        places: The names through which it is called.
    """

    path: str
    code: CodeType
    places: tuple[FunctionPlace, ...]

    @property
    def name(self) -> str:
        return self.path.rpartition(":")[2]

    @contextlib.contextmanager
    def broken(self, source: BreakSource) -> Iterator[None]:
        """Make the function a break of whoever follows this thread's forward, inside the block."""
        with contextlib.ExitStack() as stack:
            for place in self.places:
                label = BreakLabel(self.name, None, source, self.path)
                stack.enter_context(place.replaced(_broken_at(place, label)))
            yield


@contextlib.contextmanager
def functions_broken(functions: Sequence[FunctionReference], source: BreakSource) -> Iterator[None]:
    """Make functions breaks inside the block, if somebody follows the forward."""
    with contextlib.ExitStack() as stack:
        if is_following():
            for function in functions:
                stack.enter_context(function.broken(source))
        yield


def _broken_at(place: FunctionPlace, label: BreakLabel) -> Any:
    """Make what a place holds a break; in a class a static method stays one, and a class method."""
    held = inspect.getattr_static(place.owner, place.name) if isinstance(place.owner, type) else None
    if isinstance(held, (staticmethod, classmethod)):
        return type(held)(_as_break(held.__func__, label))
    return _as_break(place.get(), label)


def _as_break(function: Callable[..., Any], label: BreakLabel) -> Callable[..., Any]:
    @functools.wraps(function)
    def broken(*args: Any, **kwargs: Any) -> Any:
        return call_break(function, args, kwargs, label)

    return broken


def find_function(path: str) -> FunctionReference:
    """Return the function that ``package.module:function`` or ``package.module:Class.method`` names.

    In place of the module there may be a loaded file, such as the one that the MODEL argument names.

    Every loaded module that imported the function under a name of its own is a place, too.

    Raises:
        UsageError: There is no such module or function.
    """
    module_name, _, name = path.rpartition(":")
    hint = "give package.module:function or file.py:function"
    try:
        module = _loaded_file(module_name) if module_name.endswith(".py") else importlib.import_module(module_name)
        owner: Any = functools.reduce(getattr, name.split(".")[:-1], module)
        function = getattr(owner, name.rpartition(".")[2])
    except AttributeError as error:
        raise UsageError(f"--break {path!r} names no function: {module_name} has no {name!r}", hint=hint) from error
    except (ImportError, ValueError) as error:
        raise UsageError(f"--break {path!r} names no function: {error}", hint=hint) from error
    code = code_of(function)
    if code is None:
        raise UsageError(f"--break {path!r} is no Python function", hint=hint)
    if isinstance(owner, type):
        return FunctionReference(path, code, (FunctionPlace(owner, name.rpartition(".")[2]),))
    places = tuple(
        FunctionPlace(vars(loaded), key)
        for loaded in list(sys.modules.values())
        if isinstance(loaded, ModuleType)
        for key, value in list(vars(loaded).items())
        if value is function
    )
    return FunctionReference(path, code, places)


def _loaded_file(file: str) -> ModuleType:
    wanted = Path(file).expanduser().resolve()
    for module in reversed(list(sys.modules.values())):  # a factory's file may have been loaded more than once
        loaded_from = getattr(module, "__file__", None)
        if loaded_from is not None and Path(loaded_from).resolve() == wanted:
            return module
    raise ImportError(f"no module of {file} is loaded")


def functions_around(frame: FrameType | None) -> list[FunctionReference]:
    """Return the functions from `frame` outwards up to the innermost forward of a module, the innermost first.

    Functions that no global name, class or module leads to (lambdas, closures, entries of a table) are left out.
    """
    frames = []
    while frame is not None and not is_forward(frame):
        frames.append(frame)
        frame = frame.f_back
    if frame is None:
        return []
    callers = [*frames, frame]
    found: dict[CodeType, FunctionReference] = {}
    for index, inner in enumerate(frames):
        if inner.f_code not in found and is_users(inner.f_code.co_filename):
            reference = _reference(inner, callers[index + 1 :])
            if reference is not None:
                found[inner.f_code] = reference
    return list(found.values())


def _first_argument(frame: FrameType) -> Any:
    code = frame.f_code
    return frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None


def is_forward(frame: FrameType) -> bool:
    """Tell whether a frame is a module's forward."""
    module = _first_argument(frame)
    return isinstance(module, nn.Module) and code_of(type(module).forward) is frame.f_code


def code_of(function: Any) -> CodeType | None:
    """Return what identifies a Python function, whatever wraps it; None for anything else."""
    return getattr(inspect.unwrap(function), "__code__", None) if callable(function) else None


def _reference(frame: FrameType, callers: list[FrameType]) -> FunctionReference | None:
    code, name = frame.f_code, frame.f_code.co_name
    module_name = frame.f_globals.get("__name__", "")
    is_file = module_name.startswith(FILE_MODULES)
    path = f"{from_search_path(code.co_filename) if is_file else module_name}:{code.co_qualname}"
    owner = _first_argument(frame)
    if isinstance(owner, nn.Module) and code_of(getattr(type(owner), name, None)) is code:
        return FunctionReference(path, code, (FunctionPlace(owner, name),))
    for base in type(owner).__mro__ if owner is not None else ():
        if isinstance(function := vars(base).get(name), FunctionType) and code_of(function) is code:
            return FunctionReference(path, code, (FunctionPlace(base, name),))
    scopes: dict[int, dict[str, Any]] = {id(each.f_globals): each.f_globals for each in (frame, *callers)}
    places = tuple(
        FunctionPlace(scope, key)
        for scope in scopes.values()
        for key, value in list(scope.items())
        if isinstance(value, FunctionType) and code_of(value) is code
    )
    return FunctionReference(path, code, places) if places else None
