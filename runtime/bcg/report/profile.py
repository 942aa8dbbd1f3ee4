"""The report of ``bcg profile``."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from bcg.report.common import MappedReport, StepKind
from bcg.report.ranks import RankRow

ModeName: TypeAlias = Literal["eager", "full", "breakable", "compiled", "piecewise", "fused"]
ModeStatus: TypeAlias = Literal[
    "measured", "not capturable", "not available", "fell back", "wrong", "out of memory", "failed", "interrupted"
]

MODES: tuple[ModeName, ...] = ("eager", "full", "breakable", "compiled", "piecewise", "fused")
"""Every mode, in the order in which they are shown."""


class ModeRow(msgspec.Struct, frozen=True, kw_only=True):
    """One mode at one token count. Only a row with the status ``measured`` has times.

    Attributes:
        reason: One line, where the status is not ``measured``.
        p50_ms: Median of all steps: on a GPU between two device events, on the host device by the clock.
        p95_ms: 95th percentile of the same.
        round_ms: The median of each round, in the order of the rounds: the measured spread.
        tokens_per_s: Tokens of the bucket over `p50_ms`.
        host_us: Median time until the call of a step returned, the device not waited for.
        segments_ms: Device time of all segments in one replay; on the host device, clock time. Median of replays
            after the rounds, in which each step is timed by itself: what a replay takes so is more than `p50_ms` where
            the host sets the pace.
        breaks_ms: The same of all breaks.
        segments_host_us: Host time of launching the segments of one replay.
        breaks_host_us: Host time of its breaks.
        busy_share: Part of `p50_ms` in which at least one kernel ran, those of collectives, which also wait, left out;
            None where it can't be known.
        graph_launches: Graph launches of a step, counted by the device's profiler where there is one.
        kernel_launches: Kernels launched one by one in a step, outside graphs.
        compile_s: Start-up of this bucket in the compiler, as far as it can be told apart.
        warmup_s: The same in warm-up runs.
        capture_s: The same in the capture.
        pool_bytes: Growth of graph pools and static buffers.
        driver_bytes: Growth of device memory that no allocator knows of.
        transient_bytes: Most that a step allocates and frees again.
        memory_bytes: `pool_bytes` + `driver_bytes`; of eager, `transient_bytes`.
        max_abs_error: Largest difference to eager on the first replays.
        relative_error: Norm of the difference over the norm of eager's result.
        bitwise: Whether they were equal to the last bit.
        error_vs_exact: Norm of the difference to what eager gives in a wider dtype (float32; of a float32 model
            float64), over the norm of that; None for modes that run eager's own kernels, and where that can't be run.
        eager_error_vs_exact: The same of eager in the model's own dtype; the mode may be off twice as far.
        speedup_vs_eager: How many times as fast as eager: where modes took turns, eager's step of a round over this
            one's of the same round, and of that the median; else the ratio of `p50_ms`.
    """

    mode: ModeName
    status: ModeStatus
    reason: str | None = None
    p50_ms: float | None = None
    p95_ms: float | None = None
    round_ms: list[float] = []
    tokens_per_s: float | None = None
    host_us: float | None = None
    segments_ms: float | None = None
    breaks_ms: float | None = None
    segments_host_us: float | None = None
    breaks_host_us: float | None = None
    busy_share: float | None = None
    graph_launches: float | None = None
    kernel_launches: float | None = None
    compile_s: float = 0.0
    warmup_s: float = 0.0
    capture_s: float = 0.0
    pool_bytes: int = 0
    driver_bytes: int = 0
    transient_bytes: int | None = None
    memory_bytes: int = 0
    max_abs_error: float | None = None
    relative_error: float | None = None
    bitwise: bool | None = None
    error_vs_exact: float | None = None
    eager_error_vs_exact: float | None = None
    speedup_vs_eager: float | None = None
    speedup_vs_full: float | None = None
    speedup_vs_compiled: float | None = None
    speedup_vs_piecewise: float | None = None


class ProfileBucket(msgspec.Struct, frozen=True, kw_only=True):
    """All modes at one token count."""

    tokens: int
    modes: list[ModeRow]


class ModeSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One mode over all token counts.

    Attributes:
        status: ``measured`` if at least one bucket was.
        startup_s: From the loaded model until every bucket could be replayed: the three parts and what is left.
        peak_bytes: Most bytes that tensors held at once while it was measured, weights included. What a graph keeps
            in its pool without a tensor is not in it, so it is no measure of a mode's memory; None where unknown.
        num_graph_launches: Graph launches of all measured steps; 0 for eager.
        num_compilations: Graphs that the compiler made.
        num_skips: Times that the compiler gave up on a graph.
        notes: What the mode has to say for itself, such as the compiler's reasons for its skips.
    """

    mode: ModeName
    status: ModeStatus
    reason: str | None = None
    startup_s: float = 0.0
    compile_s: float = 0.0
    warmup_s: float = 0.0
    capture_s: float = 0.0
    pool_bytes: int = 0
    driver_bytes: int = 0
    memory_bytes: int = 0
    peak_bytes: int | None = None
    num_graph_launches: int = 0
    num_compilations: int = 0
    num_skips: int = 0
    notes: list[str] = []


class TimelineStep(msgspec.Struct, frozen=True, kw_only=True):
    """One segment or break of one replay; times count from the replay's start.

    Attributes:
        index: Among the segments, or among the breaks.
        name: The break's function, or the segment's first and last module.
        device_start_us: None on the host device.
    """

    kind: StepKind
    index: int
    name: str
    host_start_us: float
    host_us: float
    device_start_us: float | None = None
    device_us: float | None = None


class Timeline(msgspec.Struct, frozen=True, kw_only=True):
    """One replay, step by step: the one of median length among a few."""

    mode: ModeName
    tokens: int
    steps: list[TimelineStep]


class ProfileTotals(msgspec.Struct, frozen=True, kw_only=True):
    """How the run was done.

    Attributes:
        rounds: ``interleaved``: all modes lived at once and took turns in every round; ``alternated``: one after
            another, because memory does not hold them together.
        fastest: The mode with the lowest median at each token count, as ``"16": "fused"``.
    """

    num_rounds: int
    steps_per_round: int
    rounds: Literal["interleaved", "alternated"]
    fastest: dict[str, ModeName] = {}


class ProfileReport(
    MappedReport[ProfileBucket, ProfileTotals], frozen=True, kw_only=True, tag_field="kind", tag="profile"
):
    """What ``bcg profile`` found.

    Attributes:
        modes: A row a mode, in the order asked for.
        timelines: Replays of the modes that have segments, at the smallest and the largest bucket.
        ranks: A row from each process that the model is sharded over; empty for one process.
        map: Of ``breakable``, or of ``fused``.
    """

    modes: list[ModeSummary]
    timelines: list[Timeline] = []
    ranks: list[RankRow] = []

    @property
    def has_exact_errors(self) -> bool:
        """Whether a mode was compared with what eager gives in a wider dtype."""
        return any(row.error_vs_exact is not None for bucket in self.buckets for row in bucket.modes)

    @property
    def has_peaks(self) -> bool:
        """Whether it is known of a mode how much its tensors held at once."""
        return any(mode.peak_bytes is not None for mode in self.modes)
