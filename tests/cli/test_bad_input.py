"""Bad input: one clear line, a hint, the right exit code, and nothing lost."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from bcg_cli import device

MODELS = """
import torch
from torch import nn

class Embed(nn.Module):
    def __init__(self, result=None):
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.result = result

    def forward(self, input_ids):
        return self.embedding(input_ids) if self.result is None else self.result

class TakesImages(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10, 4)

    def forward(self, pixels):
        return pixels

def healthy():
    return Embed()

def raises():
    return {}["the user's key"]

def leaves():
    raise SystemExit(0)

class Leaves(Embed):
    def forward(self, input_ids):
        raise SystemExit(0)

def leaves_in_forward():
    return Leaves()

def returns_text():
    return "a model"

def returns_no_tensor():
    return Embed(result="text")

def takes_images():
    return TakesImages()

def no_vocabulary():
    return nn.Linear(4, 4)

def ambiguous_inputs():
    return Embed(), lambda n, device, generator: {"input_ids": torch.zeros(n, n, dtype=torch.long, device=device)}
"""


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a script of models, a broken one and an empty folder; it is also the current one."""
    (tmp_path / "models.py").write_text(MODELS)
    (tmp_path / "broken.py").write_text("def make(:\n")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("model", "code", "message", "hint"),
    [
        ("qwen3-tinny", 2, "unknown model 'qwen3-tinny'", "qwen3-tiny"),
        ("zzz", 2, "unknown model 'zzz'", "presets: qwen3-tiny"),
        ("", 2, "MODEL is empty", "file.py:factory"),
        ("empty", 2, "directory empty holds no config.json", "config.json"),
        ("./nowhere", 2, "no such directory: ./nowhere", "config.json"),
        ("none.py:make", 2, "script none.py doesn't exist", "file.py:factory"),
        ("none.py", 2, "script none.py doesn't exist", "file.py:factory"),
        ("models.py", 2, "models.py is a file, expected a model", "models.py:FACTORY"),
        ("models.py:helthy", 2, "models.py has no factory 'helthy'", "healthy"),
        ("no_such_module:make", 2, "no module named 'no_such_module'", "package.module:factory"),
        ("broken.py:make", 1, "importing broken.py raised SyntaxError", "--traceback"),
        ("models.py:raises", 1, 'factory models.py:raises raised KeyError: "the user\'s key"', "--traceback"),
        ("models.py:leaves", 1, "factory models.py:leaves raised SystemExit", "--traceback"),
        ("models.py:leaves_in_forward", 1, "sys.exit(0)", "--traceback"),
        ("models.py:returns_text", 1, "factory models.py:returns_text returned str, expected a torch.nn.Module", None),
        (
            "models.py:returns_no_tensor",
            1,
            "the forward of models.py:returns_no_tensor returns no tensor, got str",
            "tensor",
        ),
        (
            "models.py:takes_images",
            1,
            "models.py:takes_images does not take its inputs (input_ids [1, 8]",
            "make_inputs",
        ),
        ("models.py:no_vocabulary", 1, "models.py:no_vocabulary has no vocabulary", "make_inputs"),
        ("models.py:ambiguous_inputs", 1, "input_ids", None),
    ],
)
def test_a_model_that_cannot_be_had(
    bcg: Any, models: Path, model: str, code: int, message: str, hint: str | None
) -> None:
    before = sorted(os.listdir(models))
    done = bcg("capture", model, "--device", "cpu", "--tokens", "4", "--json", "report.json")
    lines = done.err.splitlines()
    assert done.code == code, done.err
    assert done.out == ""
    assert len(lines) <= 2
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    if hint is not None:
        assert lines[1].startswith("hint: ")
        assert hint in lines[1]
    assert [name for name in sorted(os.listdir(models)) if name != "__pycache__"] == before


def test_the_users_own_traceback_is_kept(bcg: Any, models: Path) -> None:
    done = bcg("capture", "models.py:raises", "--device", "cpu", "--traceback")
    assert done.code == 1
    assert 'models.py", line ' in done.err
    assert "in raises" in done.err
    assert done.err.splitlines()[-2].startswith("error: factory models.py:raises raised KeyError")


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ("0", "a token count must be at least 1, got 0"),
        ("-4", "a token count must be at least 1, got -4"),
        ("four", "a token count must be a whole number, got 'four'"),
        ("4,4", "token count 4 is given twice"),
        ("9999999999", "a token count must be at most 1,048,576, got 9999999999"),
        ("1048577", "a token count must be at most 1,048,576, got 1,048,577"),
    ],
)
def test_token_counts_are_checked_before_the_model_is_touched(bcg: Any, tokens: str, message: str) -> None:
    done = bcg("capture", "no-such-model", f"--tokens={tokens}")
    assert done.code == 2
    assert done.err.splitlines()[0] == f"error: {message}"
    assert done.err.splitlines()[1].startswith("hint: ")


