"""What a profile and its workers say to each other: one JSON line a command, one a reply."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from bcg.child import Failed
from bcg.distributed.member import DEFAULT_TIMEOUT_S
from bcg.modes.base import Counts, Preparation
from bcg.report import CaptureReport, Environment, ModelInfo, ModeName, ReportWarning, Timeline
from bcg.words import TargetWords


class Load(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """Make the target and the mode."""

    mode: ModeName
    words: TargetWords
    nvtx: bool
    rank_timeout_s: float = DEFAULT_TIMEOUT_S


class Prepare(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """Make every bucket ready, and check the first replays against eager."""

    buckets: list[int]


class Round(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """Measure some steps of one bucket."""

    tokens: int
    num_steps: int


class Look(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """Look into a step of each of these buckets: launches, busy share, segments and breaks."""

    buckets: list[int]


class Trace(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """Write a trace of one step of each of these buckets."""

    path: str
    buckets: list[int]


class Close(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """Say what happened, and end."""


class Loaded(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """The target is there.

    Attributes:
        max_tokens: The most that the model takes; None where nothing says so.
        free_bytes: Device memory that is left now that the weights are there.
    """

    environment: Environment
    model: ModelInfo
    warnings: list[ReportWarning]
    max_tokens: int | None = None
    weight_bytes: int
    free_bytes: int


class Errors(msgspec.Struct, frozen=True, kw_only=True):
    """How far the first replays of a bucket are from eager (see `bcg.report.ModeRow`); None where nobody can tell."""

    max_abs_error: float | None = None
    relative_error: float | None = None
    bitwise: bool | None = None
    error_vs_exact: float | None = None
    eager_error_vs_exact: float | None = None


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """One bucket: how it was made ready, and how its first replays compare.

    Attributes:
        preparation: With the status that the comparison leaves it.
    """

    preparation: Preparation
    errors: Errors = Errors()


class AllPrepared(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """Every bucket is ready, or is not for a reason.

    Attributes:
        startup_s: Wall time of all of it.
        capture: What was captured, for the map; None where the mode has no segments.
        warnings: What a reader should know of how the first replays were judged.
    """

    buckets: list[Prepared]
    startup_s: float
    capture: CaptureReport | None = None
    warnings: list[ReportWarning] = []


class Measured(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """Steps, in the order in which they ran."""

    step_ms: list[float]
    host_us: list[float]
    peak_bytes: int | None = None


class Split(msgspec.Struct, frozen=True, kw_only=True):
    """How replays divide into segments and breaks (see `bcg.report.ModeRow`): medians over several."""

    segments_ms: float
    breaks_ms: float
    segments_host_us: float
    breaks_host_us: float


class Looked(msgspec.Struct, frozen=True, kw_only=True):
    """What a look into one bucket found.

    Attributes:
        busy_ms: Time of one step in which at least one kernel ran; None where it can't be known.
        graph_launches: Of one step.
        kernel_launches: Of one step; None where it can't be known.
        split: None for a mode without segments, and so is the timeline.
        timeline: The replay of median length among those that were split.
    """

    busy_ms: float | None = None
    graph_launches: float | None = None
    kernel_launches: float | None = None
    split: Split | None = None
    timeline: Timeline | None = None


class AllLooked(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """What was found, in the order of the command's buckets."""

    buckets: list[Looked]


class Traced(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """The trace is written."""


class Closed(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """What the mode counted."""

    counts: Counts


Command: TypeAlias = Load | Prepare | Round | Look | Trace | Close
Reply: TypeAlias = Loaded | AllPrepared | Measured | AllLooked | Traced | Closed | Failed
