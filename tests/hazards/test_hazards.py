"""Every planted fault is found and named; every healthy twin passes without a word."""

from __future__ import annotations

from pathlib import Path

import pytest

from bcg import CaptureError, check, load_target
from bcg.diagnose import failures_explained
from bcg.hazards import HAZARDS
from bcg.report import CheckReport
from tests.hazards.table import GPU, HOST, PLANTED, Planted

HERE = Path(__file__).parent
BUCKETS = [8, 24]

CASES = [
    pytest.param(planted, device, id=f"{planted.row}-{device}", marks=[pytest.mark.gpu] if device == GPU else [])
    for planted in PLANTED
    for device in planted.devices
]


def run(planted: Planted, factory: str, device: str) -> CheckReport:
    target = load_target(f"{HERE / planted.file}:{factory}", device=device)
    with failures_explained(target, BUCKETS):
        return check(target, buckets=BUCKETS)


@pytest.mark.parametrize(("planted", "device"), CASES)
def test_a_planted_fault_is_found_and_named(planted: Planted, device: str) -> None:
    if planted.shows == "capture fails":
        with pytest.raises(CaptureError) as caught:
            run(planted, "faulty", device)
        error = caught.value
        assert error.hazard == planted.row, error.message
        assert planted.names in f"{error.message} {error.place}"
        assert error.hint
        return
    report = run(planted, "faulty", device)
    if planted.shows == "prevented":
        assert report.verdict == "match", report
        return
    if planted.shows == "warning":
        (warning,) = report.warnings
        assert warning.code == planted.row
        assert planted.names in warning.message
        assert warning.remedy
        return
    assert report.verdict == planted.shows
    assert {card.hazard for card in report.findings} == {planted.row, *planted.also}, report.findings
    assert all(card.remedy for card in report.findings)
    assert planted.names in " ".join(f"{card.module} {card.title}" for card in report.findings)
    if planted.names == "planted":
        assert {card.module for card in report.findings} == {"planted"}
        assert all(planted.file in card.source_line for card in report.findings)


@pytest.mark.parametrize(("planted", "device"), CASES)
def test_the_healthy_twin_passes(planted: Planted, device: str) -> None:
    report = run(planted, "healthy", device)
    assert report.verdict == "match", report.buckets
    assert report.findings == []
    assert report.warnings == []
    assert all(bucket.num_launches for bucket in report.buckets)


def test_every_file_is_in_the_table_and_every_row_in_the_catalogue() -> None:
    files = {path.name for path in HERE.glob("[ls][0-9][0-9]_*.py")}
    assert {planted.file for planted in PLANTED} == files
    assert {planted.row for planted in PLANTED} <= set(HAZARDS)


def test_the_readme_counts_them_right() -> None:
    on_host = [planted for planted in PLANTED if HOST in planted.devices]
    prevented = sum(planted.shows == "prevented" for planted in on_host)
    found = len(on_host) - prevented
    readme = " ".join((HERE.parents[1] / "README.md").read_text().lower().split())
    assert (
        f"on the host device {found} of {found} are found and named, {prevented} more can't occur, and all "
        f"{len(on_host)} healthy twins pass" in readme
    )
