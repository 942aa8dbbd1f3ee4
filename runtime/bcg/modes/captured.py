"""What the modes that replay captured segments share: `full`, `breakable` and `fused`."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from bcg.errors import CaptureError
from bcg.inputs import Batch
from bcg.modes.base import Counts, Preparation
from bcg.report import ModeName
from bcg.runner import GraphRunner
from bcg.sweep import BucketCapture
from bcg.target import Target


class Captured:
    """A `GraphRunner` as a mode.

    Attributes:
        results: What the runner's capture returned.
    """

    name: ModeName

    def __init__(self, target: Target, *, tape: bool = True) -> None:
        self.target = target
        self.runner = GraphRunner(target, tape=tape)
        self.results: list[BucketCapture] = []

    def surroundings(self) -> AbstractContextManager[None]:
        """Enter what the mode's captures need around them."""
        return contextlib.nullcontext()

    def prepare(self, buckets: Sequence[int]) -> list[Preparation]:
        try:
            with self.surroundings():
                self.runner.capture(buckets, on_bucket=self.results.append)
        except CaptureError as error:
            return self._prepared(buckets, error)
        return self._prepared(buckets, None)

    def _prepared(self, buckets: Sequence[int], error: CaptureError | None) -> list[Preparation]:
        done = {result.tokens: _preparation(result) for result in self.results}
        reason = None if error is None else error.message[:400]
        return [
            done.get(tokens) or Preparation(tokens, "not capturable", reason)
            for tokens in sorted(set(buckets), reverse=True)
        ]

    def run(self, batch: Batch) -> Any:
        return self.runner.replay(batch)

    def counts(self) -> Counts:
        notes = [f"{self.runner.num_fallbacks} batches ran eagerly"] if self.runner.num_fallbacks else []
        return Counts(notes=notes)

    def close(self) -> None:
        self.runner.reset()


def _preparation(result: BucketCapture) -> Preparation:
    if result.status == "out of memory":
        return Preparation(result.tokens, "out of memory", result.error)
    if result.status == "failed":
        return Preparation(result.tokens, "not capturable", result.error)
    return Preparation(
        result.tokens,
        warmup_s=result.warmup_ms / 1e3,
        capture_s=result.capture_ms / 1e3,
        pool_bytes=result.pool_bytes,
        driver_bytes=result.driver_bytes,
        transient_bytes=result.eager_peak_bytes,
    )
