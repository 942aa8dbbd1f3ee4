"""What a profile's reader should know before believing a number: notes with cause and remedy."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from bcg.report import ModeName, ModeRow, ProfileReport, ReportWarning

BUSY_ENOUGH = 0.95
NOISY = 0.05
ROUNDS_OF_A_SPREAD = 4
DRIFT = 0.03
LONGER_IN_PARTS = 1.25
"""A replay whose steps are timed one by one takes longer: 1.17 times a step of Qwen3-0.6B's fused on an H100."""
MIN_ROUNDS = 6
FAST_ENOUGH = 0.99
"""Speed of `breakable` against `full` at which nobody needs to look for what stands between its segments."""


def notes(report: ProfileReport) -> list[ReportWarning]:
    """Return the notes of a report."""
    return [
        *_cut_short(report),
        *_busy_already(report),
        *_noisy(report),
        *_drifting(report),
        *_longer_in_parts(report),
        *_copied_results(report),
        *_without_a_time(report),
        *_one_after_another(report),
    ]


def held_to_limits(mode: ModeName, buckets: Sequence[int], cause: str, remedy: str) -> ReportWarning:
    """Note that a mode with kernels of its own was judged without knowing how far off eager is itself."""
    counts = ", ".join(str(tokens) for tokens in sorted(buckets))
    return ReportWarning(
        code="fixed-limits",
        message=f"{mode} at {counts} tokens was judged by fixed limits of error, not by twice eager's own",
        cause=cause,
        remedy=remedy,
    )


def failed_later(mode: ModeName, failure: str) -> ReportWarning:
    """Note that a mode failed after some of it had been measured."""
    return ReportWarning(
        code="failed-later",
        message=f"{mode} failed after it had been measured, or while it was",
        cause=failure,
        remedy="what it has was measured before that; run it again alone for the rest",
    )


def _rows(report: ProfileReport, mode: ModeName | None = None) -> Iterator[tuple[int, ModeRow]]:
    for bucket in report.buckets:
        for row in bucket.modes:
            if row.p50_ms is not None and mode in (None, row.mode):
                yield bucket.tokens, row


def _cut_short(report: ProfileReport) -> Iterator[ReportWarning]:
    rows, wanted = list(_rows(report)), report.options.get("rounds")
    short = [found for found in rows if isinstance(wanted, int) and len(found[1].round_ms) < wanted]
    if short:
        tokens, row = min(short, key=lambda found: len(found[1].round_ms))
        yield ReportWarning(
            code="cut-short",
            message=f"{len(short)} of {len(rows)} rows have fewer than {wanted} rounds, fewest of all {row.mode} at "
            f"{tokens} tokens: {len(row.round_ms)}",
            cause="the profile was interrupted, or a mode failed",
            remedy="run it again, with fewer --modes, --tokens or --rounds",
        )
    unknown = [(tokens, row) for tokens, row in rows if row.graph_launches is None]
    if unknown:
        tokens, row = unknown[0]
        yield ReportWarning(
            code="not-looked-into",
            message=f"{len(unknown)} of {len(rows)} rows have no launches and no times of segments and breaks, "
            f"first {row.mode} at {tokens} tokens",
            cause="the profile or the mode ended after the rounds, before it looked into these",
            remedy="run it again, with fewer --modes or --tokens",
        )


def _busy_already(report: ProfileReport) -> Iterator[ReportWarning]:
    busy = [(tokens, row) for tokens, row in _rows(report, "eager") if (row.busy_share or 0.0) >= BUSY_ENOUGH]
    if busy:
        tokens, row = busy[0]
        yield ReportWarning(
            code="eager-is-busy",
            message=f"eager is already {row.busy_share:.0%} GPU-busy at {tokens} tokens: graphs cannot help there",
            cause="its kernels run longer than Python takes to launch the next ones",
            remedy="capture smaller token counts only; what is left to gain is in the kernels (compiled, fused)",
        )


def _noisy(report: ProfileReport) -> Iterator[ReportWarning]:
    rows = list(_rows(report))
    known = [(_spread(row.round_ms), tokens, row) for tokens, row in rows if len(row.round_ms) >= ROUNDS_OF_A_SPREAD]
    noisy = [found for found in known if found[0] > NOISY]
    if noisy:
        spread, tokens, row = max(noisy, key=lambda found: found[0])
        yield ReportWarning(
            code="noisy-rounds",
            message=f"{len(noisy)} of {len(rows)} rows are noisy, most of all {row.mode} at {tokens} tokens: its "
            f"rounds spread over {spread:.0%} of their median",
            cause="something else used the machine, or its clocks changed",
            remedy="give more --rounds, lock the clocks, or leave the machine alone",
        )
    if len(known) < len(rows):
        yield ReportWarning(
            code="unknown-spread",
            message=f"how noisy {len(rows) - len(known)} of {len(rows)} rows are is unknown",
            cause=f"a spread takes {ROUNDS_OF_A_SPREAD} rounds, they have fewer",
            remedy=f"give --rounds {ROUNDS_OF_A_SPREAD} or more",
        )


