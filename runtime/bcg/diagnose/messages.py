"""What a search and the process of its attempts say to each other: one JSON line a command, one a reply."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from bcg.child import Failed
from bcg.diagnose.survey import Finding
from bcg.report import BreakSize
from bcg.words import TargetWords


class PlaceWords(msgspec.Struct, frozen=True, kw_only=True):
    """A name through which a function is called (see `bcg.functions.FunctionPlace`).

    Attributes:
        file: The Python file in which the name is, or the class that has it; empty for a module of the target.
        path: Qualified name of the class, or path of the target's module; empty for a global name.
    """

    file: str
    path: str
    name: str


class FunctionWords(msgspec.Struct, frozen=True, kw_only=True):
    """A function, as in `bcg.functions.FunctionReference`."""

    path: str
    places: list[PlaceWords]


class RemedyWords(msgspec.Struct, frozen=True, kw_only=True):
    """A break or a pin, as in `bcg.diagnose.remedies.Remedy`."""

    size: BreakSize
    name: str
    source: str
    function: FunctionWords | None


class Load(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """Make the target."""

    words: TargetWords


class Try(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """Put these remedies into effect, capture these token counts, and replay."""

    remedies: list[RemedyWords]
    sizes: list[int]


class Loaded(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """The target is there."""


class Tried(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """What came of it.

    Attributes:
        reason: Why it isn't right; None where it is, or where replays can't tell.
        doubt: Why they can't; empty where they can.
        failure: What the capture failed at, if it did; without functions.
        is_lost: Whether it took the device from the process, which is good for nothing any more.
    """

    reason: str | None
    failure: Finding | None = None
    doubt: str = ""
    is_lost: bool = False


Command: TypeAlias = Load | Try
Reply: TypeAlias = Loaded | Tried | Failed
