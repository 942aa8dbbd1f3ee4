"""The hazard catalogue is whole and readable."""

from __future__ import annotations

from dataclasses import fields

import pytest

from bcg.hazards import HAZARDS, Hazard


def test_every_row_of_the_catalogue_is_there() -> None:
    assert list(HAZARDS) == [*(f"L{n}" for n in range(1, 16)), *(f"S{n}" for n in range(1, 22))]


def test_loud_and_silent_are_told_apart() -> None:
    assert HAZARDS["L1"].is_loud
    assert not HAZARDS["S1"].is_loud


@pytest.mark.parametrize("hazard", HAZARDS.values(), ids=lambda hazard: hazard.id)
def test_every_cell_is_one_line_of_text(hazard: Hazard) -> None:
    for field in fields(hazard):
        text = getattr(hazard, field.name)
        assert text, field.name
        assert text == " ".join(text.split())
        assert not text.endswith(".")
