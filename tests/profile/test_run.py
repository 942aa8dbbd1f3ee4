"""A whole profile on the host device: modes in processes of their own, checked, measured in turns."""

from __future__ import annotations

import json
import os
import statistics
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bcg.child import needed_bytes
from bcg.errors import BcgError, UsageError
from bcg.modes.base import Preparation
from bcg.profile import run
from bcg.profile.messages import AllPrepared, Loaded, Looked, Measured, Prepared
from bcg.profile.plan import ModeRun, Plan
from bcg.profile.run import ProfileInterrupted, run_profile
from bcg.profile.summary import _percentile_95, profile_report
from bcg.report import MODES, ModeName, ModeRow, ProfileReport, decode_report, encode_report
from bcg.words import TargetWords
from bcg_cli.views.kinds import html_page

MODELS = Path(__file__).parent / "models.py"
SEGMENTS = 3
BREAKS = 2


def plan(factory: str, **changes) -> Plan:
    options = {"buckets": (4, 8), "modes": ("eager", "full", "breakable"), "num_rounds": 4, "steps_per_round": 3}
    return Plan(words=TargetWords(f"{MODELS}:{factory}"), **options | changes)


def rows(report: ProfileReport, mode: str) -> list[ModeRow]:
    return [row for bucket in report.buckets for row in bucket.modes if row.mode == mode]


@pytest.fixture(scope="module")
def trace_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trace") / "trace.json"


@pytest.fixture(scope="module")
def report(trace_path: Path) -> ProfileReport:
    """Four modes; one of them can't be on the host device."""
    return run_profile(plan("layered", modes=("eager", "full", "breakable", "fused"), trace=str(trace_path)))


def test_every_row_has_its_times(report: ProfileReport) -> None:
    assert [bucket.tokens for bucket in report.buckets] == [4, 8]
    for mode in ("eager", "full", "breakable"):
        for row in rows(report, mode):
            assert row.status == "measured"
            assert 0 < row.p50_ms <= row.p95_ms
            assert len(row.round_ms) == 4
            assert row.host_us > 0 and row.tokens_per_s > 0
            assert row.bitwise is True


def test_speed_ups_are_those_of_the_rounds(report: ProfileReport) -> None:
    for bucket in report.buckets:
        rounds = {row.mode: row.round_ms for row in bucket.modes if row.p50_ms}
        for row in bucket.modes:
            if row.p50_ms:
                eager, full = (
                    statistics.median(its / mine for mine, its in zip(row.round_ms, rounds[other], strict=True))
                    for other in ("eager", "full")
                )
                assert row.speedup_vs_eager == pytest.approx(eager)
                assert row.speedup_vs_full == pytest.approx(full)
                assert row.speedup_vs_compiled is None
        times = {row.mode: row.p50_ms for row in bucket.modes if row.p50_ms}
        assert times[report.totals.fastest[str(bucket.tokens)]] == min(times.values())


@pytest.mark.parametrize(("in_turns", "speedup"), [(True, 2.0), (False, 8 / 5)])
def test_a_clock_that_changes_between_rounds_changes_no_speed_up(
    report: ProfileReport, in_turns: bool, speedup: float
) -> None:
    """Twice as fast in each round, and slower by 5/4 in the last ones; one of them got two rounds more."""
    looked = Looked(graph_launches=1)
    steps: dict[ModeName, list[float]] = {"eager": [8, 8, 8, 10, 10], "breakable": [4, 4, 4, 5, 5, 5, 5]}
    runs = [
        ModeRun(
            mode,
            in_turns=in_turns,
            loaded=Loaded(
                environment=report.environment, model=report.model, warnings=[], weight_bytes=1, free_bytes=1
            ),
            prepared=AllPrepared(buckets=[Prepared(preparation=Preparation(4))], startup_s=1.0, warnings=[]),
            rounds={4: [Measured(step_ms=[step], host_us=[1.0]) for step in found]},
            looks={4: looked},
        )
        for mode, found in steps.items()
    ]
    found = profile_report(plan("layered", buckets=(4,)), runs)
    assert rows(found, "breakable")[0].speedup_vs_eager == pytest.approx(speedup)
    assert rows(found, "eager")[0].speedup_vs_eager == 1


def test_launches_and_the_share_of_breaks(report: ProfileReport) -> None:
    assert [row.graph_launches for row in rows(report, "eager")] == [0, 0]
    assert [row.graph_launches for row in rows(report, "full")] == [1, 1]
    for row in rows(report, "breakable"):
        assert row.graph_launches == SEGMENTS
        assert row.segments_ms > 0 and row.breaks_ms > 0 and row.breaks_host_us > 0
        assert row.busy_share is None
    launches = {mode.mode: mode.num_graph_launches for mode in report.modes}
    num_steps = 2 * 4 * 3
    assert launches == {"eager": 0, "full": num_steps, "breakable": num_steps * SEGMENTS, "fused": 0}


