"""Breaks: functions that run eagerly between two segments, at capture and at every replay.

The names `eager_on_graph` and `break_graph` follow the primitive's first implementation (sglang pull requests
19102 and 22218), so code that was written for it moves over by changing an import.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, Protocol, TypeAlias, TypeVar, overload

import torch
from torch import Tensor

from bcg.report import BreakSource

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class BreakLabel:
    """What a break is called in errors and reports.

    Attributes:
        name: The function's name, or the rule's.
        module: Path of the module that the break stands for; `None` where the capture finds it out.
        source: Where the break comes from: ``decorator``, ``explicit``, ``attention``, ``mixer``, ``rule``,
            ``automatic``, ``collective`` or ``debug``.
        rule: The words of the ``--break`` that made a function or an operation one.
    """

    name: str
    module: str | None = None
    source: BreakSource = "decorator"
    rule: str = ""


Allocate: TypeAlias = Callable[[Sequence[int], Sequence[int], torch.dtype], Tensor]
"""Allocates a tensor of a size, strides and a dtype, with any contents; whoever calls it owns it."""


@dataclass(frozen=True)
class InPlace:
    """A break that writes its result to where the next segment reads it.

    Attributes:
        result: Its memory is what the break was given for it.
        write: Computes it; keeps neither `result` alive nor what the capture made.
    """

    result: Tensor
    write: Callable[[], None]


@dataclass(frozen=True)
class Bindable:
    """A break function that can be bound, once, to the addresses of its arguments and of its result.

    Attributes:
        function: The function itself, of one tensor as its result: it runs where nothing is captured, too.
        bind: Takes an `Allocate` and the arguments, which stay where they are; `None` where it can't be bound to them.
    """

    function: Callable[..., Tensor]
    bind: Callable[..., InPlace | None]

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.function(*args, **kwargs)

    @property
    def __wrapped__(self) -> Callable[..., Tensor]:
        """What `inspect.unwrap` finds: reports tell where the function itself is written."""
        return self.function


class BreakRunner(Protocol):
    """Whoever decides what a break does while a forward is followed: a capture, or a survey before one."""

    def run_break(
        self, function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], label: BreakLabel
    ) -> Any:
        """Run `function` as a break; return what the code after it gets."""


class _ThreadState(threading.local):
    runner: BreakRunner | None = None
    in_break: bool = False
    inline: bool = False
    bound: bool = False
    num_breaks: int = 0


_state = _ThreadState()


def current_capture() -> BreakRunner | None:
    """Return the capture that is active on this thread, or `None`."""
    return _state.runner


@contextlib.contextmanager
def running_breaks(runner: BreakRunner) -> Iterator[None]:
    """Give the breaks of this thread to `runner` inside the `with` block, even where an eager break calls it."""
    before = _state.runner, _state.in_break
    _state.runner, _state.in_break = runner, False
    try:
        yield
    finally:
        _state.runner, _state.in_break = before


@contextlib.contextmanager
def inline_breaks() -> Iterator[None]:
    """Run this thread's breaks where they stand, inside the `with` block: a capture in it has one segment."""
    before, _state.inline = _state.inline, True
    try:
        yield
    finally:
        _state.inline = before


def are_inline() -> bool:
    """Tell whether this thread's breaks run where they stand; see `inline_breaks`."""
    return _state.inline


@contextlib.contextmanager
def bound_breaks() -> Iterator[None]:
    """Run this thread's breaks as a capture would, inside the `with` block: in place, where they can be bound."""
    before, _state.bound = _state.bound, True
    try:
        yield
    finally:
        _state.bound = before


def is_following() -> bool:
    """Tell whether a break called now would be one: somebody follows the forward, and no break is running."""
    return _state.runner is not None and not _state.in_break and not _state.inline


def count_breaks() -> int:
    """Return how many breaks were called on this thread so far, in captures and eagerly; replays not counted."""
    return _state.num_breaks


def is_in_break() -> bool:
    """Tell whether a break is running on this thread, in a capture or eagerly; not in a replay."""
    return _state.in_break


def call_break(function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], label: BreakLabel) -> Any:
    """Call `function` as a break of the capture that is active on this thread.

    With no active capture, inside another break, and among `inline_breaks`, it is simply called.
    """
    if _state.in_break or _state.inline:
        return function(*args, **kwargs)
    runner = _state.runner
    _state.num_breaks += 1
    _state.in_break = True
    try:
        if runner is not None:
            return runner.run_break(function, args, kwargs, label)
        if _state.bound and isinstance(function, Bindable):
            in_place = function.bind(_allocate_on_device_of(args), *args, **kwargs)
            if in_place is not None:
                in_place.write()
                return in_place.result
        return function(*args, **kwargs)
    finally:
        _state.in_break = False


def _allocate_on_device_of(args: Sequence[Any]) -> Allocate:
    device = next((value.device for value in args if isinstance(value, Tensor)), None)

    def allocate(size: Sequence[int], stride: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.empty_strided(size, stride, dtype=dtype, device=device)

    return allocate


@overload
def eager_on_graph(function: Callable[P, R], /) -> Callable[P, R]: ...
@overload
def eager_on_graph(
    function: bool | None = None, /, *, enable: bool = True, name: str | None = None
) -> Callable[[Callable[P, R]], Callable[P, R]]: ...
def eager_on_graph(function: Any = None, /, *, enable: bool = True, name: str | None = None) -> Any:
    """Mark a function or method as a break.

    Used bare (``@eager_on_graph``) or with arguments (``@eager_on_graph(enable=use_graphs)``). Inside a capture
    the function ends the segment, runs eagerly, and its result reaches the next segment through boundaries;
    everywhere else it is called as it is. A compiler that traces the surrounding code stops at it.

    Args:
        function: The function, when used bare.
        enable: With `False` the very same function is returned, unmarked.
        name: What to call the break in errors and reports; the function's qualified name by default.

    Raises:
        TypeError: `function` can't be called.
    """
    if isinstance(function, bool):
        function, enable = None, function
    if function is None:
        return functools.partial(eager_on_graph, enable=enable, name=name)
    if not callable(function):
        raise TypeError(f"eager_on_graph marks a function as a break, got {type(function).__name__}")
    return _mark(function, enable=enable, name=name)


def _mark(function: Callable[P, R], *, enable: bool, name: str | None) -> Callable[P, R]:
    if not enable:
        return function
    label = BreakLabel(name or str(getattr(function, "__qualname__", type(function).__name__)).split("<locals>.")[-1])

    @functools.wraps(function)
    def broken(*args: P.args, **kwargs: P.kwargs) -> R:
        result: R = call_break(function, args, kwargs, label)
        return result

    kept_from_compilers: Callable[P, R] = torch.compiler.disable(broken)
    return kept_from_compilers


def _nothing() -> None:
    return None


@torch.compiler.disable  # type: ignore[untyped-decorator]
def break_graph() -> None:
    """End the segment here and begin the next one; nothing runs between them."""
    call_break(_nothing, (), {}, BreakLabel("break_graph", source="explicit"))