def _drifting(report: ProfileReport) -> Iterator[ReportWarning]:
    drifts = [_drift(row.round_ms) for _, row in _rows(report) if len(row.round_ms) >= MIN_ROUNDS]
    if drifts and statistics.median(drifts) > DRIFT:
        yield ReportWarning(
            code="thermal-drift",
            message=f"rounds became {statistics.median(drifts):.0%} slower from the first third to the last",
            cause="the device got warm and lowered its clocks",
            remedy="lock the clocks, or let it warm up before; interleaved rounds keep the modes comparable",
        )


def _longer_in_parts(report: ProfileReport) -> Iterator[ReportWarning]:
    ratios = [
        ((row.segments_ms + row.breaks_ms) / row.p50_ms, tokens, row)
        for tokens, row in _rows(report)
        if row.p50_ms and row.segments_ms is not None and row.breaks_ms is not None
    ]
    longer = [found for found in ratios if found[0] > LONGER_IN_PARTS]
    if longer:
        ratio, tokens, row = max(longer, key=lambda found: found[0])
        yield ReportWarning(
            code="longer-in-parts",
            message=f"segments and breaks of {row.mode} at {tokens} tokens take {ratio:.1f} times its whole step",
            cause="timed step by step, replays took longer than in the rounds: that costs host time of its own, or "
            "something else used the machine",
            remedy="take how they divide a step from these columns, and how long it is from p50",
        )


def _copied_results(report: ProfileReport) -> Iterator[ReportWarning]:
    environment, breaks = report.environment, report.breaks
    if environment.device_type != "cuda" or "nvidia-cudnn-frontend" in environment.kernel_packages:
        return
    speeds = [(row.speedup_vs_full, tokens) for tokens, row in _rows(report, "breakable") if row.speedup_vs_full]
    slowest = min(speeds, default=(1.0, 0))
    if slowest[0] < FAST_ENOUGH and any(one.source == "attention" for one in breaks):
        yield ReportWarning(
            code="copied-results",
            message=f"breakable takes {1 / slowest[0] - 1:.1%} longer than full at {slowest[1]} tokens",
            cause="each result of attention is copied to where the next segment reads it",
            remedy="pip install 'bcg-cli[cudnn]': where torch calls cuDNN, as on an H100, they are written there",
        )


def _without_a_time(report: ProfileReport) -> Iterator[ReportWarning]:
    remedies = {
        "fell back": ("it ran, but not as this mode", "don't use its numbers; the reason says what stands in its way"),
        "wrong": ("its result is not eager's", "run bcg replay-check, which names the first module that differs"),
    }
    for mode in report.modes:
        rows = [(bucket.tokens, row) for bucket in report.buckets for row in bucket.modes if row.mode == mode.mode]
        for status, (cause, remedy) in remedies.items():
            hit = [(tokens, row) for tokens, row in rows if row.status == status]
            if hit:
                verb = "is wrong" if status == "wrong" else status
                counts = ", ".join(str(tokens) for tokens, _ in hit)
                yield ReportWarning(
                    code=f"{status.replace(' ', '-')}",
                    message=f"{mode.mode} {verb} at {counts} tokens and has no time",
                    cause=f"{cause}: {hit[0][1].reason}",
                    remedy=remedy,
                )


def _one_after_another(report: ProfileReport) -> Iterator[ReportWarning]:
    if report.totals.rounds == "alternated" and len(report.modes) > 1:
        yield ReportWarning(
            code="alternated-rounds",
            message="the modes ran one after another, not in turns",
            cause="the processes of a sharded model run one mode at a time"
            if report.options.get("tp")
            else "memory does not hold the model once for each mode",
            remedy="compare two modes at a time with --modes, or a smaller model",
        )


def _spread(values: Sequence[float]) -> float:
    """Return the distance between the quartiles as a part of the median."""
    low, middle, high = statistics.quantiles(values, n=4)
    return (high - low) / middle if middle else 0.0


def _drift(values: Sequence[float]) -> float:
    third = len(values) // 3
    first, last = statistics.median(values[:third]), statistics.median(values[-third:])
    return last / first - 1 if first else 0.0
