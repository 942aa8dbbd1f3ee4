"""Which buckets the command line means: named, for a workload, or by default."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from bcg.buckets import default_buckets, engine_ladder, parse_buckets
from bcg.errors import UsageError
from bcg.report import BucketFitRow
from bcg.workload import Workload, choose_buckets, choose_within, fit, parse_bytes, read_workload


@dataclass(frozen=True)
class MemoryEstimate:
    """What buckets take: one pool for all, and graphs for each.

    Attributes:
        pool_bytes: Bytes of a pool whose largest bucket has that many tokens.
        bytes_per_bucket: What the graphs of one bucket take outside the pool.
    """

    pool_bytes: Callable[[int], int]
    bytes_per_bucket: int

    def total(self, buckets: Sequence[int]) -> int:
        """Bytes of all buckets."""
        return self.pool_bytes(max(buckets)) + self.bytes_per_bucket * len(buckets)


@dataclass(frozen=True)
class BucketChoice:
    """The buckets of a run.

    Attributes:
        named: Token counts; None for the default of device and model.
        fits: What they do to the workload that they were chosen for, and what the engines' ladder does.
    """

    named: tuple[int, ...] | None = None
    fits: list[BucketFitRow] = field(default_factory=list)

    def for_model(self, device_type: str, max_tokens: int | None) -> tuple[int, ...]:
        """Return the token counts for a model that takes at most `max_tokens`."""
        return self.named or default_buckets(device_type, max_tokens)


@dataclass(frozen=True)
class BucketWords:
    """What the command line says about buckets; checked, and read, before any work."""

    tokens: tuple[int, ...] | None
    workload: Workload | None
    num_buckets: int | None
    budget: int | None


def read_bucket_words(
    tokens: str | None, workload: Path | None, num_buckets: int | None, memory_budget: str | None
) -> BucketWords:
    """Check the options about buckets, and read the workload.

    Raises:
        UsageError: They contradict each other, or one can't be read.
    """
    if tokens is not None and workload is not None:
        raise UsageError("--tokens and --workload both say which buckets", hint="give one of them")
    for option, value in (("--buckets", num_buckets), ("--memory-budget", memory_budget)):
        if value is not None and workload is None:
            raise UsageError(f"{option} chooses buckets for a workload, and there is none", hint="give --workload FILE")
    if num_buckets is not None and memory_budget is not None:
        raise UsageError("--buckets and --memory-budget both say how many buckets", hint="give one of them")
    return BucketWords(
        tokens=None if tokens is None else parse_buckets(tokens),
        workload=None if workload is None else read_workload(workload),
        num_buckets=num_buckets,
        budget=None if memory_budget is None else parse_bytes(memory_budget),
    )


def choose(
    words: BucketWords, device_type: str, estimate: Callable[[], AbstractContextManager[MemoryEstimate]]
) -> BucketChoice:
    """Choose the buckets.

    Args:
        words: From `read_bucket_words`.
        device_type: As in `torch.device.type`.
        estimate: Makes the estimate, if a budget asks for one; it holds inside the ``with`` block.

    Raises:
        UsageError: The budget holds no bucket.
    """
    if words.workload is None:
        return BucketChoice(words.tokens)
    if words.budget is None:
        chosen = choose_buckets(words.workload, words.num_buckets or len(default_buckets(device_type)))
        return BucketChoice(chosen, _fit_rows(words.workload, chosen))
    with estimate() as memory:
        chosen = choose_within(words.workload, words.budget, memory.pool_bytes, memory.bytes_per_bucket)
        rows = _fit_rows(words.workload, chosen)
        return BucketChoice(chosen, [_with_memory(row, memory) for row in rows])


def _with_memory(row: BucketFitRow, memory: MemoryEstimate) -> BucketFitRow:
    return msgspec.structs.replace(row, memory_bytes=memory.total(row.buckets))


def _fit_rows(workload: Workload, chosen: Sequence[int]) -> list[BucketFitRow]:
    return [_fit_row("chosen", workload, chosen), _fit_row("engines' ladder", workload, engine_ladder())]


def _fit_row(name: str, workload: Workload, buckets: Sequence[int]) -> BucketFitRow:
    found = fit(workload, buckets)
    return BucketFitRow(
        name=name,
        buckets=list(found.buckets),
        padded_tokens=found.padded_tokens,
        real_tokens=found.real_tokens,
        replayed_steps=found.replayed_steps,
        num_steps=found.num_steps,
        used_buckets=found.used_buckets,
    )
