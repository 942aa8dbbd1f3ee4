from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from bcg.errors import BcgError, ModelError, UsageError
from bcg.models import load_target

SCRIPT = """
import torch
from torch import nn
from helper_beside import WIDTH

class Rows(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(32, WIDTH)

    def forward(self, input_ids):
        return self.embedding(input_ids)

class Floats(nn.Linear):
    pass

def rows():
    return Rows()

def floats():
    return Floats(4, 4), lambda n, device, generator: {"input": torch.rand(n, 4, generator=generator)}

def fails():
    raise KeyError("no such weights")

def number():
    return 3

def wrong_pair():
    return Rows(), 3

def lazy():
    return nn.Sequential(nn.LazyLinear(4), nn.LazyLinear(4))

def no_vocabulary():
    return nn.Linear(4, 4)

def needs_an_argument(path):
    return Rows()

A_NUMBER = 3
"""


@pytest.fixture
def script(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(SCRIPT)
    (tmp_path / "helper_beside.py").write_text("WIDTH = 8\n")
    return str(tmp_path / "mine.py")


def test_a_module_alone_gets_input_ids(script: str) -> None:
    target = load_target(f"{script}:rows")
    assert target.info.source == "factory"
    assert target.info.weights == "user"
    assert target.info.seed is None
    assert target.info.architecture == "Rows"
    assert [(spec.name, spec.dtype, spec.shape) for spec in target.input_specs] == [("input_ids", torch.int64, (1, -1))]
    assert target({"input_ids": torch.zeros(1, 3, dtype=torch.int64)}).shape == (1, 3, 8)


def test_a_pair_brings_its_own_inputs_and_dtype_converts_the_module(script: str) -> None:
    target = load_target(f"{script}:floats")
    assert [(spec.name, spec.shape, spec.token_dim) for spec in target.input_specs] == [("input", (-1, 4), 0)]
    assert target.info.dtype == "float32"


def test_the_seed_decides_what_a_factory_draws(script: str) -> None:
    state = torch.get_rng_state()
    first, again, other = (load_target(f"{script}:rows", seed=seed).module.embedding.weight for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_importing_leaves_the_path_as_it_was(script: str) -> None:
    path = list(sys.path)
    load_target(f"{script}:rows")
    assert sys.path == path
    assert "mine" not in sys.modules


def test_a_dotted_module_works_too(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(script).parent))
    assert load_target("mine:rows").info.architecture == "Rows"
    monkeypatch.delitem(sys.modules, "mine")


def test_a_path_with_a_colon_is_split_at_the_last_one(script: str, tmp_path: Path) -> None:
    folder = tmp_path / "a:b"
    folder.mkdir()
    for name in ("mine.py", "helper_beside.py"):
        (folder / name).write_text((tmp_path / name).read_text())
    assert load_target(f"{folder}/mine.py:rows").info.architecture == "Rows"


@pytest.mark.parametrize(
    ("spec", "error", "message", "hint"),
    [
        ("{dir}/nowhere.py:rows", UsageError, r"^script .*nowhere\.py doesn't exist", "file.py:factory"),
        ("{dir}/nowhere.py", UsageError, r"^script .*nowhere\.py doesn't exist", "file.py:factory"),
        ("{script}", UsageError, "^.* is a file, expected a model", "mine.py:FACTORY"),
        ("no_such_package.here:rows", UsageError, "^no module named 'no_such_package'", "package.module:factory"),
        ("{script}:row", UsageError, "^.* has no factory 'row'", "rows"),
        ("{script}:A_NUMBER", UsageError, "^.* has no callable 'A_NUMBER'", "it defines "),
        ("{script}:zzz", UsageError, "^.* has no factory 'zzz'", "it defines "),
        ("{script}:fails", ModelError, "^factory .*:fails raised KeyError: 'no such weights'", "--traceback"),
        ("{script}:needs_an_argument", ModelError, "^factory .* raised TypeError", "--traceback"),
        ("{script}:number", ModelError, "^factory .*:number returned int, expected a torch.nn.Module", None),
        ("{script}:wrong_pair", ModelError, r"returned a tuple of \(Rows, int\), expected", None),
        ("{script}:lazy", ModelError, "^factory .* returned 4 parameters and buffers that are not initialized", "once"),
        ("{script}:no_vocabulary", ModelError, "^.* has no vocabulary to draw input_ids from", "make_inputs"),
    ],
)
def test_bad_factories(
    spec: str, error: type[BcgError], message: str, hint: str | None, script: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message) as caught:
        load_target(spec.format(script=script, dir=tmp_path))
    assert "\n" not in caught.value.message
    if hint is not None:
        assert hint in (caught.value.hint or "")


def test_the_factorys_own_traceback_is_kept(script: str) -> None:
    with pytest.raises(ModelError) as caught:
        load_target(f"{script}:fails")
    cause = caught.value.__cause__
    assert isinstance(cause, KeyError)
    assert cause.__traceback__ is not None


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import no_such_dependency", "^importing .* raised ModuleNotFoundError: No module named 'no_such_dep"),
        ("def (", "^importing .* raised SyntaxError"),
        ("raise RuntimeError('on import')", "^importing .* raised RuntimeError: on import"),
        ("import sys; sys.exit(0)", "^importing .* raised SystemExit: 0"),
    ],
)
def test_a_script_that_cannot_be_imported(source: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(source)
    with pytest.raises(ModelError, match=message) as caught:
        load_target(f"{tmp_path}/broken.py:rows")
    assert caught.value.__cause__ is not None
    assert not [name for name in sys.modules if name.startswith("bcg_user_broken")]
