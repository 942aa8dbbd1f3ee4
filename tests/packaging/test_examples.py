"""The examples are what the README says of them."""

from __future__ import annotations

from pathlib import Path

from bcg import check, load_target
from bcg.diagnose import break_where_needed

EXAMPLE = Path(__file__).parents[2] / "examples" / "my_model.py"


def test_the_guard_gets_a_break() -> None:
    diagnosis = break_where_needed(load_target(f"{EXAMPLE}:guarded"), (8, 32))
    assert [(found.module, found.card.hazard) for found in diagnosis.automatic_breaks] == [("2", "L1")]


def test_the_count_is_found() -> None:
    report = check(f"{EXAMPLE}:damped", buckets=(8, 32))
    assert (report.verdict, [card.hazard for card in report.findings]) == ("mismatch", ["S12"])
