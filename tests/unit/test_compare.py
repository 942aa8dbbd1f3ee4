"""Two reports against each other: verdicts come from the measured spread."""

from __future__ import annotations

import math

import msgspec
import pytest

from bcg.errors import UsageError
from bcg.report import ProfileReport
from bcg.report.compare import Change, Comparison, compare_reports
from tests.cli.reports import gpu_report, profile_report

rename = msgspec.structs.replace


def times(report: ProfileReport, factor: float, noise: float = 0.002) -> ProfileReport:
    """The same report with every step longer by a factor, its rounds apart by a part of it."""
    buckets = [
        rename(
            bucket,
            modes=[
                row
                if row.p50_ms is None
                else rename(
                    row,
                    p50_ms=row.p50_ms * factor,
                    round_ms=[row.p50_ms * factor * (1 + noise * (number % 5 - 2)) for number in range(20)],
                )
                for row in bucket.modes
            ],
        )
        for bucket in report.buckets
    ]
    return rename(report, buckets=buckets)


def steps(comparison: Comparison) -> list[Change]:
    return [change for change in comparison.changes if change.quantity == "step ms"]


@pytest.mark.parametrize(
    ("factor", "noise", "verdict"),
    [
        (1.0, 0.002, "SAME"),
        (1.005, 0.0005, "SAME"),
        (1.08, 0.002, "SLOWER"),
        (0.92, 0.002, "FASTER"),
        (1.03, 0.3, "UNCLEAR"),
        (1.0, 0.3, "UNCLEAR"),
    ],
)
def test_the_verdict_of_a_time(factor: float, noise: float, verdict: str) -> None:
    found = steps(compare_reports(profile_report(), times(profile_report(), factor, noise), gate=0.05))
    assert len(found) == 25
    assert {change.verdict for change in found} == {verdict}
    assert all(change.change == pytest.approx(factor - 1) for change in found)


def test_only_a_clear_change_beyond_the_gate_is_a_regression() -> None:
    old = profile_report()
    slower = steps(compare_reports(old, times(old, 1.08), gate=0.05))
    assert all(change.is_regression(0.05) and not change.is_regression(0.10) for change in slower)
    unclear = steps(compare_reports(old, times(old, 1.08, noise=0.5), gate=0.05))
    assert {change.verdict for change in unclear} == {"UNCLEAR"}
    assert not any(change.is_regression(0.05) for change in unclear)
    assert not any(change.is_regression(0.05) for change in steps(compare_reports(old, times(old, 0.5), gate=0.05)))


def test_a_time_that_was_measured_once_is_unclear() -> None:
    old = gpu_report()
    new = rename(old, buckets=[rename(bucket, capture_ms=bucket.capture_ms * 2) for bucket in old.buckets])
    found = [change for change in compare_reports(old, new, gate=0.05).changes if change.quantity == "capture ms"]
    assert [change.verdict for change in found] == ["UNCLEAR", "UNCLEAR"]
    assert found[0].uncertainty is None


def test_bytes_and_counts_are_exact() -> None:
    old = gpu_report()
    new = rename(old, totals=rename(old.totals, pool_bytes=old.totals.pool_bytes * 2, driver_bytes=0))
    verdicts = {change.quantity: change.verdict for change in compare_reports(old, new, gate=0.05).changes}
    assert verdicts["pool bytes"] == "LARGER"
    assert verdicts["driver bytes"] == "SMALLER"
    assert verdicts["kernels"] == "SAME"


def test_something_from_nothing_is_an_infinite_change() -> None:
    old = gpu_report()
    old = rename(old, totals=rename(old.totals, driver_bytes=0))
    (found,) = [
        change for change in compare_reports(old, gpu_report(), gate=0.05).changes if "driver" in change.quantity
    ]
    assert math.isinf(found.change)
    assert (found.verdict, found.is_regression(10)) == ("LARGER", True)


def test_rows_of_one_report_only_and_other_machines_are_named() -> None:
    old = profile_report()
    new = rename(old, buckets=old.buckets[1:], environment=rename(old.environment, device="NVIDIA H200"))
    found = compare_reports(old, new, gate=0.05)
    assert found.missing[0] == "eager, 16 tokens: step ms is only in the old report"
    assert found.differences == ["device: NVIDIA H100 80GB HBM3 before, NVIDIA H200 now"]


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(UsageError, match="^a profile report can't be compared with a capture report$"):
        compare_reports(gpu_report(), profile_report(), gate=0.05)
    with pytest.raises(UsageError, match="^the two reports have no row in common"):
        compare_reports(profile_report(), profile_report(buckets=[], modes=[]), gate=0.05)
