"""What a search and the process of its attempts say to each other: one JSON line a command, one a reply."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from bcg.child import Failed
from bcg.diagnose.attempt import Outcome
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
        outcome: What the capture failed at is without functions.
        is_lost: Whether it took the device from the process, which is good for nothing any more.
    """

    outcome: Outcome
    is_lost: bool = False


Command: TypeAlias = Load | Try
Reply: TypeAlias = Loaded | Tried | Failed
