"""Two reports against each other: verdicts come from the measured spread."""

from __future__ import annotations

import math

import msgspec
import pytest

from bcg.errors import UsageError
from bcg.report import ModeRow, ProfileBucket, ProfileReport
from bcg.report.compare import Change, Comparison, compare_reports
from tests.cli.reports import STEP_MS, bucket, gpu_report, host_report, profile_report

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


@pytest.mark.parametrize(
    ("factor", "noise", "verdict"),
    [
        (1.02, 0.025, "SAME"),
        (1.02, 0.027, "UNCLEAR"),
        (0.98, 0.025, "SAME"),
        (0.98, 0.028, "UNCLEAR"),
        (1.03, 0.025, "SLOWER"),
        (1.03, 0.026, "UNCLEAR"),
    ],
)
def test_a_time_is_the_same_only_if_all_of_its_interval_is_within_the_gate(
    factor: float, noise: float, verdict: str
) -> None:
    old, new = (times(profile_report(), by, noise) for by in (1.0, factor))
    found = steps(compare_reports(old, new, gate=0.05))
    assert {change.verdict for change in found} == {verdict}
    half = 1.96 * 1.2533 / 1.349 * 2 * noise / math.sqrt(20)  # the quartiles of the rounds are one noise off
    assert all(change.uncertainty == pytest.approx(factor * half * math.sqrt(2), rel=1e-3) for change in found)


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
    one_more = [rename(bucket, num_kernels=bucket.num_kernels + 1) for bucket in old.buckets]
    new = rename(old, buckets=one_more, totals=rename(old.totals, pool_bytes=old.totals.pool_bytes * 2, driver_bytes=0))
    changes = {change.quantity: change for change in compare_reports(old, new, gate=0.05).changes}
    verdicts = {quantity: change.verdict for quantity, change in changes.items()}
    assert verdicts["pool bytes"] == "LARGER"
    assert verdicts["driver bytes"] == "SMALLER"
    assert verdicts["boundary bytes"] == "SAME"
    assert verdicts["kernels"] == "LARGER"
    assert not changes["kernels"].is_regression(0.05)


def test_what_the_host_counts_are_operations() -> None:
    found = compare_reports(host_report(), host_report(), gate=0.05).changes
    assert "operations" in {change.quantity for change in found}
    assert "kernels" not in {change.quantity for change in found}


def test_something_from_nothing_is_an_infinite_change() -> None:
    old = gpu_report()
    old = rename(old, totals=rename(old.totals, driver_bytes=0))
    (found,) = [
        change for change in compare_reports(old, gpu_report(), gate=0.05).changes if "driver" in change.quantity
    ]
    assert math.isinf(found.change)
    assert (found.verdict, found.is_regression(10)) == ("LARGER", True)


def test_rows_of_one_report_only_are_named_once_each() -> None:
    old = profile_report()
    fewer = compare_reports(old, rename(old, buckets=old.buckets[1:]), gate=0.05)
    assert fewer.lost == [f"{mode}, 16 tokens: only in the old report" for mode in STEP_MS]
    captured = gpu_report()
    more = compare_reports(rename(captured, buckets=captured.buckets[1:]), captured, gate=0.05)
    assert (more.lost, more.remarks[0]) == ([], "2048 tokens: only in the new report")


def test_a_measured_row_that_has_no_time_any_more_is_lost() -> None:
    old = profile_report()
    new = rename(old, buckets=[_wrong(old.buckets[0], "breakable"), *old.buckets[1:]])
    found = compare_reports(old, new, gate=0.05)
    assert found.lost == ["breakable, 16 tokens: measured before, now wrong (differs from eager by 0.5)"]
    back = compare_reports(new, old, gate=0.05)
    assert back.lost == []
    assert back.remarks[0] == "breakable, 16 tokens: measured now, before wrong (differs from eager by 0.5)"


def test_a_bucket_that_is_not_captured_any_more_is_lost() -> None:
    old = gpu_report()
    new = rename(old, buckets=[old.buckets[0], bucket(4096, 28, status="out of memory", error="4 GiB asked for")])
    assert compare_reports(old, new, gate=0.05).lost == [
        "4096 tokens: measured before, now out of memory (4 GiB asked for)"
    ]


def test_sums_are_compared_over_the_same_token_counts_only() -> None:
    captured = gpu_report()
    found = compare_reports(rename(captured, buckets=captured.buckets[1:]), captured, gate=0.05)
    assert {change.what for change in found.changes} == {"4096 tokens"}
    assert "all buckets: pool, driver, boundary not compared, because the token counts differ" in found.remarks
    profiled = profile_report()
    new = rename(profiled, buckets=[_wrong(profiled.buckets[0], "breakable"), *profiled.buckets[1:]])
    found = compare_reports(new, profiled, gate=0.05)
    assert found.remarks[1:] == ["breakable: start-up, memory not compared, because the token counts differ"]
    assert "fused" in {change.what for change in found.changes}


def test_facts_and_options_that_differ_are_named() -> None:
    old = profile_report(options={"tokens": [16], "rounds": 20, "attention_break": True, "break": [], "seed": 0})
    new = rename(
        old,
        environment=rename(old.environment, device="NVIDIA H200", driver=None, transformers="5.24.0"),
        model=rename(old.model, dtype="float32"),
        options={"tokens": [32], "rounds": 4, "attention_break": False, "break": ["*.mlp"], "seed": 1, "tp": 2},
    )
    assert compare_reports(old, new, gate=0.05).differences == [
        "weights: bfloat16 before, float32 now",
        "device: NVIDIA H100 80GB HBM3 before, NVIDIA H200 now",
        "driver: 580.95.05 before, none now",
        "transformers: 5.17.0 before, 5.24.0 now",
        "attention break: yes before, no now",
        "break: none before, *.mlp now",
        "seed: 0 before, 1 now",
    ]


def _wrong(bucket: ProfileBucket, mode: str) -> ProfileBucket:
    """The same bucket, in which a mode differs from eager."""
    reason = "differs from eager by 0.5"
    return rename(
        bucket,
        modes=[
            ModeRow(mode=row.mode, status="wrong", reason=reason) if row.mode == mode else row for row in bucket.modes
        ],
    )


def test_another_name_of_the_same_model_is_a_difference() -> None:
    """Such as a folder that was moved."""
    moved = gpu_report(model=rename(gpu_report().model, name="models/new"))
    assert compare_reports(gpu_report(), moved, gate=0.05).differences == ["model: qwen3-0.6b before, models/new now"]


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(UsageError, match="^a profile report can't be compared with a capture report$"):
        compare_reports(gpu_report(), profile_report(), gate=0.05)
    model = gpu_report().model
    name = r"qwen3-0.6b \(Qwen3Model, 596,049,920 parameters\)"
    for other in (rename(model, architecture="Other"), rename(model, num_parameters=9)):
        with pytest.raises(UsageError, match=f"^the old report is of {name}, the new one of qwen3-0.6b \\("):
            compare_reports(gpu_report(), gpu_report(model=other), gate=0.05)
    with pytest.raises(UsageError, match="^the two reports have no row in common"):
        compare_reports(profile_report(), profile_report(buckets=[], modes=[]), gate=0.05)
    with pytest.raises(UsageError, match="^the two reports have no row in common"):
        compare_reports(gpu_report(), gpu_report(buckets=[bucket(64, 28)]), gate=0.05)
