"""A mode on the bench: in which order its buckets are looked into."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from bcg.profile.bench import Bench
from bcg.profile.messages import Looked


class Noted(Bench):
    """A bench without a mode, that notes in which order it looks into buckets."""

    def __init__(self, *, is_device: bool) -> None:
        mode: Any = SimpleNamespace(runner=None)
        meter: Any = SimpleNamespace(is_device=is_device)
        ranges: Any = SimpleNamespace(active=False)
        super().__init__(mode, {}, meter, ranges)
        self.done: list[tuple[str, int]] = []

    def _timed(self, tokens: int) -> Looked:
        self.done.append(("timed", tokens))
        return Looked(busy_ms=tokens)

    def _counted(self, tokens: int, timed: Looked) -> Looked:
        self.done.append(("profiled", tokens))
        return timed


@pytest.mark.parametrize("is_device", [True, False])
def test_all_steps_are_timed_before_the_first_profiler(is_device: bool) -> None:
    """A profiler makes later launches of its process slower: seen on a GPU, up to four times as long on the host."""
    bench = Noted(is_device=is_device)
    found = bench.look([16, 64])
    assert [one.busy_ms for one in found] == [16, 64]
    timed, profiled = [("timed", 16), ("timed", 64)], [("profiled", 16), ("profiled", 64)]
    assert bench.done == (timed + profiled if is_device else timed)
