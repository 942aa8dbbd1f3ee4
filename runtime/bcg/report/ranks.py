"""What reports say of the ranks that a model is sharded over."""

from __future__ import annotations

from typing import Literal

import msgspec

from bcg.report.common import Verdict


class RankRow(msgspec.Struct, frozen=True, kw_only=True):
    """What one rank captured: sums over its buckets, steps of the largest.

    Attributes:
        device: Its own name.
        weight_bytes: Parameters that this rank holds.
    """

    rank: int
    device: str
    num_segments: int
    num_breaks: int
    capture_ms: float
    pool_bytes: int
    driver_bytes: int
    weight_bytes: int


class RankVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a rank's replays equal its own eager runs; over all buckets.

    Attributes:
        reasons: Why this is no match, one line each.
    """

    rank: int
    verdict: Verdict
    bitwise: bool
    max_rel_error: float | None = None
    num_replays: int = 0
    reasons: list[str] = []


class AssembledCheck(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the sharded model, replayed, computes what one process computes with the same seed.

    Sums over ranks round otherwise than sums in one process, so a mean is compared, not every bit.

    Attributes:
        mean_rel_error: Mean difference from the whole model's eager run, relative to its mean magnitude: the
            largest over the batches; None where that is no number, as with NaN in one of them.
        tolerance: What still matches.
        num_batches: Compared, one a bucket.
        differing_ranks: Those whose replay gave other bits than rank 0's.
    """

    verdict: Literal["match", "mismatch"]
    mean_rel_error: float | None
    tolerance: float
    num_batches: int
    differing_ranks: list[int] = []
