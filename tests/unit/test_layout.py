"""The model of the pool's allocator, and arenas."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bcg import eager_on_graph
from bcg.layout import PoolEvent, peak_bytes, plan_arenas, reserved_bytes
from bcg.rehearsal import rehearse
from bcg.sizes import MIB


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
    events = rehearse(lambda module: module(x), model, "cpu")
    assert [num_bytes for _, num_bytes in events] == [8000, 8000, 0, 8000]
    assert events[2].storage == events[0].storage
    assert rehearse(lambda module: module(x), model, "cuda") == []


class Layer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(x)))


class Layers(nn.Module):
    """Layers whose inputs live until the layer after, with a table that all read and an end of its own."""

    def __init__(self, num_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(8) for _ in range(num_layers))

    def forward(self, x: Tensor) -> Tensor:
        table = x.cos()
        earlier = x
        for layer in self.layers:
            x, earlier = layer(x) + table, x + earlier[:1]
        return torch.cat([x, earlier, table])


@pytest.mark.parametrize("num_layers", [2, 4, 5, 11])
def test_a_few_rehearsed_layers_stand_for_all(num_layers: int) -> None:
    model, x = Layers(num_layers), torch.ones(5, 8)
    with torch.no_grad():
        whole = rehearse(lambda module: module(x), model, "cpu")
        repeated = rehearse(lambda module: module(x), model, "cpu", {model.layers: 1})
    assert lifetimes(repeated) == lifetimes(whole)
    assert len(model.layers) == num_layers
    assert not any(layer._forward_pre_hooks for layer in model.layers)


def lifetimes(events: list[PoolEvent]) -> list[tuple[int, int | None]]:
    """For each storage its size, and before which later allocation it is freed."""
    found: list[list[int | None]] = []
    alive: dict[int, list[int | None]] = {}
    for storage, num_bytes in events:
        if num_bytes:
            found.append([num_bytes, None])
            alive[storage] = found[-1]
        else:
            alive.pop(storage)[1] = len(found)
    return [(size or 0, freed) for size, freed in found]


def test_a_block_joins_the_one_after_it() -> None:
    freed_in_the_middle = [PoolEvent(2, 32 * MIB), PoolEvent(3, 32 * MIB), PoolEvent(3, 0), PoolEvent(2, 0)]
    events = [PoolEvent(1, 64 * MIB), PoolEvent(1, 0), *freed_in_the_middle, PoolEvent(4, 64 * MIB)]
    assert reserved_bytes(events) == 64 * MIB


def test_the_smallest_block_that_fits_is_taken() -> None:
    events = [*allocations(64, 32), PoolEvent(0, 0), PoolEvent(1, 0), PoolEvent(2, 32 * MIB), PoolEvent(3, 64 * MIB)]
    assert reserved_bytes(events) == 96 * MIB


def test_no_arena_where_small_tensors_take_nearly_all() -> None:
    small = [PoolEvent(100 + index, MIB) for index in range(3000)]
    events = [*small, *allocations(32, 32), PoolEvent(0, 0), PoolEvent(1, 0), PoolEvent(9, 64 * MIB)]
    assert plan_arenas(events) == ()
