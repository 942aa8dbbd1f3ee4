"""An inconclusive check says what makes eager differ from itself, or give NaN: module, line, operation and remedy."""

from __future__ import annotations

import itertools

import msgspec
import numpy
import pytest
import torch
from torch import Tensor, nn

from bcg import CheckFailure, assert_graph_safe, check, eager_on_graph
from bcg.checking import failure_of
from tests.targets import Around, own_target

COUNT = itertools.count(1)
KEPT = {"sum": torch.zeros(4)}


def make_inputs(num_tokens: int, device: torch.device, generator: torch.Generator) -> dict[str, Tensor]:
    return {"x": torch.rand((num_tokens, 4), device=device, generator=generator)}


class InBreak(nn.Module):
    """Computes a part in a break."""

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x * 2) + 1

    @eager_on_graph
    def part(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class CountsOutside(InBreak):
    """Adds a number that depends on how often anything was run."""

    @eager_on_graph
    def part(self, x: Tensor) -> Tensor:
        return x + next(COUNT) % 7


class DrawsFromEntropy(InBreak):
    @eager_on_graph
    def part(self, x: Tensor) -> Tensor:
        generator = torch.Generator(x.device)
        generator.seed()
        return x + torch.rand(4, generator=generator, device=x.device)


class DrawsFromNumpy(InBreak):
    @eager_on_graph
    def part(self, x: Tensor) -> Tensor:
        return x + torch.from_numpy(numpy.random.default_rng().random(4)).to(x.device)


class CarriesOn(InBreak):
    """Reads what the forward before it left in a table of the file."""

    @eager_on_graph
    def part(self, x: Tensor) -> Tensor:
        result = x + KEPT["sum"].to(x.device)
        KEPT["sum"] = KEPT["sum"].to(x.device) % 5 + x[0]
        return result


class GivesNaN(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.log(x - 1000) + 1


@pytest.mark.parametrize(
    ("kind", "row", "operation", "says"),
    [
        (CountsOutside, "S16", "aten.add.Tensor", r"gets \d in one and \d in the other"),
        (DrawsFromEntropy, "S16", "aten.rand.generator", "draws other numbers each time, apart by .* of the scale"),
        (DrawsFromNumpy, "S16", "aten.add.Tensor", "reads a tensor that is made anew, outside torch"),
        (CarriesOn, "S12", "aten.add.Tensor", "reads a tensor that the run before left"),
        (GivesNaN, "", "aten.log.default", "the first NaN of eager is made by aten.log.default"),
    ],
)
def test_what_makes_eager_differ_from_itself_is_named(
    kind: type[nn.Module], row: str, operation: str, says: str
) -> None:
    target = own_target(Around(kind()), "cpu", make_inputs)
    target.packs_requests = False
    report = check(target, buckets=(4, 8))
    assert report.verdict == "inconclusive"
    (card,) = report.findings
    assert (card.hazard, card.operation, card.module) == (row, operation, "inner")
    assert card.source_line.startswith(__file__)
    assert card.remedy
    with pytest.raises(CheckFailure, match=f"^the check is inconclusive in 2 of 2 buckets: eager .*{says}.* in inner"):
        assert_graph_safe(target, buckets=(4, 8))
    assert all(len(bucket.reasons) == 1 for bucket in report.buckets)


class Steady(InBreak):
    @eager_on_graph
    def part(self, x: Tensor) -> Tensor:
        return x + torch.rand(4, device=x.device) + torch.empty(4, device=x.device).fill_(1)


def test_what_is_drawn_from_the_default_generator_is_healthy(device: str) -> None:
    target = own_target(Around(Steady()), device, make_inputs)
    target.packs_requests = False
    report = check(target, buckets=(4, 8))
    assert (report.verdict, report.findings) == ("match", [])


@pytest.mark.parametrize("draws", ["as told", "at will"])
def test_inputs_that_are_not_drawn_from_the_generator_are_warned_of(draws: str) -> None:
    def make_unseeded(num_tokens: int, device: torch.device, generator: torch.Generator) -> dict[str, Tensor]:
        rows = torch.rand((num_tokens, 4), generator=generator if draws == "as told" else None)
        return {"input": rows}

    report = check(own_target(nn.Linear(4, 4), "cpu", make_unseeded), buckets=(4, 8))
    if draws == "as told":
        assert (report.verdict, report.warnings) == ("match", [])
        return
    (warning,) = report.warnings
    assert (report.verdict, warning.code) == ("inconclusive", "inputs-not-seeded")
    assert [bucket.verdict for bucket in report.buckets] == ["inconclusive"] * 2
    assert warning.message.startswith("make_inputs gives other values of 'input' each time")
    assert "generator=generator" in warning.remedy
    failure = failure_of(report)
    assert failure is not None and failure.hint == "see the warnings of the report"
    failure = failure_of(msgspec.structs.replace(report, warnings=[]))
    assert failure is not None and failure.hint is None
