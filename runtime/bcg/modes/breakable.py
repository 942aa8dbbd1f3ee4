"""`breakable`: graph segments with the target's breaks running eagerly between them."""

from __future__ import annotations

from bcg.modes.captured import Captured
from bcg.report import ModeName


class Breakable(Captured):
    """The target captured with its breaks."""

    name: ModeName = "breakable"
