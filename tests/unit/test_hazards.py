"""The hazard catalogue is whole and readable."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from bcg.hazards import HAZARDS, Hazard, is_loud

PAGE = Path(__file__).parents[2] / "docs" / "hazards.md"


def test_every_row_of_the_catalogue_is_there() -> None:
    assert list(HAZARDS) == [*(f"L{n}" for n in range(1, 16)), *(f"S{n}" for n in range(1, 22))]


def test_loud_and_silent_are_told_apart() -> None:
    assert is_loud("L1")
    assert not is_loud("S1")


@pytest.mark.parametrize("hazard", HAZARDS.values(), ids=lambda hazard: hazard.id)
def test_every_cell_is_one_line_of_text(hazard: Hazard) -> None:
    for field in fields(hazard):
        text = getattr(hazard, field.name)
        assert text, field.name
        assert text == " ".join(text.split())
        assert not text.endswith(".")


def test_the_page_tells_the_same() -> None:
    rows = [line.strip("| ").split(" | ") for line in PAGE.read_text().splitlines() if re.match(r"\| [LS]\d", line)]
    assert [(id, cause, remedy) for id, cause, _, _, remedy in rows] == [
        (row.id, row.cause, row.remedy) for row in HAZARDS.values()
    ]
    assert all(symptom and found for _, _, symptom, found, _ in rows)
