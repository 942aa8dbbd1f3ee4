"""State of a module tree: seen, compared, and brought back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from bcg.state import ModelState, changes


@dataclass(slots=True)
class Counter:
    count: int
    total: Tensor


@dataclass(frozen=True, slots=True)
class Frozen:
    history: list[int]


class Holder:
    __slots__ = ("added", "first")

    def __init__(self) -> None:
        self.first = 1


class Held(nn.Module):
    """Holds what is put into it."""

    def __init__(self, **held: Any) -> None:
        super().__init__()
        for name, value in held.items():
            setattr(self, name, value)


def changed(before: Any, state: ModelState) -> list[str]:
    return [change.path for change in changes(before, state.save())]


def test_what_slots_hold_is_state() -> None:
    counter, history = Counter(0, torch.zeros(2)), [1]
    state = ModelState(Held(counter=counter, frozen=Frozen(history)))
    before = state.save()
    counter.count += 3
    counter.total += 1
    history.append(2)
    assert set(changed(before, state)) == {
        "counter.count",
        "counter.total",
        "len(frozen.history)",
        "frozen.history[1]",
    }
    state.restore(before)
    assert (counter.count, counter.total.tolist(), history) == (0, [0, 0], [1])
    assert changed(before, state) == []


def test_a_slot_that_was_empty_is_emptied_again() -> None:
    module = Held(holder=Holder())
    state = ModelState(module)
    before = state.save()
    module.holder.added = 2
    assert changed(before, state) == ["holder.added"]
    state.restore(before)
    assert not hasattr(module.holder, "added")


def test_arrays_and_numbers_of_numpy_are_state() -> None:
    array = numpy.array([0.0, numpy.nan])
    module = Held(array=array, number=numpy.int64(1))
    state = ModelState(module)
    before = state.save()
    assert changed(before, state) == []
    array[0] = 1
    module.number += numpy.int64(1)
    assert set(changed(before, state)) == {"array", "number"}
    state.restore(before)
    assert (array[0], module.number) == (0, 1)
    module.array = numpy.array([0, 1])
    assert changed(before, state) == ["array"]
    state.restore(before)
    assert module.array is array


def test_an_expanded_tensor_is_brought_back() -> None:
    base = torch.ones(1, 3)
    state = ModelState(Held(expanded=base.expand(4, 3)))
    before = state.save()
    base += 1
    assert changed(before, state) == ["expanded"]
    state.restore(before)
    assert base.tolist() == [[1, 1, 1]]


def test_a_tensor_that_changed_its_shape_has_its_own_back() -> None:
    module: Any = Held(grown=torch.arange(4.0), other=torch.arange(6.0).view(2, 3).T)
    state = ModelState(module)
    before, grown, other = state.save(), module.grown, module.other
    module.grown.resize_(8).fill_(5)
    module.other.data = torch.zeros(2)
    assert changed(before, state) == ["grown", "other"]
    state.restore(before)
    assert module.grown is grown and module.other is other
    assert grown.tolist() == [0, 1, 2, 3]
    assert (other.tolist(), other.stride()) == ([[0, 3], [1, 4], [2, 5]], (1, 3))


def test_an_array_that_is_read_only_is_kept() -> None:
    module: Any = nn.Module()
    module.table = numpy.arange(4)
    module.table.setflags(write=False)
    with ModelState(module).kept():
        pass
    assert module.table.tolist() == [0, 1, 2, 3]
