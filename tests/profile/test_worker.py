"""The process that runs one mode of a profile: what it does in which order."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from bcg.profile.messages import Look, Looked
from bcg.profile.worker import Worker


class Unloaded(Worker):
    """A worker without a model, that notes in which order it looks into buckets."""

    def __init__(self, *, is_device: bool) -> None:
        self._meter: Any = SimpleNamespace(is_device=is_device)
        self._ranges: Any = SimpleNamespace(active=False)
        self.done: list[tuple[str, int]] = []

    def _end_measuring(self) -> None:
        pass

    def _timed(self, tokens: int) -> Looked:
        self.done.append(("timed", tokens))
        return Looked(busy_ms=tokens)

    def _counted(self, tokens: int, timed: Looked) -> Looked:
        self.done.append(("profiled", tokens))
        return timed


@pytest.mark.parametrize("is_device", [True, False])
def test_all_steps_are_timed_before_the_first_profiler(is_device: bool) -> None:
    """A profiler makes later launches of its process slower: seen on a GPU, up to four times as long on the host."""
    worker = Unloaded(is_device=is_device)
    found = worker.look(Look(buckets=[16, 64]))
    assert [one.busy_ms for one in found.buckets] == [16, 64]
    timed, profiled = [("timed", 16), ("timed", 64)], [("profiled", 16), ("profiled", 64)]
    assert worker.done == (timed + profiled if is_device else timed)
