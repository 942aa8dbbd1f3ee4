"""The report of ``bcg capture``."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from bcg.report.common import MappedReport
from bcg.report.findings import AutomaticBreak, BucketFitRow, Card
from bcg.report.ranks import RankRow

BucketStatus: TypeAlias = Literal["captured", "out of memory", "failed"]


class CaptureBucket(msgspec.Struct, frozen=True, kw_only=True):
    """What the capture of one token count took.

    Attributes:
        tokens: The bucket.
        num_kernels: Kernel nodes in all segments; recorded operations on the host device.
        warmup_ms: Time of the eager runs before the capture.
        capture_ms: Time of the captured forward.
        pool_bytes: Growth of the graph pool while this bucket was captured.
        driver_bytes: Device memory taken in the same time that no allocator knows of.
        boundary_bytes: Sum of the breaks' results at fixed addresses. They lie in the pool and share its memory where
            they are not in use at once, so it may be more than the pool.
        eager_peak_bytes: Peak activation memory of the same bucket in eager, above the weights, if known.
        error: One line, where the status is not ``captured``.
    """

    tokens: int
    status: BucketStatus
    num_segments: int = 0
    num_breaks: int = 0
    num_kernels: int = 0
    warmup_ms: float = 0.0
    capture_ms: float = 0.0
    pool_bytes: int = 0
    driver_bytes: int = 0
    boundary_bytes: int = 0
    eager_peak_bytes: int | None = None
    error: str | None = None


class CaptureTotals(msgspec.Struct, frozen=True, kw_only=True):
    """Sums over the captured buckets; `eager_peak_bytes` is the largest, not a sum.

    Buckets share the pool, so the sum of their boundaries, `boundary_bytes`, is no memory that anything takes.
    """

    num_captured: int
    capture_ms: float
    pool_bytes: int
    driver_bytes: int
    boundary_bytes: int
    eager_peak_bytes: int | None = None


class CaptureReport(
    MappedReport[CaptureBucket, CaptureTotals], frozen=True, kw_only=True, tag_field="kind", tag="capture"
):
    """What ``bcg capture`` found.

    Attributes:
        automatic_breaks: Those that nobody asked for, and why they are there.
        cards: Findings that are no obstacle to the capture but may make a replay wrong.
        ranks: A row from each process that the model is sharded over; empty for one process.
        workload: What the buckets do to the workload that they were chosen for, first, and other lists do.
    """

    ranks: list[RankRow] = []
    automatic_breaks: list[AutomaticBreak] = []
    cards: list[Card] = []
    workload: list[BucketFitRow] = []
