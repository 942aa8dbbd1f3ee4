"""The model of the pool's allocator, and arenas."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bcg import eager_on_graph
from bcg.layout import MIB, PoolEvent, peak_bytes, plan_arenas, reserved_bytes
from bcg.rehearsal import rehearse


def allocations(*sizes: float) -> list[PoolEvent]:
    return [PoolEvent(index, int(size * MIB)) for index, size in enumerate(sizes)]


@pytest.mark.parametrize(
    ("sizes", "reserved"),
    [
        ((0.1,), 2),
        ((0.4, 0.4, 0.4, 0.4), 2),
        ((1.0, 1.0), 2),
        ((1.5,), 20),
        ((9, 9), 20),
        ((9, 9, 3), 40),
        ((10,), 10),
        ((32, 33), 66),
        ((0.1, 5, 50), 72),
    ],
)
def test_segments_have_the_allocators_sizes(sizes: tuple[float, ...], reserved: int) -> None:
    assert reserved_bytes(allocations(*sizes)) == reserved * MIB


def test_a_freed_block_is_split_and_joined_again() -> None:
    events = [
        PoolEvent(1, 64 * MIB),
        PoolEvent(1, 0),
        PoolEvent(2, 32 * MIB),
        PoolEvent(3, 32 * MIB),
        PoolEvent(2, 0),
        PoolEvent(3, 0),
        PoolEvent(4, 64 * MIB),
    ]
    assert reserved_bytes(events) == 64 * MIB
    assert peak_bytes(events) == 64 * MIB


def test_blocks_that_came_separately_are_not_joined_and_an_arena_helps() -> None:
    events = [*allocations(32, 32), PoolEvent(0, 0), PoolEvent(1, 0), PoolEvent(9, 64 * MIB)]
    assert reserved_bytes(events) == 128 * MIB
    assert plan_arenas(events) == (64 * MIB,)
    assert reserved_bytes(events, plan_arenas(events)) == 64 * MIB


def test_no_arena_where_it_saves_nothing() -> None:
    assert plan_arenas(allocations(32, 64)) == ()
    assert plan_arenas([]) == ()


class Model(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return self.attend(torch.cat([x, x])) + 1

    @eager_on_graph
    def attend(self, x: Tensor) -> Tensor:
        scores = torch.outer(x, x)
        return scores.sum(0)


def test_a_rehearsal_tells_what_the_segments_allocate_and_what_breaks_return() -> None:
    model, x = Model(), torch.ones(1000)
    events = rehearse(lambda: model(x), "cpu")
    assert [num_bytes for _, num_bytes in events] == [8000, 8000, 0, 8000]
    assert events[2].storage == events[0].storage
    assert rehearse(lambda: model(x), "cuda") == []
