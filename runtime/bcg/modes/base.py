"""What every mode can do.

A mode lives in a process of its own: made of a target, prepared once for all buckets, then run. Start-up is told
apart into compiling, warming up and capturing; memory into what stays (pool, driver) and what comes and goes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from bcg.errors import first_line
from bcg.inputs import Batch
from bcg.report import ModeName, ModeStatus
from bcg.runner import GraphRunner
from bcg.sweep import INPUT_SEED, is_out_of_memory
from bcg.target import Target, make_batch


@dataclass(frozen=True)
class Preparation:
    """What it took to make one bucket ready.

    Attributes:
        status: ``measured`` if it can be run as this mode; else why not, with `reason`.
        compile_s: Seconds in which the compiler worked, warm-up runs of the compiled code included where the two
            can't be told apart.
        transient_bytes: Most that one run allocates and frees again, where it is known.
    """

    tokens: int
    status: ModeStatus = "measured"
    reason: str | None = None
    compile_s: float = 0.0
    warmup_s: float = 0.0
    capture_s: float = 0.0
    pool_bytes: int = 0
    driver_bytes: int = 0
    transient_bytes: int | None = None


@dataclass(frozen=True)
class Counts:
    """What a mode has to show for itself.

    Attributes:
        num_compilations: Graphs that the compiler made.
        num_skips: Times that the compiler gave up on a CUDA graph.
        notes: In words.
    """

    num_compilations: int = 0
    num_skips: int = 0
    notes: list[str] = field(default_factory=list)


class Mode(Protocol):
    """A way to execute a target."""

    @property
    def name(self) -> ModeName:
        """What reports call it."""

    @property
    def runner(self) -> GraphRunner | None:
        """The captured segments, where the mode has any."""

    def prepare(self, buckets: Sequence[int]) -> list[Preparation]:
        """Make every bucket ready, the largest first; a bucket that can't be is a result, not an error."""

    def run(self, batch: Batch) -> Any:
        """Run a batch whose token count is a bucket; the result is valid until the next run."""

    def counts(self) -> Counts:
        """Say what happened so far."""

    def close(self) -> None:
        """Free graphs and memory."""


def bucket_batch(target: Target, tokens: int, seed: int = INPUT_SEED) -> Batch:
    """Make the seeded batch of one request that fills a bucket: the same in every mode's process."""
    return make_batch(target, (tokens,), torch.Generator(target.device).manual_seed(seed + tokens))


def failed(tokens: int, error: Exception, status: ModeStatus = "failed") -> Preparation:
    """Say that a bucket could not be made ready, and why."""
    if is_out_of_memory(error):
        status = "out of memory"
    return Preparation(tokens, status, f"{type(error).__name__}: {first_line(error)}"[:300])


def seconds(function: Callable[[], Any], synchronize: Callable[[], None]) -> float:
    """Return how long a call took until its work on the device was done."""
    started = time.perf_counter()
    function()
    synchronize()
    return time.perf_counter() - started
