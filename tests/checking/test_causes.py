"""Which row of the catalogue a mismatch gets: state and tables in all the shapes that models keep them in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bcg import check, eager_on_graph
from bcg.report import CheckReport
from tests.targets import own_target

TABLES = {"scale": torch.ones(4)}


def make_inputs(num_tokens: int, device: torch.device, generator: torch.Generator) -> dict[str, Tensor]:
    return {"x": torch.rand((num_tokens, 4), device=device, generator=generator)}


def checked(module: nn.Module, device: str, make: Any = make_inputs) -> CheckReport:
    return check(own_target(module, device, make), buckets=(4, 8))


class GrowsByCat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cache = torch.zeros(0, 4)

    def forward(self, x: Tensor) -> Tensor:
        self.cache = torch.cat([self.cache.to(x.device), x.mean(0, keepdim=True) * 0 + 1])
        return x * self.cache.sum()


class KeepsInList(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = [torch.zeros(4)]

    def forward(self, x: Tensor) -> Tensor:
        result = x + self.hidden[0].to(x.device)
        self.hidden[0] = self.hidden[0].to(x.device) + 1
        return result


class KeepsLastSize(nn.Module):
    """A cache of one slot, keyed by the shape."""

    def __init__(self) -> None:
        super().__init__()
        self.shape: tuple[int, ...] = ()
        self.table = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        if self.shape != tuple(x.shape):
            self.shape = tuple(x.shape)
            self.table = torch.linspace(1, 2, 4, device=x.device).repeat(len(x), 1)
        return x * self.table


class KeepsEverySize(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tables: dict[int, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        if len(x) not in self.tables:
            self.tables[len(x)] = torch.linspace(1, 2, 4, device=x.device).repeat(len(x), 1)
        return x * self.tables[len(x)]


class ReplacesInBreak(nn.Module):
    """Replaces a table of its own, or of the file, in a break."""

    def __init__(self, tables: dict[str, Tensor] | None = None) -> None:
        super().__init__()
        self.tables = {"scale": torch.ones(4)} if tables is None else None
        self.read = (lambda: tables) if tables is not None else (lambda: self.tables)

    def forward(self, x: Tensor) -> Tensor:
        self.prepare(x)
        return x * self.read()["scale"]

    @eager_on_graph
    def prepare(self, x: Tensor) -> None:
        self.read()["scale"] = x[0] * 0 + float(x[0, 0])


class ExchangesMemory(nn.Module):
    """Gives the tensor that the graph reads another storage."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = {"scale": torch.ones(4)}

    def forward(self, x: Tensor) -> Tensor:
        self.prepare(x)
        return x * self.tables["scale"].to(x.device)

    @eager_on_graph
    def prepare(self, x: Tensor) -> None:
        self.tables["scale"].data = torch.ones(4) * 2


class ReadsGlobal(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * TABLES["scale"]


def make_inputs_and_table(num_tokens: int, device: torch.device, generator: torch.Generator) -> dict[str, Tensor]:
    TABLES["scale"] = torch.rand(4, device=device, generator=generator)
    return make_inputs(num_tokens, device, generator)


@pytest.mark.parametrize(
    ("kind", "row", "says"),
    [
        (GrowsByCat, "S12", "eager reads cache and puts another tensor there"),
        (KeepsInList, "S12", "eager reads hidden and puts another tensor there"),
        (KeepsLastSize, "S8", "table is filled anew by an eager forward of another size"),
        (ReplacesInBreak, "S4", "eager reads tables['scale'], which a break replaced"),
    ],
)
def test_state_and_tables_get_their_row(kind: type[nn.Module], row: str, says: str, device: str) -> None:
    report = checked(kind(), device)
    assert report.verdict == "mismatch"
    (card,) = [card for card in report.findings if card.hazard != "S10"]
    assert card.hazard == row and says in card.title
    assert card.source_line.startswith(__file__)
    assert card.remedy


def test_a_table_of_the_file_that_a_break_replaces_is_an_external_replaced(device: str) -> None:
    report = checked(ReplacesInBreak({"scale": torch.ones(4, device=device)}), device)
    assert "S4" in {card.hazard for card in report.findings}
    assert not {"S14", ""} & {card.hazard for card in report.findings}


def test_a_table_that_is_replaced_between_forwards_is_an_external_replaced(device: str) -> None:
    (card,) = checked(ReadsGlobal(), device, make_inputs_and_table).findings
    assert card.hazard == "S4" and card.source_line.startswith(__file__)


def test_memory_that_is_exchanged_is_not_said_to_be_freed() -> None:
    (card,) = checked(ExchangesMemory(), "cpu").findings
    assert (card.hazard, card.title) == ("S4", "tables['scale'], which the graph reads, got other memory")


def test_a_cache_of_every_size_is_healthy(device: str) -> None:
    report = checked(KeepsEverySize(), device)
    assert (report.verdict, report.findings) == ("match", [])