def test_the_output_folder_is_checked_before_the_model_is_touched(bcg: Any, tmp_path: Path) -> None:
    done = bcg("capture", "no-such-model", "--json", tmp_path / "none" / "report.json")
    assert done.code == 2
    assert done.err.splitlines() == [
        f"error: cannot write {tmp_path}/none/report.json: there is no folder {tmp_path}/none",
        "hint: make the folder first",
    ]
    done = bcg("capture", "no-such-model", "--html", tmp_path)
    assert done.code == 2
    assert done.err.endswith("it is there already and is not a file\nhint: choose another path\n")


def test_a_glob_that_matches_nothing(bcg: Any) -> None:
    done = bcg("capture", "--device", "cpu", "--break", "*.mlpp")
    assert done.code == 2
    assert done.err.splitlines() == [
        "error: --break '*.mlpp' matches no module, neither by path nor by class name",
        done.err.splitlines()[1],
    ]
    assert "*.mlp" in done.err.splitlines()[1]


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        ("Torch not compiled with CUDA enabled", "Torch not compiled with CUDA enabled", "built with CUDA"),
        (
            "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver by …",
            "The NVIDIA driver on your system is too old (found version 11040)",
            "update the driver",
        ),
        (
            "Found no NVIDIA driver on your system. Please check …",
            "Found no NVIDIA driver on your system",
            "--device cpu",
        ),
    ],
)
def test_cuda_without_a_usable_gpu(
    bcg: Any, monkeypatch: pytest.MonkeyPatch, words: str, message: str, hint: str
) -> None:
    _lose_the_gpu(monkeypatch, words)
    done = bcg("capture", "--device", "cuda")
    assert done.code == 1
    error, advice = done.err.splitlines()
    assert error == f"error: --device cuda: {message}"
    assert advice.startswith("hint: ")
    assert hint in advice


def test_auto_says_why_a_gpu_with_a_driver_is_not_used(
    bcg: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _lose_the_gpu(monkeypatch, "The NVIDIA driver on your system is too old (found version 11040). Please …")
    monkeypatch.setattr(device, "DRIVER_FILE", tmp_path)
    done = bcg("capture", "--tokens", "4")
    assert done.code == 0
    assert done.err.startswith("note: the GPU is not used: The NVIDIA driver on your system is too old")


def _lose_the_gpu(monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    def init() -> None:
        raise RuntimeError(words)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)


def test_two_outputs_need_two_files(bcg: Any, tmp_path: Path) -> None:
    path = tmp_path / "report"
    done = bcg("capture", "no-such-model", "--json", path, "--html", path)
    assert (done.code, path.exists()) == (2, False)
    assert "--json and --html both name" in done.err
    done = bcg("capture", "no-such-model", "--html", "-")
    assert done.code == 2
    assert "--html needs a file" in done.err
    assert "--trace needs a file" in bcg("profile", "no-such-model", "--trace", "-").err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("report", "in.json", "--html", "in.json"), "FILE and --html both name in.json"),
        (("report", "in.json", "--html", "link.json"), "FILE and --html both name link.json"),
        (("capture", "models.py:healthy", "--json", "./models.py"), "MODEL and --json both name models.py"),
        (("capture", "--workload", "in.json", "--html", "in.json"), "--workload and --html both name in.json"),
        (("replay-check", "--prompts", "in.json", "--json", "in.json"), "--prompts and --json both name in.json"),
        (("profile", "--json", "a", "--trace", "a"), "--json and --trace both name a"),
        (("profile", "--html", "a", "--trace", "empty/../a"), "--html and --trace both name empty/../a"),
    ],
)
def test_no_output_replaces_another_or_an_input(bcg: Any, models: Path, words: tuple[str, ...], message: str) -> None:
    (models / "in.json").write_text("7")
    (models / "link.json").symlink_to("in.json")
    before = {path.name: path.read_bytes() for path in models.iterdir() if path.is_file()}
    done = bcg(*words)
    assert (done.code, done.out) == (2, "")
    assert done.err == f"error: {message}\nhint: give each a file of its own\n"
    assert {path.name: path.read_bytes() for path in models.iterdir() if path.is_file()} == before
