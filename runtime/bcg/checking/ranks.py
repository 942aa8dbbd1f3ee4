"""A check of a sharded model: every rank against its own eager runs, and all together against the whole model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import msgspec
import torch
from torch import Tensor

from bcg.alignment import Alignment
from bcg.checking.compare import finite
from bcg.checking.verdicts import joined_verdict
from bcg.checking.verification import CHECK_SEED
from bcg.context import forward_context
from bcg.errors import CheckFailure, ModelError, first_line
from bcg.inputs import Batch
from bcg.nearness import LOOSE_MEAN, distance
from bcg.report import AssembledCheck, CheckReport, RankVerdict, ReportWarning
from bcg.runner import GraphRunner
from bcg.structure import storage_bytes, tensors_in
from bcg.target import Target, make_batch


def check_ranks(target: Target, report: CheckReport, load_whole: Callable[[], Target] | None) -> CheckReport:
    """Complete a rank's report by what only all ranks together can tell; to be called on all of them.

    Args:
        target: This rank's part.
        report: What `check` found on this rank.
        load_whole: Loads the same model in one piece; None where there is no such thing.

    Returns:
        On every rank the same: rank 0's report with all ranks' verdicts, and the overall verdict.
    """
    ranks = target.alignment
    assert ranks is not None
    rows = ranks.exchange(_own_verdict(ranks.rank, report))
    assembled, warnings = _compare_assembled(
        target, ranks, load_whole, [row.tokens for row in report.buckets if row.num_launches]
    )
    verdicts = [row.verdict for row in rows] + ([] if assembled is None else [assembled.verdict])
    return msgspec.structs.replace(
        report,
        verdict=joined_verdict(verdicts),
        ranks=rows,
        assembled=assembled,
        warnings=[*report.warnings, *warnings],
    )


def rank_failure(report: CheckReport) -> CheckFailure | None:
    """Return what ranks, or all together, mean as an error, a mismatch before what is unclear; None if all match."""
    for row in report.ranks:
        if row.verdict == "mismatch":
            return CheckFailure(f"rank {row.rank}: replay is not its own eager: {_first_reason(row)}")
    if report.assembled is not None and report.assembled.verdict == "mismatch":
        return _assembled_failure(report.assembled)
    for row in report.ranks:
        if row.verdict == "inconclusive":
            return CheckFailure(f"the check is inconclusive on rank {row.rank}: {_first_reason(row)}")
    return None


def _first_reason(row: RankVerdict) -> str:
    return next(iter(row.reasons), "see the report")


def _assembled_failure(found: AssembledCheck) -> CheckFailure:
    if found.differing_ranks:
        return CheckFailure(f"rank {found.differing_ranks[0]} computes other bits than rank 0")
    error = "NaN or infinity" if found.mean_rel_error is None else f"{found.mean_rel_error:.2g}"
    return CheckFailure(
        f"all ranks together are not one process: mean difference {error}, at most {found.tolerance:g} expected",
        hint="the sharding, or a collective, computes something else than the whole model",
    )


def _own_verdict(rank: int, report: CheckReport) -> RankVerdict:
    errors = [bucket.max_rel_error for bucket in report.buckets]
    known = [error for error in errors if error is not None]
    return RankVerdict(
        rank=rank,
        verdict=report.verdict,
        bitwise=all(bucket.bitwise for bucket in report.buckets),
        max_rel_error=max(known) if known and len(known) == len(errors) else None,
        num_replays=sum(bucket.num_replays for bucket in report.buckets),
        reasons=[f"{bucket.tokens} tokens: {reason}" for bucket in report.buckets for reason in bucket.reasons],
    )


def _compare_assembled(
    target: Target, ranks: Alignment, load_whole: Callable[[], Target] | None, buckets: Sequence[int]
) -> tuple[AssembledCheck | None, list[ReportWarning]]:
    if load_whole is None or not buckets:
        return None, [_not_compared("there is no whole model to compare with")]
    batches = [_batch(target, tokens) for tokens in buckets]
    runner = GraphRunner(target)
    runner.capture(buckets)
    outputs = [[tensor.to("cpu", copy=True) for tensor in tensors_in(runner.replay(batch))] for batch in batches]
    runner.reset()
    digests = ranks.exchange(_digest(outputs))
    errors: list[float] | str | None = None
    if ranks.rank == 0:
        try:
            whole = load_whole()
            errors = [_error(whole, batch, output) for batch, output in zip(batches, outputs, strict=True)]
        except ModelError as failed:
            errors = failed.message
        except torch.OutOfMemoryError as failed:
            errors = f"the whole model does not fit into the memory of one process: {first_line(failed)}"
    found = ranks.exchange(errors)[0]
    if isinstance(found, str):
        return None, [_not_compared(found)]
    dtype = next(tensor.dtype for output in outputs for tensor in output)
    tolerance, error = LOOSE_MEAN[dtype.itemsize >= 4], max(found)
    differing = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
    return AssembledCheck(
        verdict="match" if error <= tolerance and not differing else "mismatch",
        mean_rel_error=finite(error),
        tolerance=tolerance,
        num_batches=len(batches),
        differing_ranks=differing,
    ), []


def _not_compared(cause: str) -> ReportWarning:
    return ReportWarning(
        code="not-compared-whole",
        message="the sharded model was not compared with one process",
        cause=cause,
        remedy="check a smaller model of the same architecture as well",
    )


def _batch(target: Target, tokens: int) -> Batch:
    generator = torch.Generator(target.device).manual_seed(CHECK_SEED + tokens)
    return make_batch(target, (tokens,), generator)


def _digest(outputs: list[list[Tensor]]) -> str:
    digest = hashlib.sha256()
    for output in outputs:
        for tensor in output:
            digest.update(storage_bytes(tensor.contiguous()).numpy().tobytes())
    return digest.hexdigest()


def _error(whole: Target, batch: Batch, output: list[Tensor]) -> float:
    """Return the mean difference relative to the mean magnitude; infinite where something is not finite."""
    inputs = {name: value.to(whole.device) for name, value in batch.inputs.items()}
    with forward_context(batch.context()):
        expected = [tensor.cpu() for tensor in tensors_in(whole(inputs))]
    return max(distance(one, other) for one, other in zip(expected, output, strict=True))
