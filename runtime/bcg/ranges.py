"""NVTX ranges: what a profiling tool shows around warm-ups, captures, segment launches and breaks.

Ranges inside a captured region do not fire at replay, so they stand around launches and breaks. Those of a replay
are made beforehand, with registered messages, so that ``nsys --capture-range=nvtx --nvtx-capture=profile@bcg``
finds them. With no tool attached there is no domain, nothing is made, and replays take their plain way.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Literal, TypeAlias

DOMAIN = "bcg"
Category: TypeAlias = Literal["warm-up", "capture", "instantiate", "replay", "segment", "break", "check"]
COLORS: dict[Category, int] = {
    "warm-up": 0xFF8B95A1,
    "capture": 0xFF0EA5A4,
    "instantiate": 0xFF14532D,
    "replay": 0xFF64748B,
    "segment": 0xFF3B82F6,
    "break": 0xFFF59E0B,
    "check": 0xFFA855F7,
}
"""A fixed colour for each category, as ARGB."""

Range: TypeAlias = Callable[[], AbstractContextManager[None]]
"""Gives the context manager of a prebuilt range."""


class Ranges:
    """The ranges of one process.

    Args:
        wanted: Without it there are none, whatever is attached.

    Attributes:
        active: Whether a tool is attached that sees them.
    """

    def __init__(self, wanted: bool = True) -> None:
        self._domain = _attached_domain() if wanted else None
        self.active = self._domain is not None

    def make(self, message: str, category: Category, payload: int | None = None) -> Range:
        """Prebuild a range.

        Args:
            message: Registered with the domain.
            category: Gives the colour too.
            payload: A token count or an index.
        """
        domain = self._domain
        if domain is None:
            return contextlib.nullcontext
        attributes = domain.get_event_attributes(
            message=message, color=COLORS[category], category=category, payload=payload
        )
        push, pop = domain.push_range, domain.pop_range

        @contextlib.contextmanager
        def enter() -> Iterator[None]:
            push(attributes)
            try:
                yield
            finally:
                pop()

        return enter


_NONE = Ranges(wanted=False)
_shown = _NONE


def show(ranges: Ranges) -> None:
    """Let the warm-ups and captures of this process be seen from now on."""
    global _shown
    _shown = ranges


def stretch(category: Category, payload: int | None = None) -> AbstractContextManager[None]:
    """Return the range of a stretch of start-up, named as its category."""
    return _shown.make(category, category, payload)() if _shown.active else contextlib.nullcontext()


def _attached_domain() -> Any:
    """Return the domain, or None where no tool would see it."""
    import nvtx

    domain = nvtx.get_domain(DOMAIN)
    return None if type(domain).__name__ == "DummyDomain" else domain
