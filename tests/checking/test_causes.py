"""Which row of the catalogue a mismatch gets: state and tables in all the shapes that models keep them in."""

from __future__ import annotations

import functools
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bcg import check, current_forward_context, eager_on_graph
from bcg.report import CheckReport
from tests.targets import Around, Between, Seeds, own_target

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


class Appends(nn.Module):
    """Keeps what every forward computed, in a list that a replay leaves as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.sum())
        return x + 1


def test_a_list_that_grows_is_state_and_holds_outputs(device: str) -> None:
    cards = checked(Appends(), device).findings
    assert [card.hazard for card in cards] == ["S12", "S11"]
    assert cards[0].title.startswith("len(seen) is ")


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


class ReturnsNumber(nn.Module):
    """Its break returns what the graph can't take: a number, or a text, that changes."""

    def __init__(self, as_text: bool) -> None:
        super().__init__()
        self.as_text = as_text

    def forward(self, x: Tensor) -> Tensor:
        number = self.longest()
        return x * (len(number) if isinstance(number, str) else number)

    @eager_on_graph
    def longest(self) -> int | str:
        context = current_forward_context()
        length = context.max_length if context else 1
        return "a" * 1000 * length if self.as_text else length


@pytest.mark.parametrize("as_text", [False, True])
def test_a_number_that_a_break_returns_is_frozen(as_text: bool, device: str) -> None:
    (card,) = checked(Wrapped(ReturnsNumber(as_text)), device).findings
    assert (card.hazard, card.module) == ("S2", "inner")
    assert card.title.startswith("break ReturnsNumber.longest returned ") and len(card.title) < 160
    assert card.source_line.startswith(__file__) and card.remedy


