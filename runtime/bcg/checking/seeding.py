"""Where a forward sets the state of a random generator: a replay does not, and draws other numbers."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch

from bcg.breaks import is_in_break
from bcg.tape import Operation
from bcg.whereabouts import ModulePath, users_frame

_SETTERS = frozenset({"manual_seed", "seed", "set_state", "setstate"})


def find_seeding(forward: Callable[[], Any]) -> Operation | None:
    """Run `forward` and return the first call outside its breaks that sets the state of a generator, or None.

    Calls into C are the ones looked at: whatever a generator is set through ends in one.
    """
    found: list[Operation] = []
    modules = ModulePath()

    def look(frame: FrameType, event: str, called: Any) -> None:
        if event != "c_call" or found or called.__name__ not in _SETTERS or is_in_break() or not modules.path:
            return
        users = users_frame(frame) or frame
        if isinstance(called.__self__, (torch.Generator, random.Random)) and not _is_compiling(frame, users):
            name = f"{type(called.__self__).__name__}.{called.__name__}"
            found.append(Operation(name, modules.path, users.f_code.co_filename, users.f_lineno))

    before = sys.getprofile()
    with modules.followed():
        sys.setprofile(look)
        try:
            forward()
        finally:
            sys.setprofile(before)
    return found[0] if found else None


def _is_compiling(frame: FrameType | None, users: FrameType) -> bool:
    """Tell whether torch's compiler was called in between: it puts back the state that was there before it worked."""
    while frame is not None and frame is not users:
        if str(frame.f_globals.get("__name__")).startswith("torch._dynamo"):
            return True
        frame = frame.f_back
    return False
