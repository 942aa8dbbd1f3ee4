"""From what the modes' processes told to the plain data of a profile report."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import msgspec

from bcg.profile.messages import Looked, Prepared
from bcg.profile.notes import failed_later, notes
from bcg.profile.plan import ModeRun, Plan
from bcg.report import (
    CaptureReport,
    ModeName,
    ModeRow,
    ModeStatus,
    ModeSummary,
    OptionValue,
    ProfileBucket,
    ProfileReport,
    ProfileTotals,
    Timeline,
)

REFERENCES: tuple[ModeName, ...] = ("eager", "full", "compiled", "piecewise")
"""Modes that speed-ups are given against."""

INTERRUPTED = "the profile ended before it was measured"


def profile_report(plan: Plan, runs: Sequence[ModeRun]) -> ProfileReport:
    """Put together what was found.

    Args:
        plan: What was asked for.
        runs: One a mode; what one did not come to, because the profile was interrupted, has no time.
    """
    loaded = next(run.loaded for run in runs if run.loaded is not None)
    plan = plan.for_model(loaded.max_tokens)
    in_turns = any(run.in_turns for run in runs)
    buckets = [
        ProfileBucket(tokens=tokens, modes=_with_speedups([_row(run, tokens) for run in runs], in_turns=in_turns))
        for tokens in sorted(plan.buckets)
    ]
    captured = _mapped(runs)
    report = ProfileReport(
        environment=loaded.environment,
        model=loaded.model,
        options=_options(plan),
        buckets=buckets,
        modes=[_mode(run, buckets) for run in runs],
        totals=ProfileTotals(
            num_rounds=max((len(rounds) for run in runs for rounds in run.rounds.values()), default=0),
            steps_per_round=plan.steps_per_round,
            rounds="interleaved" if in_turns else "alternated",
            fastest=_fastest(buckets),
        ),
        timelines=_timelines(plan, runs),
        map_tokens=captured.map_tokens if captured else 0,
        map=captured.map if captured else [],
        segments=captured.segments if captured else [],
        breaks=captured.breaks if captured else [],
        ranks=captured.ranks if captured else [],
    )
    judged = [warning for run in runs if run.prepared is not None for warning in run.prepared.warnings]
    failed = [failed_later(run.mode, run.failure) for run in runs if run.failure is not None and run.rounds]
    return msgspec.structs.replace(report, warnings=[*loaded.warnings, *judged, *failed, *notes(report)])


def _options(plan: Plan) -> dict[str, OptionValue]:
    return {
        "tokens": list(plan.buckets),
        "device": plan.words.device,
        "modes": list(plan.modes),
        "rounds": plan.num_rounds,
        "break": list(plan.words.break_globs),
        "attention_break": plan.words.attention_break,
        "dtype": plan.words.dtype,
        "seed": plan.words.seed,
        "tp": plan.num_ranks,
        "ep": plan.words.expert_parallel,
    }


def _row(run: ModeRun, tokens: int) -> ModeRow:
    prepared = _prepared(run, tokens)
    made = None if prepared is None else prepared.preparation
    costs = {} if prepared is None else _costs(run.mode, prepared)
    look, rounds = run.looks.get(tokens, Looked()), run.rounds.get(tokens, [])
    if made is not None and made.status != "measured":
        return ModeRow(mode=run.mode, status=made.status, reason=made.reason, **costs)
    if not rounds:
        reason = run.unavailable or run.failure or INTERRUPTED
        return ModeRow(mode=run.mode, status=_status_without_rounds(run), reason=reason, **costs)
    if run.mode != "eager" and look.graph_launches == 0:
        reason = "not a single graph was launched in a step"
        return ModeRow(mode=run.mode, status="fell back", reason=reason, **costs)
    step_ms = [value for one in rounds for value in one.step_ms]
    p50_ms = statistics.median(step_ms)
    return ModeRow(
        mode=run.mode,
        status="measured",
        p50_ms=p50_ms,
        p95_ms=_percentile_95(step_ms),
        round_ms=[statistics.median(one.step_ms) for one in rounds],
        tokens_per_s=tokens / p50_ms * 1e3,
        host_us=statistics.median(value for one in rounds for value in one.host_us),
        busy_share=None if look.busy_ms is None else min(1.0, look.busy_ms / p50_ms),
        graph_launches=look.graph_launches if run.mode != "eager" else 0,
        kernel_launches=look.kernel_launches,
        **(msgspec.structs.asdict(look.split) if look.split else {}),
        **costs,
    )


def _status_without_rounds(run: ModeRun) -> ModeStatus:
    if run.unavailable is not None:
        return "not available"
    return "interrupted" if run.error is None else "failed"


def _costs(mode: ModeName, prepared: Prepared) -> dict[str, Any]:
    made = prepared.preparation
    costs = {name: value for name, value in asdict(made).items() if name not in ("tokens", "status", "reason")}
    memory_bytes = (made.transient_bytes or 0) if mode == "eager" else made.pool_bytes + made.driver_bytes
    return {**costs, **msgspec.structs.asdict(prepared.errors), "memory_bytes": memory_bytes}


def _percentile_95(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=20, method="inclusive")[-1] if len(values) > 1 else values[0]


def _with_speedups(rows: list[ModeRow], *, in_turns: bool) -> list[ModeRow]:
    references = [row for row in rows if row.mode in REFERENCES and row.p50_ms is not None]
    return [
        row
        if row.p50_ms is None
        else msgspec.structs.replace(
            row, **{f"speedup_vs_{other.mode}": _speedup(row, other, in_turns=in_turns) for other in references}
        )
        for row in rows
    ]


def _speedup(row: ModeRow, other: ModeRow, *, in_turns: bool) -> float:
    """Return how many times as fast a mode is as another.

    Where modes take turns, both steps of a round are of one moment: a GPU that changes its clock between rounds changes
    both, and hardly their ratio.
    """
    if in_turns:
        return statistics.median(its / mine for mine, its in zip(row.round_ms, other.round_ms, strict=False))
    assert row.p50_ms is not None
    assert other.p50_ms is not None
    return other.p50_ms / row.p50_ms


def _mode(run: ModeRun, buckets: Sequence[ProfileBucket]) -> ModeSummary:
    rows = [_of(bucket, run.mode) for bucket in buckets]
    measured = [row for row in rows if row.status == "measured"]
    status: ModeStatus = "measured" if measured else rows[0].status
    peaks = [one.peak_bytes for rounds in run.rounds.values() for one in rounds if one.peak_bytes is not None]
    pool_bytes, driver_bytes = sum(row.pool_bytes for row in rows), sum(row.driver_bytes for row in rows)
    return ModeSummary(
        mode=run.mode,
        status=status,
        reason=None if measured else rows[0].reason,
        startup_s=run.prepared.startup_s if run.prepared else 0.0,
        compile_s=sum(row.compile_s for row in rows),
        warmup_s=sum(row.warmup_s for row in rows),
        capture_s=sum(row.capture_s for row in rows),
        pool_bytes=pool_bytes,
        driver_bytes=driver_bytes,
        memory_bytes=pool_bytes + driver_bytes,
        peak_bytes=max(peaks, default=None),
        num_graph_launches=_launches(run, buckets),
        num_compilations=run.counts.num_compilations,
        num_skips=run.counts.num_skips,
        notes=run.counts.notes,
    )


def _launches(run: ModeRun, buckets: Sequence[ProfileBucket]) -> int:
    num_steps = {tokens: sum(len(one.step_ms) for one in rounds) for tokens, rounds in run.rounds.items()}
    rows = [(bucket.tokens, _of(bucket, run.mode)) for bucket in buckets]
    return round(sum((row.graph_launches or 0) * num_steps[tokens] for tokens, row in rows if row.status == "measured"))


def _prepared(run: ModeRun, tokens: int) -> Prepared | None:
    if run.prepared is None:
        return None
    return next((one for one in run.prepared.buckets if one.preparation.tokens == tokens), None)


def _of(bucket: ProfileBucket, mode: ModeName) -> ModeRow:
    return next(row for row in bucket.modes if row.mode == mode)


def _fastest(buckets: Sequence[ProfileBucket]) -> dict[str, ModeName]:
    found: dict[str, ModeName] = {}
    for bucket in buckets:
        times = [(row.p50_ms, row.mode) for row in bucket.modes if row.p50_ms is not None]
        if times:
            found[str(bucket.tokens)] = min(times)[1]
    return found


def _mapped(runs: Sequence[ModeRun]) -> CaptureReport | None:
    """Return what the most telling of the modes with segments captured."""
    captures = {run.mode: run.prepared.capture for run in runs if run.prepared and run.prepared.capture}
    return next((captures[mode] for mode in ("breakable", "fused", "full") if mode in captures), None)


def _timelines(plan: Plan, runs: Sequence[ModeRun]) -> list[Timeline]:
    shown = dict.fromkeys((min(plan.buckets), max(plan.buckets)))
    return [
        look.timeline
        for run in runs
        if run.mode != "full"
        for tokens in shown
        if (look := run.looks.get(tokens)) is not None and look.timeline is not None
    ]