class ReturnsOtherShape(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.rows(x).sum()

    @eager_on_graph
    def rows(self, x: Tensor) -> Tensor:
        context = current_forward_context()
        return x[: context.max_length if context else 1] * 0


def test_a_shape_that_a_break_returns_is_frozen(device: str) -> None:
    (card,) = checked(Wrapped(ReturnsOtherShape()), device).findings
    assert (card.hazard, card.module) == ("S9", "inner")
    assert card.source_line.startswith(__file__)


class Wrapped(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.inner(x * 2)
        return result


def test_a_seed_that_is_set_in_the_forward_is_named() -> None:
    (card,) = checked(Wrapped(Seeds(True)), "cpu").findings
    assert (card.hazard, card.module, card.operation) == ("L9", "inner", "Generator.manual_seed")
    assert card.source_line.startswith(inspect.getfile(Seeds))
    assert checked(Wrapped(Seeds(False)), "cpu").findings == []


class Identity(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


def test_a_forward_without_operations_replays_nothing(device: str) -> None:
    report = checked(Identity(), device)
    (card,) = report.findings
    assert (report.verdict, card.hazard) == ("inconclusive", "S20")
    assert card.title.endswith("the forward runs no operation")
    assert card.source_line.startswith(__file__)


class NormOverRows(nn.Module):
    """A layer of torch's that mixes rows, and that takes no single one."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.norm(x)
        return result


def test_a_leak_in_a_layer_of_torch_is_where_it_is_called(device: str) -> None:
    report = checked(Wrapped(NormOverRows()), device)
    (card,) = report.findings
    assert (card.hazard, card.module) == ("S10", "inner.norm")
    file, _, line = card.source_line.rpartition(":")
    assert file == __file__
    assert Path(file).read_text().splitlines()[int(line) - 1].strip() == "result: Tensor = self.norm(x)"
    warning = next(warning for warning in report.warnings if warning.code == "padding-not-compared")
    assert warning.message.startswith("eager fails for 1 token without padding: ValueError: Expected more than 1 value")


class OverRows(nn.Module):
    """Depends on rows beyond its own: on what they hold, or on how many there are."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        x = x * 2
        if self.kind == "mean":
            return x - x.mean(0)
        if self.kind == "length":
            return x.cumsum(0) / len(x)
        if len(x) > 3:
            x = x + 1
        return x


@pytest.mark.parametrize(
    ("kind", "row", "operation", "line", "says"),
    [
        ("mean", "S10", "aten.mean.dim", "x - x.mean(0)", "3 padding rows change the 1 real row in the bucket of 4"),
        ("length", "S2", "aten.div.Tensor", "/ len(x)", "1 row alone gives something else than in the bucket of 4, wh"),
        (
            "branch",
            "S1",
            "aten.add.Tensor",
            "x = x + 1",
            "1 row alone gives something else than in the bucket of 4, wh",
        ),
    ],
)
def test_padding_that_matters_is_told_from_a_number_of_rows_that_does(
    kind: str, row: str, operation: str, line: str, says: str, device: str
) -> None:
    target = own_target(Around(OverRows(kind)), device, make_inputs)
    target.packs_requests = False
    report = check(target, buckets=(4,))
    assert report.verdict == "mismatch"
    (card,) = report.findings
    assert (card.hazard, card.module, card.operation) == (row, "inner", operation)
    assert card.title.startswith(says)
    assert line in Path(__file__).read_text().splitlines()[int(card.source_line.rpartition(":")[2]) - 1]
    assert card.break_option == ""


class KeepsRow(nn.Module):
    """Keeps a row of what it computes."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.register_buffer("last", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "copy":
            self.last.copy_(x[0])
        else:
            self.last = x[0].clone() if self.how == "clone" else x[0]
        return x * 2


@pytest.mark.parametrize("how", ["view", "clone"])
def test_what_the_forward_keeps_lies_in_the_pool_clone_or_not(how: str, device: str) -> None:
    (card,) = checked(Wrapped(KeepsRow(how)), device).findings
    assert (card.hazard, card.module, card.break_option) == ("S11", "inner", "--break 'inner'")
    assert "buffer.copy_(value)" in card.remedy and "in a break" in card.remedy


@pytest.mark.parametrize(("how", "break_globs"), [("copy", ()), ("clone", ("inner",))])
def test_the_remedies_of_a_kept_output_help(how: str, break_globs: tuple[str, ...], device: str) -> None:
    target = own_target(Wrapped(KeepsRow(how)), device, make_inputs, break_globs=break_globs)
    assert check(target, buckets=(4, 8)).verdict == "match"


class Alternates(nn.Module):
    """Takes turns: other weights in every second forward, or another operation."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(4, 4), nn.Linear(4, 4)
        self.how = how
        self.flag = False

    def forward(self, x: Tensor) -> Tensor:
        self.flag = not self.flag
        if self.how == "operation":
            return x * 2 if self.flag else self.one(x)
        if self.how == "weight":
            return nn.functional.linear(x, self.one.weight if self.flag else self.other.weight)
        result: Tensor = (self.one if self.flag else self.other)(x)
        return result


class Advances(nn.Module):
    """Writes rows of a cache from where the forward before it ended, and may read the cache."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.register_buffer("cache", torch.zeros(256, 4))
        self.position = 0

    def forward(self, x: Tensor) -> Tensor:
        start = self.position
        self.cache[start : start + len(x)] = x
        self.position += len(x)
        return x + self.cache[: self.position].sum(0) if self.how == "reads" else x + 1


@pytest.mark.parametrize("kind", [Alternates, Advances])
@pytest.mark.parametrize("how", ["module", "weight", "operation", "reads"])
def test_one_fault_of_two_layers_is_one_card(kind: type[Any], how: str) -> None:
    layers = nn.Sequential(kind(how), kind(how))
    target = own_target(Around(layers), "cpu", make_inputs)
    target.packs_requests = False
    cards = [card for card in check(target, buckets=(8,)).findings if card.hazard != "S13"]
    (card,) = cards
    assert (card.hazard, card.module, card.occurrences) == ("S12", "inner.0", 2)
    assert "flag is " in card.title or "position is " in card.title


class WritesWhereTold(nn.Module):
    """Writes the row of a cache that the live batch names."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("cache", torch.zeros(64, 4))

    def forward(self, x: Tensor) -> Tensor:
        context = current_forward_context()
        self.cache[context.num_tokens if context else 0] += 1
        return x + 1


def test_a_line_that_is_replayed_is_not_said_to_run_at_capture_only(device: str) -> None:
    (card,) = checked(Wrapped(WritesWhereTold()), device).findings
    assert card.hazard == "S12"
    assert card.title == "inner.cache is not what eager leaves there: a replay writes where, or what, the capture wrote"


class Recurrent(nn.Module):
    """Carries a state from forward to forward, and hands it to a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(4, 4)
        self.hidden = torch.zeros(1, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.cell(x * 2, self.hidden.to(x.device).expand(len(x), 4))
        self.hidden = hidden[:1]
        return hidden


@pytest.mark.parametrize("break_globs", [(), ("cell",)])
def test_the_module_that_sets_an_attribute_is_to_blame_not_the_one_that_reads_it(break_globs: tuple[str, ...]) -> None:
    target = own_target(Recurrent(), "cpu", make_inputs, break_globs=break_globs)
    target.packs_requests = False
    (card,) = check(target, buckets=(8,)).findings
    assert (card.hazard, card.module, card.break_option) == ("S12", "", "")
    assert card.title.startswith("eager reads hidden and puts another tensor there")


def line_of(source_line: str) -> str:
    file, _, number = source_line.rpartition(":")
    assert file == __file__
    return Path(file).read_text().splitlines()[int(number) - 1].strip()


def test_a_list_that_a_hook_fills_has_the_line_of_the_hook() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    module.seen = []

    def note(layer: nn.Module, args: Any, output: Tensor) -> None:
        module.seen.append(output.sum())

    module[0].register_forward_hook(note)
    cards = checked(
        module, "cpu", lambda n, device, generator: {"input": torch.rand((n, 4), generator=generator)}
    ).findings
    assert [card.hazard for card in cards] == ["S12", "S11"]
    assert {line_of(card.source_line) for card in cards} == {"module.seen.append(output.sum())"}


class Shrinks(nn.Module):
    """Changes the weight of a layer of torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        self.linear.weight.data.mul_(0.9)
        result: Tensor = self.linear(x)
        return result


def test_a_weight_that_is_changed_has_the_line_that_changes_it() -> None:
    (card,) = checked(Wrapped(Shrinks()), "cpu").findings
    assert (card.hazard, card.module) == ("S13", "inner.linear")
    assert line_of(card.source_line) == "self.linear.weight.data.mul_(0.9)"


class ReplacesWeight(nn.Module):
    """Leaves another parameter to the next forward."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        result = x * self.weight
        self.weight = nn.Parameter(self.weight * 0.9, requires_grad=False)
        return result


def test_a_parameter_that_the_forward_replaces_is_state() -> None:
    module = Between(ReplacesWeight())
    (card,) = checked(module, "cpu").findings
    assert (card.hazard, card.module, card.break_option) == ("S12", "inner", "--break 'inner'")
    assert card.title.startswith("eager reads inner.weight and puts another tensor there")
    assert line_of(card.source_line).startswith("self.weight = nn.Parameter")
    target = own_target(Between(ReplacesWeight()), "cpu", make_inputs, break_globs=("inner",))
    assert check(target, buckets=(4, 8)).verdict == "match"


def test_a_weight_that_a_break_changes_is_put_back_between_runs() -> None:
    target = own_target(Between(Shrinks()), "cpu", make_inputs, break_globs=("inner",))
    report = check(target, buckets=(4, 8))
    assert report.spread == 0 and all(bucket.verdict == "match" for bucket in report.buckets)
    assert [card.hazard for card in report.findings] == ["S13"]


class DrawsTwice(nn.Module):
    """The second draw begins where the first one ended: elsewhere for other rows."""

    def __init__(self, mixes: bool) -> None:
        super().__init__()
        self.mixes = mixes

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.dropout(nn.functional.dropout(x, 0.3, True) + 1, 0.3, True)
        return y - y.mean(0) if self.mixes else y


def test_random_numbers_are_no_padding(device: str) -> None:
    assert checked(DrawsTwice(mixes=False), device).verdict == "match"
    assert [card.hazard for card in checked(DrawsTwice(mixes=True), device).findings] == ["S10"]


class Hook:
    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        return None


def test_hooks_of_all_modules_and_hooks_that_are_objects_have_a_place(device: str) -> None:
    module = Wrapped(KeepsEverySize())
    module.inner.register_forward_hook(functools.partial(Hook()))
    handle = nn.modules.module.register_module_forward_pre_hook(lambda module, args: None)
    try:
        report = checked(module, device)
    finally:
        handle.remove()
    (warning,) = report.warnings
    assert warning.code == "S18"
    assert warning.message.startswith(
        f"2 forward hooks will not run in a replay, the first on every module at {__file__}"
    )
    (warning,) = checked(module, device).warnings
    assert warning.message.startswith(f"1 forward hook will not run in a replay, the first on inner at {__file__}")


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


class FillsBeforeItReads(nn.Module):
    """Two caches that hold NaN where nothing was written to."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("keys", torch.full((64, 4), torch.nan))
        self.register_buffer("values", torch.full((64, 4), torch.nan))

    def forward(self, x: Tensor) -> Tensor:
        self.keys[: len(x)] = x
        self.values[: len(x)] = x * 2
        return self.keys[: len(x)] + self.values[: len(x)]


def test_caches_that_hold_nan_where_nothing_was_written_are_healthy(device: str) -> None:
    report = checked(FillsBeforeItReads(), device)
    assert (report.verdict, report.findings) == ("match", [])
