"""Notes of a profile that need a GPU's report: of those recorded under docs/measurements."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from bcg.profile.notes import notes
from bcg.report import ProfileReport
from bcg.report.file import read_report

MEASUREMENTS = Path(__file__).parents[2] / "docs" / "measurements"


def recorded(name: str) -> ProfileReport:
    report = read_report(MEASUREMENTS / f"{name}-qwen3-0.6b-h100.json")
    assert isinstance(report, ProfileReport)
    return report


def test_results_that_are_copied_between_segments_are_told_with_the_slowest_bucket() -> None:
    (note,) = (note for note in notes(recorded("copied")) if note.code == "copied-results")
    assert note.message == "breakable takes 3.3% longer than full at 288 tokens"


@pytest.mark.parametrize("what", ["in place", "host device", "no attention break", "no full", "fast enough"])
def test_there_is_no_such_note_where_nothing_is_to_gain(what: str) -> None:
    copied, replace = recorded("copied"), msgspec.structs.replace
    row_of = {
        "no full": lambda row: replace(row, speedup_vs_full=None),
        "fast enough": lambda row: replace(row, speedup_vs_full=0.995),
    }
    if what in row_of:
        buckets = [replace(one, modes=[row_of[what](row) for row in one.modes]) for one in copied.buckets]
        report = replace(copied, buckets=buckets)
    else:
        report = {
            "in place": recorded("in-place"),
            "host device": replace(copied, environment=replace(copied.environment, device_type="cpu")),
            "no attention break": replace(copied, breaks=[replace(one, source="explicit") for one in copied.breaks]),
        }[what]
    assert "copied-results" not in [note.code for note in notes(report)]
