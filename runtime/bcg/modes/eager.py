"""`eager`: every operation launched by Python, one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bcg.context import forward_context
from bcg.device import find_device
from bcg.inputs import Batch
from bcg.modes.base import Counts, Preparation, bucket_batch, failed, seconds
from bcg.report import ModeName
from bcg.target import Target


class Eager:
    """The target as it is; what all other modes are checked against."""

    name: ModeName = "eager"
    runner = None

    def __init__(self, target: Target) -> None:
        self._target = target
        self._device = find_device(target.device)

    def prepare(self, buckets: Sequence[int]) -> list[Preparation]:
        return [self._warm_up(tokens) for tokens in sorted(buckets, reverse=True)]

    def _warm_up(self, tokens: int) -> Preparation:
        batch = bucket_batch(self._target, tokens)
        try:
            warmup_s = seconds(lambda: self.run(batch), self._device.synchronize)
            peak_bytes, _ = self._device.peak_bytes(lambda: self.run(batch))
        except Exception as error:  # noqa: BLE001 - a bucket that can't run is a row of the report
            return failed(tokens, error)
        return Preparation(tokens, warmup_s=warmup_s, transient_bytes=peak_bytes)

    def run(self, batch: Batch) -> Any:
        with forward_context(batch.context()):
            return self._target(batch.inputs)

    def counts(self) -> Counts:
        return Counts()

    def close(self) -> None:
        return None
