"""State and numbers that replays leave as they were are told before a capture; what breaks change is not."""

from __future__ import annotations

import inspect
import itertools
import random
from dataclasses import dataclass
from types import SimpleNamespace

import numpy
import pytest
import torch
from torch import Tensor, nn

from bcg import check, current_forward_context, eager_on_graph
from bcg.diagnose import break_where_needed
from tests.targets import Around, Between, Seeds, own_target


@dataclass(slots=True)
class Slotted:
    seen: int = 0


class Planted(nn.Module):
    """Holds what the models below change."""

    def __init__(self) -> None:
        super().__init__()
        self._count = 0
        self.inner = SimpleNamespace(seen=[0])
        self.slotted, self.array = Slotted(), numpy.zeros(2)
        self.cache = {"rows": torch.zeros(0, 4)}
        self.register_buffer("steps", torch.zeros(()))


class PrivateNumber(Planted):
    def forward(self, x: Tensor) -> Tensor:
        self._count += 1
        return x + 1


class NestedNumber(Planted):
    def forward(self, x: Tensor) -> Tensor:
        self.inner.seen[0] += 1
        return x + 1


class NumberInSlot(Planted):
    def forward(self, x: Tensor) -> Tensor:
        self.slotted.seen += 1
        return x + 1


class NumberInArray(Planted):
    def forward(self, x: Tensor) -> Tensor:
        self.array += 1
        return x + 1


class ReboundTensor(Planted):
    def forward(self, x: Tensor) -> Tensor:
        self.cache["rows"] = torch.cat([self.cache["rows"].to(x.device), x[:1]])[-3:]
        return x + 1


class OnTheDevice(Planted):
    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        return x + 1


class InBreak(Planted):
    def forward(self, x: Tensor) -> Tensor:
        self.note(x * 2)
        return x + 1

    @eager_on_graph
    def note(self, x: Tensor) -> None:
        self._count += 1
        self.inner.seen.append(len(x))
        self.cache["rows"] = x.clone()


def make_inputs(num_tokens: int, device: torch.device, generator: torch.Generator) -> dict[str, Tensor]:
    return {"x": torch.rand((num_tokens, 4), device=device, generator=generator)}


@pytest.mark.parametrize(
    ("module", "changed"),
    [
        (PrivateNumber(), "_count"),
        (NestedNumber(), "inner.seen[0]"),
        (NumberInSlot(), "slotted.seen"),
        (NumberInArray(), "array"),
        (ReboundTensor(), "cache['rows']"),
    ],
)
def test_state_that_a_replay_does_not_change_is_named(module: nn.Module, changed: str, device: str) -> None:
    (card,) = break_where_needed(own_target(module, device, make_inputs), (4, 8)).cards
    assert (card.hazard, card.title) == ("S12", f"the forward changes {changed}, a replay does not")
    assert card.source_line.startswith(__file__)


@pytest.mark.parametrize("module", [OnTheDevice(), InBreak()])
def test_state_that_a_replay_changes_too_is_healthy(module: nn.Module, device: str) -> None:
    assert break_where_needed(own_target(module, device, make_inputs), (4, 8)).cards == []


class ByLength(nn.Module):
    """Scales by the longest request."""

    def __init__(self, in_break: bool) -> None:
        super().__init__()
        self.scale = eager_on_graph(scaled_by_length, enable=in_break)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale(x + 1)


def scaled_by_length(x: Tensor) -> Tensor:
    context = current_forward_context()
    return x * (1 + 1e-6 * context.max_length if context else 1)


def test_a_number_that_depends_on_the_requests_is_frozen(device: str) -> None:
    diagnosis = break_where_needed(own_target(Between(ByLength(in_break=False)), device, make_inputs), (4, 8))
    (found,) = diagnosis.automatic_breaks
    assert (found.size, found.module, found.card.hazard) == ("module", "inner", "S2")
    assert found.card.source_line.startswith(__file__)


def test_a_number_that_depends_on_the_requests_is_healthy_in_a_break(device: str) -> None:
    diagnosis = break_where_needed(own_target(Around(ByLength(in_break=True)), device, make_inputs), (4, 8))
    assert (diagnosis.automatic_breaks, diagnosis.cards) == ([], [])


class Scales(nn.Module):
    """Scales by a number of Python's own generator, or decides by it; perhaps the same one in every forward."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "seeds":
            random.seed(3)
        drawn = random.random()
        if self.how == "branches":
            return x + 1e-6 if drawn < 0.5 else x * (1 + 1e-6)
        return x * (1 + 1e-6 * drawn)


@pytest.mark.parametrize("how", ["draws", "branches"])
def test_a_number_that_python_draws_is_told_from_one_that_depends_on_the_inputs(how: str) -> None:
    random.seed(1)
    diagnosis = break_where_needed(own_target(Between(Scales(how)), "cpu", make_inputs), (4, 8))
    (found,) = diagnosis.automatic_breaks
    assert (found.module, found.card.hazard) == ("inner", "S16")
    assert "drawn anew" in found.card.title or "a random number decides the branch" in found.card.title
    assert found.card.remedy == "draw on the device, from a generator that the graph knows, or break there"


class ScalesByCalls(nn.Module):
    """Scales by how often it was called, which no module holds."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (1 + 1e-6 * next(CALLS))


CALLS = itertools.count()


def test_a_count_that_no_module_holds_is_no_random_number() -> None:
    diagnosis = break_where_needed(own_target(Between(ScalesByCalls()), "cpu", make_inputs), (4, 8))
    (found,) = diagnosis.automatic_breaks
    assert (found.module, found.card.hazard) == ("inner", "S12")
    assert "in the next forward" in found.card.title


def test_a_seed_of_pythons_own_generator_makes_every_draw_the_same() -> None:
    target = own_target(Between(Scales("seeds")), "cpu", make_inputs)
    diagnosis = break_where_needed(target, (4, 8))
    assert (diagnosis.automatic_breaks, diagnosis.cards) == ([], [])
    assert check(target, buckets=(4, 8)).verdict == "match"


def test_a_seed_that_is_set_in_the_forward_gets_a_break(device: str) -> None:
    diagnosis = break_where_needed(own_target(Between(Seeds(True)), device, make_inputs), (4, 8))
    (found,) = diagnosis.automatic_breaks
    assert (found.module, found.card.hazard, found.card.operation) == ("inner", "L9", "Generator.manual_seed")
    assert found.card.source_line.startswith(inspect.getfile(Seeds))
    assert break_where_needed(own_target(Around(Seeds(False)), device, make_inputs), (4, 8)).automatic_breaks == []


def test_what_the_compiler_does_with_generators_is_no_seed() -> None:
    inner = nn.Linear(4, 4)
    inner.compile(backend="eager")
    assert break_where_needed(own_target(Around(inner), "cpu", make_inputs), (4, 8)).automatic_breaks == []


class Counts(nn.Module):
    """Leaves a number to the next forward, and takes its input only in the shape that it was made in."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.num_calls = 0

    def forward(self, x: Tensor) -> Tensor:
        _, rows, width = x.unsqueeze_(0).shape
        self.num_calls += 1
        self.count.add_(1)
        return x.mul_(2).view(rows, width) + self.count


def test_each_look_at_a_forward_has_inputs_of_its_own(device: str) -> None:
    """Found by hand: the second one met the input as the first had left it."""
    (card,) = break_where_needed(own_target(Counts(), device, make_inputs), (4, 8)).cards
    assert (card.hazard, card.title) == ("S12", "the forward changes num_calls, a replay does not")
