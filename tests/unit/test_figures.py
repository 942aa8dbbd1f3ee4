"""Plots as data: they add up to what they say, and their legends can be told apart."""

from __future__ import annotations

import msgspec
import pytest

from bcg_cli.views import figures
from tests.cli.reports import STEP_MS, bucket, profile_report


def test_the_bar_of_a_start_up_is_as_long_as_the_start_up() -> None:
    modes = [mode for mode in profile_report().modes if mode.status == "measured"]
    figure = figures.startup_parts(modes)
    assert [trace["name"] for trace in figure["data"]] == ["compile", "warm-up", "capture", "rest"]
    for index, mode in enumerate(reversed(modes)):
        assert sum(trace["x"][index] for trace in figure["data"]) == pytest.approx(mode.startup_s)


def test_speed_ups_are_told_against_the_best_known_mode_that_ran() -> None:
    report = profile_report()
    buckets = [
        msgspec.structs.replace(bucket, modes=[row for row in bucket.modes if row.mode != "eager"])
        for bucket in report.buckets
    ]
    assert figures.speedup(report.buckets)["layout"]["yaxis"]["title"]["text"] == "times as fast as eager"
    without = figures.speedup(buckets)
    assert without["layout"]["yaxis"]["title"]["text"] == "times as fast as full"
    fused = next(trace for trace in without["data"] if trace["name"] == "fused")
    assert fused["y"] == [STEP_MS["full"][index] / STEP_MS["fused"][index] for index in range(len(buckets))]
    alone = [msgspec.structs.replace(bucket, modes=bucket.modes[:1]) for bucket in buckets]
    assert figures.speedup(alone)["data"] == []


@pytest.mark.parametrize(
    ("figure", "entries"),
    [
        (
            figures.segment_share(profile_report().buckets),
            ["breakable: segments", "breakable: breaks", "fused: segments", "fused: breaks"],
        ),
        (
            figures.mode_memory(profile_report().buckets),
            ["eager's peak", "full", "breakable", "compiled", "fused", "driver"],
        ),
    ],
    ids=["share", "memory"],
)
def test_every_entry_of_a_legend_has_its_own_colour(figure: figures.Figure, entries: list[str]) -> None:
    shown = [trace for trace in figure["data"] if trace.get("showlegend", True)]
    assert [trace["name"] for trace in shown] == entries
    assert len({trace["marker"]["color"] for trace in shown}) == len(entries)
    assert all("opacity" not in trace["marker"] for trace in shown)


def test_memory_is_drawn_in_a_unit_of_its_size() -> None:
    figure = figures.capture_memory([bucket(16, 4, pool_bytes=300, driver_bytes=0, eager_peak_bytes=2048)])
    assert figure["layout"]["yaxis"]["title"]["text"] == "KiB"
    assert [trace["y"] for trace in figure["data"]] == [[300 / 1024], [0.0], [2.0]]
    assert all("KiB" in trace["hovertemplate"] for trace in figure["data"])


@pytest.mark.parametrize(
    "figure",
    [
        figures.capture_memory([bucket(16, 4, driver_bytes=-1024)]),
        figures.mode_memory(profile_report().buckets),
    ],
    ids=["capture", "profile"],
)
def test_what_the_driver_gave_back_is_drawn_below_zero(figure: figures.Figure) -> None:
    """Not stacked: that would take it away from the bar of the pool."""
    assert figure["layout"]["barmode"] == "relative"
