"""What the table of automatic breaks prints works when it is pasted: words of the command line, and decorators."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from bcg.diagnose import break_where_needed
from bcg.errors import UsageError
from bcg.models import load_target
from bcg.report import AutomaticBreak
from bcg.runner import GraphRunner

BUCKETS = (4, 8)

MODEL = """
import torch
from torch import nn


def scaled_by_nonzero(x):
    rows = (x[..., 0] > 0).nonzero()
    return x * (1 + rows.new_ones(()) * len(rows))


def filled(x):
    y = x.clone()
    y.index_put_((x > 1e9,), x.flatten()[:0])
    return y


class Inner(nn.Module):
    def __init__(self, fault):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.fault = fault

    def scale(self, x):
        return scaled_by_nonzero(x)

    def forward(self, x):
        x = self.linear(x)
        if self.fault == "operation in a forward":
            y = x.clone()
            y.index_put_((x > 1e9,), x.flatten()[:0])
            return y
        if self.fault == "operation in a function":
            return filled(x)
        if self.fault == "function":
            return self.scale(x)
        if self.fault == "local function":
            return self.local(x)
        return x / (1 + x.max().item()) if self.fault else x


class Model(nn.Module):
    def __init__(self, fault):
        super().__init__()
        self.embedding = nn.Embedding(8, 4)
        self.inner = Inner(fault)

    def forward(self, input_ids):
        return self.inner(self.embedding(input_ids))


def local():
    class Local(Inner):
        def local(self, x):
            return x * (1 + (x > 0).nonzero().new_ones(()))

    model = Model("local function")
    model.inner = Local("local function")
    return model


def healthy():
    return Model("")


def module():
    return Model("module")


def function():
    return Model("function")


def operation():
    return Model("operation in a function")


def operation_in_forward():
    return Model("operation in a forward")
"""

FACTORIES = {
    "module": ("module", "--break 'inner'", "forward"),
    "function": ("function", "--break 'model.py:scaled_by_nonzero'", "scaled_by_nonzero"),
    "local": ("function", "--break 'inner'", "local"),
    "operation": ("operation", "--break 'aten.index_put_.default@model.py:13'", "filled"),
    "operation_in_forward": ("operation", "--break 'aten.index_put_.default@model.py:30'", "forward"),
}


@pytest.fixture(params=FACTORIES)
def factory(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A factory of a file in the current folder, where Python looks first, as it does for ``python -m``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    Path("model.py").write_text(MODEL)
    return request.param


def automatic_break(factory: str) -> AutomaticBreak:
    (row,) = break_where_needed(load_target(f"model.py:{factory}"), BUCKETS).automatic_breaks
    return row


def breaks_of(factory: str, words: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    target = load_target(f"model.py:{factory}", break_globs=words)
    assert break_where_needed(target, BUCKETS).automatic_breaks == []
    runner = GraphRunner(target)
    runner.capture(BUCKETS)
    return [(step.label.source, step.label.name) for step in runner.graphs[8].breaks]


def test_the_words_of_the_command_line(factory: str) -> None:
    size, option, _ = FACTORIES[factory]
    row = automatic_break(factory)
    assert (row.size, row.option) == (size, option)
    flag, words = shlex.split(row.option)
    assert flag == "--break"
    ((source, name),) = breaks_of(factory, (words,))
    assert source == "rule"
    assert name == row.name or factory == "local"


def test_the_decorator(factory: str) -> None:
    line = automatic_break(factory).decorator
    found = re.fullmatch(r"(@bcg\.eager_on_graph)  # above (\w+) at model\.py:(\d+)", line)
    assert found is not None, line
    assert found[2] == FACTORIES[factory][2]
    lines = MODEL.splitlines()
    place = int(found[3]) - 1
    indent = re.match(" *", lines[place])
    assert indent is not None
    lines.insert(place, indent[0] + line)
    Path("model.py").write_text("\n".join(["import bcg", *lines]))
    assert [source for source, _ in breaks_of(factory)] == ["decorator"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("aten.mm.default@model.py:1", "is no break of .*: its forward never calls that operation at that line"),
        ("model.py:scaled", "names no function: model.py has no 'scaled'$"),
        ("model.py:Inner.scaled", "names no function: model.py has no 'Inner.scaled'$"),
        ("other.py:scaled", "names no function: no module of other.py is loaded"),
        ("aten.mm.default@model.py:x", "names no operation"),
    ],
)
@pytest.mark.parametrize("factory", ["module"], indirect=True)
def test_words_that_mean_nothing(factory: str, words: str, message: str) -> None:
    with pytest.raises(UsageError, match=f"^--break '{words}' {message}"):
        GraphRunner(load_target("model.py:healthy", break_globs=(words,))).capture(BUCKETS)
