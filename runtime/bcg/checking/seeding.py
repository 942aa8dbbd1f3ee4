"""Where a forward sets the state of a random generator: a replay does not, and draws other numbers."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch

from bcg.breaks import is_in_break
from bcg.segment_tape import Operation
from bcg.whereabouts import ModulePath, users_frame

_SEEDERS = frozenset({"manual_seed", "seed"})
_RESTORERS = frozenset({"set_state", "setstate"})


def find_seeding(
    forward: Callable[[], Any],
    kinds: tuple[type[torch.Generator | random.Random], ...] = (torch.Generator, random.Random),
) -> Operation | None:
    """Run `forward` and return the first call outside its breaks that sets a generator of these kinds, or None.

    Calls into C are the ones looked at: whatever a generator is set through ends in one. Putting back the state that
    a generator has anyway, as torch's compiler does after its work, sets nothing.
    """
    found: list[Operation] = []
    before: dict[int, Any] = {}
    modules = ModulePath()

    def look(frame: FrameType, event: str, called: Any) -> None:
        if event not in ("c_call", "c_return") or found or is_in_break() or not modules.path:
            return
        name, generator = called.__name__, called.__self__
        if name not in _SEEDERS | _RESTORERS or not isinstance(generator, kinds):
            return
        if event == "c_call" and name in _RESTORERS:
            before[id(generator)] = _state_of(generator)
        elif name in _SEEDERS or before.pop(id(generator), None) != _state_of(generator):
            users = users_frame(frame) or frame
            called_name = f"{type(generator).__name__}.{name}"
            found.append(Operation(called_name, modules.path, users.f_code.co_filename, users.f_lineno))

    profiler = sys.getprofile()
    with modules.followed():
        sys.setprofile(look)
        try:
            forward()
        finally:
            sys.setprofile(profiler)
    return found[0] if found else None


def _state_of(generator: torch.Generator | random.Random) -> Any:
    return generator.getstate() if isinstance(generator, random.Random) else generator.get_state().tolist()
