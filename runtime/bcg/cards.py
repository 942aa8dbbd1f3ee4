"""Cards and warnings made of rows of the catalogue: each names what is wrong, with the row's cause and remedy."""

from __future__ import annotations

from bcg.hazards import HAZARDS
from bcg.report import Card, ReportWarning

_HELPED_BY_A_BREAK = ("S1", "S2", "S3", "S4", "S11", "S12", "S15", "S16", "L9")
"""Rows that a break helps with once the capture has passed; one that fails is helped by a break in any row."""


def make_card(
    hazard: str,
    title: str,
    *,
    module: str = "",
    source_line: str = "",
    operation: str = "",
    driver_text: str = "",
    remedy: str = "",
    occurrences: int = 1,
    offers_break: bool = False,
) -> Card:
    """Make a card of a row of the catalogue; an empty `hazard` is an unknown cause.

    What it says is named as in a `Card`. The remedy is the row's unless another is given. A break of the module is
    offered in rows that one helps with after a capture, and with `offers_break` in any row.
    """
    row = HAZARDS.get(hazard)
    return Card(
        hazard=hazard,
        title=title,
        cause=row.cause if row else "",
        operation=operation,
        module=module,
        source_line=source_line,
        driver_text=driver_text,
        remedy=remedy or (row.remedy if row else ""),
        break_option=break_words(module) if offers_break or hazard in _HELPED_BY_A_BREAK else "",
        occurrences=occurrences,
    )


def hazard_warning(hazard: str, message: str) -> ReportWarning:
    """Make a warning of a row of the catalogue."""
    row = HAZARDS[hazard]
    return ReportWarning(code=hazard, message=message, cause=row.cause, remedy=row.remedy)


def counted(count: int, noun: str) -> str:
    """Return a count and what is counted."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def break_words(words: str) -> str:
    """Return the option that makes this a break, as a shell takes it; empty where there is nothing to name."""
    quoted = words.replace("'", "'\"'\"'")
    return f"--break '{quoted}'" if words else ""
