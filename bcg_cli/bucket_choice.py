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
from bcg.sizes import parse_bytes
from bcg.workload import Workload, choose_buckets, choose_within, fit, read_workload


@dataclass(frozen=True)
class MemoryEstimate:
    """What buckets take: one pool for all, and graphs for each.

    Attributes:
        pool_bytes: Bytes of a pool whose largest bucket has that many tokens.
        bytes_per_bucket: What the graphs of one bucket take outside the pool.
        max_tokens: The most that the model takes; None where nothing says so.
    """

    pool_bytes: Callable[[int], int]
    bytes_per_bucket: int
    max_tokens: int | None

    def total(self, buckets: Sequence[int]) -> int:
        """Bytes of all buckets."""
        return self.pool_bytes(max(buckets)) + self.bytes_per_bucket * len(buckets)


@dataclass(frozen=True)
class BucketWords:
    """What the command line says about buckets; checked, and read, before any work."""

    tokens: tuple[int, ...] | None
    workload: Workload | None
    num_buckets: int | None
    budget: int | None


@dataclass(frozen=True)
class BucketChoice:
    """The buckets of a run, once it is known what its model takes.

    Attributes:
        words: What the command line says.
        budgeted: What the buckets within a memory budget do to the workload, and what the engines' ladder does.
    """

    words: BucketWords
    budgeted: list[BucketFitRow] = field(default_factory=list)

    def for_model(self, device_type: str, max_tokens: int | None) -> tuple[int, ...]:
        """Return the token counts for a model that takes at most `max_tokens`.

        Raises:
            UsageError: The model takes no step of the workload.
        """
        if self.words.workload is None:
            return self.words.tokens or default_buckets(device_type, max_tokens)
        if self.budgeted:
            return tuple(self.budgeted[0].buckets)
        return choose_buckets(
            self.words.workload, self.words.num_buckets or len(default_buckets(device_type)), max_tokens
        )

    def fits(self, buckets: Sequence[int]) -> list[BucketFitRow]:
        """Return what these, from `for_model`, do to the workload, if there is one."""
        if self.words.workload is None:
            return []
        return self.budgeted or _fit_rows(self.words.workload, buckets)

    def left_to_eager(self, max_tokens: int | None) -> str | None:
        """Return in words which steps of the workload are larger than what the model takes, if any are."""
        workload = self.words.workload
        if workload is None:
            return None
        num_beyond = workload.num_steps - workload.up_to(max_tokens).num_steps
        if num_beyond == 0:
            return None
        return (
            f"{num_beyond:,} of {workload.num_steps:,} steps of the workload have more than {max_tokens} tokens, the "
            "most that the model takes in one request: no bucket holds them, they run eagerly"
        )


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


def choose(words: BucketWords, estimate: Callable[[], AbstractContextManager[MemoryEstimate]]) -> BucketChoice:
    """Choose the buckets as far as that can be done before the model is there.

    Args:
        words: From `read_bucket_words`.
        estimate: Makes the estimate, if a budget asks for one; it holds inside the ``with`` block.

    Raises:
        UsageError: The budget holds no bucket.
    """
    if words.workload is None or words.budget is None:
        return BucketChoice(words)
    with estimate() as memory:
        within = words.workload.up_to(memory.max_tokens)
        chosen = choose_within(within, words.budget, memory.pool_bytes, memory.bytes_per_bucket)
        rows = _fit_rows(words.workload, chosen)
        return BucketChoice(words, [_with_memory(row, memory) for row in rows])


def _with_memory(row: BucketFitRow, memory: MemoryEstimate) -> BucketFitRow:
    return msgspec.structs.replace(row, memory_bytes=memory.total(row.buckets))


def _fit_rows(workload: Workload, chosen: Sequence[int]) -> list[BucketFitRow]:
    return [fit(workload, chosen), fit(workload, engine_ladder(), "engines' ladder")]
