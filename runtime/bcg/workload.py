"""Which buckets fit a workload: the list that wastes least padding, exactly, against the engines' ladder."""

from __future__ import annotations

import functools
import json
import math
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from bcg.buckets import MAX_TOKENS
from bcg.errors import UsageError
from bcg.report import BucketFitRow
from bcg.sizes import format_size
from bcg.text_files import read_text

_HINT = 'one token count a line, or JSON lines such as {"tokens": 128}'


@dataclass(frozen=True)
class Workload:
    """Observed token counts of steps.

    Attributes:
        tokens: The distinct counts, ascending.
        steps: How often each was seen.
    """

    tokens: tuple[int, ...]
    steps: tuple[int, ...]

    @classmethod
    def of(cls, counts: Iterable[int]) -> Workload:
        """Count observed token counts."""
        counted = sorted(Counter(counts).items())
        return cls(tuple(tokens for tokens, _ in counted), tuple(steps for _, steps in counted))

    @property
    def num_steps(self) -> int:
        return sum(self.steps)

    @property
    def num_tokens(self) -> int:
        return sum(tokens * steps for tokens, steps in zip(self.tokens, self.steps, strict=True))

    def up_to(self, max_tokens: int | None) -> Workload:
        """Return the steps of at most so many tokens; all where that is None.

        Raises:
            UsageError: There is none.
        """
        if max_tokens is None:
            return self
        number = bisect_right(self.tokens, max_tokens)
        if number == 0:
            raise UsageError(
                f"no step of the workload has at most {max_tokens} tokens", hint="name the buckets with --tokens"
            )
        return Workload(self.tokens[:number], self.steps[:number])


def read_workload(path: Path) -> Workload:
    """Read a file of token counts: one number a line, or JSON lines with a ``tokens`` entry.

    Raises:
        UsageError: It can't be read, holds no count, or a line is neither; the message names the line.
    """
    lines = read_text(path, "workload", "is", hint=_HINT).splitlines()
    counts = [_count(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not counts:
        raise UsageError(f"workload {path} holds no token count", hint=_HINT)
    return Workload.of(counts)


def _count(line: str, place: str) -> int:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, dict):
        value = value.get("tokens")
    if not isinstance(value, int) or isinstance(value, bool):
        raise UsageError(f"{place}: expected a token count, got {line.strip()[:40]!r}", hint=_HINT)
    if not 1 <= value <= MAX_TOKENS:
        raise UsageError(f"{place}: a token count is from 1 to {MAX_TOKENS:,}, got {value:,}", hint=_HINT)
    return value


def fit(workload: Workload, buckets: Sequence[int], name: str = "chosen") -> BucketFitRow:
    """Say what a bucket list of that name does to a workload."""
    ordered = sorted(buckets)
    padded = real = replayed = 0
    used = set()
    for tokens, steps in zip(workload.tokens, workload.steps, strict=True):
        index = bisect_left(ordered, tokens)
        if index == len(ordered):
            break
        used.add(index)
        padded += (ordered[index] - tokens) * steps
        real += tokens * steps
        replayed += steps
    return BucketFitRow(
        name=name,
        buckets=ordered,
        padded_tokens=padded,
        real_tokens=real,
        replayed_steps=replayed,
        num_steps=workload.num_steps,
        used_buckets=len(used),
    )


@functools.cache
def choose_buckets(workload: Workload, num_buckets: int, max_tokens: int | None = None) -> tuple[int, ...]:
    """Choose the buckets that pad a workload least, exactly.

    An optimal list needs no count that was not observed. With the counts ``t_1 < … < t_m``, dynamic programming
    over the number of buckets chooses, for each ``t_j`` as the largest one, the bucket below it; the best choice
    moves up with ``j``, so that each round is halved recursively (divide-and-conquer optimization).

    Args:
        workload: What was observed.
        num_buckets: At most so many.
        max_tokens: Leave larger counts to eager.

    Returns:
        Ascending token counts; the largest is the largest count (up to `max_tokens`), so that all of those replay.

    Raises:
        UsageError: No count is small enough, or `num_buckets` is below 1.
    """
    if num_buckets < 1:
        raise UsageError(f"at least one bucket is needed, got {num_buckets}")
    workload = workload.up_to(max_tokens)
    counts = workload.tokens
    steps_up_to = [0, *accumulate(workload.steps)]

    def rows(below: int, top: int) -> int:
        """Rows that a bucket at count number `top` computes for all counts above number `below`."""
        return counts[top - 1] * (steps_up_to[top] - steps_up_to[below])

    size = len(counts)
    best = [0.0, *[math.inf] * size]
    chosen: list[list[int]] = []
    for _ in range(min(num_buckets, size)):
        best, below = _next_round(best, rows, size)
        chosen.append(below)
    buckets = []
    top = size
    for below in reversed(chosen):
        if top == 0:
            break
        buckets.append(counts[top - 1])
        top = below[top]
    return tuple(reversed(buckets))


def _next_round(best: list[float], rows: Callable[[int, int], int], size: int) -> tuple[list[float], list[int]]:
    """Allow one more bucket: the least rows for the first `top` counts, and the count below each top bucket."""
    least = [0.0, *[math.inf] * size]
    below = [0] * (size + 1)
    ranges = [(1, size, 0, size - 1)]
    while ranges:
        low, high, first, last = ranges.pop()
        if low > high:
            continue
        top = (low + high) // 2
        choice = min(range(first, min(last, top - 1) + 1), key=lambda under: best[under] + rows(under, top))
        least[top], below[top] = best[choice] + rows(choice, top), choice
        ranges += [(low, top - 1, first, choice), (top + 1, high, choice, last)]
    return least, below


def choose_within(
    workload: Workload, budget_bytes: int, pool_bytes: Callable[[int], int], bytes_per_bucket: int
) -> tuple[int, ...]:
    """Choose the buckets that pad a workload least within a budget of memory.

    All buckets share one pool, which is as large as the largest one needs; each further bucket costs its
    graphs. As many steps as possible replay; among those lists the one with least padding is taken.

    Args:
        workload: What was observed.
        budget_bytes: For the pool and all graphs.
        pool_bytes: Bytes of a pool whose largest bucket has that many tokens; must not fall with the tokens.
        bytes_per_bucket: What the graphs of one bucket take outside the pool.

    Raises:
        UsageError: Not even the smallest observed count fits.
    """

    def fits(tokens: int) -> bool:
        return pool_bytes(tokens) + bytes_per_bucket <= budget_bytes

    low, high = 0, len(workload.tokens)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if fits(workload.tokens[middle]) else (low, middle)
    if low == 0:
        needed = pool_bytes(workload.tokens[0]) + bytes_per_bucket
        raise UsageError(
            f"a memory budget of {format_size(budget_bytes)} holds no bucket: {workload.tokens[0]} tokens, the fewest "
            f"of the workload, need {format_size(needed)} on a GPU, {format_size(bytes_per_bucket)} of it for graphs",
            hint="give a larger --memory-budget",
        )
    largest = workload.tokens[low - 1]
    affordable = (budget_bytes - pool_bytes(largest)) // max(bytes_per_bucket, 1)
    return choose_buckets(workload, min(affordable, low), max_tokens=largest)
