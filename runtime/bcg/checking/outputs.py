"""Every module's inputs and outputs during one forward, kept so that two forwards can be compared."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from bcg.breaks import is_in_break
from bcg.structure import tensors_in


class EventKey(NamedTuple):
    """One moment of a forward.

    Attributes:
        module: Path of the module.
        part: ``input`` when it is entered, ``output`` when it is left.
        call: Which call of it, from 0.
    """

    module: str
    part: Literal["input", "output"]
    call: int


@dataclass(frozen=True)
class Event:
    """What a module was given or gave.

    Attributes:
        parent: Path of the module whose forward called it.
        tensors: Copies; inside a capture they are written again by every replay.
    """

    key: EventKey
    parent: str
    tensors: tuple[Tensor, ...]


def culprit_of(event: Event) -> str:
    """Return the path of the module whose own code gave the tensors of the first event that differs."""
    return event.parent if event.key.part == "input" else event.key.module


@contextlib.contextmanager
def keeping_outputs(root: nn.Module) -> Iterator[list[Event]]:
    """Keep copies of what every module of `root` takes and gives in the last forward, in execution order.

    What runs inside breaks is left out. A module that raises gives nothing.
    """
    events: list[Event] = []
    counts: dict[str, int] = {}
    stack: list[tuple[str, int]] = []

    def keep(path: str, part: Literal["input", "output"], call: int, values: Any) -> None:
        parent = stack[-1][0] if stack else ""
        with torch.inference_mode():
            copies = tuple(tensor.clone() for tensor in tensors_in(values))
        events.append(Event(EventKey(path, part, call), parent, copies))

    def entering(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            if is_in_break():
                return
            if not stack:  # the next forward: the last one is of no more interest
                counts.clear()
                events.clear()
            call = counts.get(path, 0)
            counts[path] = call + 1
            keep(path, "input", call, (args, kwargs))
            stack.append((path, call))

        return hook

    def leaving(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if is_in_break():
                return
            _, call = stack.pop()
            keep(path, "output", call, _plain(output))

        return hook

    handles = []
    for path, module in root.named_modules():
        handles.append(module.register_forward_pre_hook(entering(path), with_kwargs=True, prepend=True))
        handles.append(module.register_forward_hook(leaving(path), always_call=True))
    try:
        yield events
    finally:
        for handle in handles:
            handle.remove()


def _plain(output: Any) -> Any:
    """Make transformers' output objects plain dicts, whose tensors are found."""
    return dict(output) if isinstance(output, dict) else output
