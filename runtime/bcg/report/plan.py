"""The report of a dry run: what a capture would come to."""

from __future__ import annotations

import msgspec

from bcg.report.common import MappedReport
from bcg.report.findings import AutomaticBreak, BucketFitRow


class PlanBucket(msgspec.Struct, frozen=True, kw_only=True):
    """What one token count would take.

    Attributes:
        tokens: The bucket.
        pool_bytes: Estimate of a pool whose largest bucket this is; smaller buckets reuse it.
        used_bytes: The most of it that is in use at once.
        boundary_bytes: Sum of the breaks' results, which are not in use all at once.
    """

    tokens: int
    pool_bytes: int
    used_bytes: int
    boundary_bytes: int


class InputRow(msgspec.Struct, frozen=True, kw_only=True):
    """One static input: a fixed-address buffer, made for the largest bucket.

    Attributes:
        shape: With -1 at the token dimension.
    """

    name: str
    dtype: str
    shape: list[int]
    num_bytes: int


class PlanTotals(msgspec.Struct, frozen=True, kw_only=True):
    """What it all takes on a GPU.

    Attributes:
        weight_bytes: Parameters and buffers.
        input_bytes: Static inputs.
        pool_bytes: The pool of the largest bucket, which serves all.
        graph_bytes: Estimate of what the driver takes for the instantiated graphs of all buckets.
        needed_bytes: Sum of these.
        gpu: Name of the GPU that was asked about.
        gpu_bytes: Its memory.
    """

    weight_bytes: int
    input_bytes: int
    pool_bytes: int
    graph_bytes: int
    needed_bytes: int
    gpu: str | None = None
    gpu_bytes: int | None = None

    @property
    def fits(self) -> bool | None:
        """Whether it fits; None if no GPU was named."""
        return None if self.gpu_bytes is None else self.needed_bytes <= self.gpu_bytes


class PlanReport(MappedReport[PlanBucket, PlanTotals], frozen=True, kw_only=True, tag_field="kind", tag="plan"):
    """What ``bcg capture --dry-run`` found, without weights, data or GPU.

    Attributes:
        warnings: What the reader should know of how the model is sharded.
        automatic_breaks: Those that nobody asked for, and why they are there; none was tried.
        unknown: What a dry run can't know.
        workload: What the buckets do to the workload that they were chosen for, first, and other lists do.
    """

    inputs: list[InputRow]
    automatic_breaks: list[AutomaticBreak] = []
    unknown: list[str] = []
    workload: list[BucketFitRow] = []