def test_start_up_and_memory(report: ProfileReport) -> None:
    modes = {mode.mode: mode for mode in report.modes}
    for name in ("full", "breakable"):
        mode = modes[name]
        assert mode.startup_s >= mode.warmup_s + mode.capture_s > 0
        assert mode.compile_s == 0
        assert mode.memory_bytes == mode.pool_bytes > 0
    assert all(row.transient_bytes == row.memory_bytes > 0 for row in rows(report, "eager"))


def test_what_cannot_be_here_says_so_and_has_no_time(report: ProfileReport) -> None:
    for row in rows(report, "fused"):
        assert row.status == "not available"
        assert "not available on the host device" in row.reason
        assert row.p50_ms is None and row.speedup_vs_eager is None


def test_the_map_and_the_timelines_are_those_of_breakable(report: ProfileReport) -> None:
    assert (report.map_tokens, len(report.segments), len(report.breaks)) == (8, SEGMENTS, BREAKS)
    assert [(replay.mode, replay.tokens) for replay in report.timelines] == [("breakable", 4), ("breakable", 8)]
    steps = report.timelines[0].steps
    assert [step.kind for step in steps] == ["segment", "break", "segment", "break", "segment"]
    assert all(step.device_us is None for step in steps)
    assert steps[1].name == "halve layers.0"
    ends = [step.host_start_us + step.host_us for step in steps]
    assert all(start.host_start_us >= end for start, end in zip(steps[1:], ends, strict=False))


def test_the_trace_names_segments_and_breaks(report: ProfileReport, trace_path: Path) -> None:
    names = [event.get("name") for event in json.loads(trace_path.read_text())["traceEvents"]]
    for name in ("breakable: 4 tokens", "breakable: 8 tokens"):
        assert names.count(name) == 1
    assert names.count("break 1: halve layers.1") == 2
    assert sum(str(name).startswith("segment 2: layers.1.down") for name in names) == 2


def test_a_report_survives_its_file_and_becomes_a_page(report: ProfileReport) -> None:
    assert decode_report(encode_report(report)) == report
    page = html_page(report)
    assert "One replay of breakable at 4 tokens" in page


def test_a_process_that_dies_is_an_error_that_says_how() -> None:
    with pytest.raises(BcgError, match="^the process of the mode was killed by SIGKILL$"):
        run_profile(plan("killed", modes=("eager",)))


def test_a_model_that_is_not_there_is_wrong_usage() -> None:
    with pytest.raises(UsageError, match="missing.py"):
        run_profile(Plan(words=TargetWords("missing.py:model"), buckets=(4,), modes=("eager",)))


def test_modes_that_can_not_be_here_alone_are_refused() -> None:
    with pytest.raises(BcgError, match="^none of the modes compiled, fused is available here"):
        run_profile(plan("layered", modes=("compiled", "fused")))


def test_an_interrupted_profile_keeps_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(step: str) -> None:
        if step == "preparing breakable":
            raise KeyboardInterrupt

    monkeypatch.setattr(run, "_fit_together", lambda *_: False)  # one mode after another, as large models
    with pytest.raises(ProfileInterrupted) as interrupted:
        run_profile(plan("layered", modes=("eager", "breakable"), num_rounds=1), interrupt)
    report = interrupted.value.report
    assert [row.status for row in rows(report, "eager")] == ["measured"] * 2
    assert {(row.status, row.reason, row.p50_ms) for row in rows(report, "breakable")} == {
        ("interrupted", "the profile ended before it was measured", None)
    }
    assert "the profile ended before it was measured" in html_page(report)


def test_modes_that_compile_each_token_count_come_last_in_an_interrupted_profile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps = []
    monkeypatch.setattr(run, "why_unavailable", lambda *_: None)
    monkeypatch.setattr(run, "_run_modes", lambda plan, live, on_step: steps.extend(one.mode for one in live))
    with pytest.raises(BcgError, match="no mode could be measured"):
        run_profile(plan("layered", modes=MODES))
    assert steps == ["eager", "full", "breakable", "fused", "compiled", "piecewise"]


def test_an_interrupt_before_anything_was_measured_is_one() -> None:
    def interrupt(step: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as interrupted:
        run_profile(plan("layered", modes=("eager",)), interrupt)
    assert not isinstance(interrupted.value, ProfileInterrupted)


def test_no_process_is_left() -> None:
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    commands = [Path(f"/proc/{child}/cmdline").read_bytes() for child in children]
    assert not [command for command in commands if b"bcg.profile.worker" in command]


def test_no_percentile_is_above_the_slowest_step() -> None:
    assert _percentile_95([1.0, 2.0]) <= 2.0


def test_room_for_each_further_mode_is_asked_for() -> None:
    loaded: Any = SimpleNamespace(free_bytes=2 * needed_bytes(1000, "cpu"), weight_bytes=1000)
    wanted: Any = SimpleNamespace(words=TargetWords("any"))
    assert run._fit_together(wanted, loaded, 3)
    assert not run._fit_together(wanted, loaded, 4)
