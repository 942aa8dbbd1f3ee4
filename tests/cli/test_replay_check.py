"""``bcg replay-check`` from the command line to table, file and exit code, on the host device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bcg.report import CheckReport, read_report

MODELS = """
import itertools
import os
import torch
from bcg import current_forward_context, eager_on_graph

def make_inputs(num_tokens, device, generator):
    return {"x": torch.rand((num_tokens, 4), device=device, generator=generator)}

class Scale(torch.nn.Module):
    def forward(self, x):
        context = current_forward_context()
        return x * (context.max_length if context else 1)

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.scale = torch.nn.Linear(4, 4), Scale()

    def forward(self, x):
        return self.scale(self.linear(x))

class Noise(torch.nn.Module):
    def forward(self, x):
        return self.add(x + 1)

    @eager_on_graph
    def add(self, x):
        return x + int.from_bytes(os.urandom(4), "big") / 2**32

CALLS = itertools.count()

class Spoilt(torch.nn.Module):
    def forward(self, x):
        return self.spoil(x + 1)

    @eager_on_graph
    def spoil(self, x):
        return x * torch.nan if next(CALLS) % 3 == 2 else x.clone()

class Hooked(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_forward_hook(lambda *_: None)

    def forward(self, x):
        return x + 1

class Reads(torch.nn.Module):
    def forward(self, x):
        return x * x.sum().item()

def baked():
    return Model(), make_inputs

def noisy():
    return Noise(), make_inputs

def spoilt():
    return Spoilt(), make_inputs

def hooked():
    return Hooked(), make_inputs

def reading():
    return Reads(), make_inputs
"""

WORDS = ("--device", "cpu", "--tokens", "4,8")


@pytest.fixture
def models(tmp_path: Path) -> Path:
    path = tmp_path / "models.py"
    path.write_text(MODELS)
    return path


def test_a_preset_matches(bcg: Any, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    done = bcg("replay-check", *WORDS, "--json", path)
    assert done.code == 0, done.err
    assert done.err == f"note: report written to {path}\n"
    assert done.out.count("match (bitwise)") == 2
    assert "2 of 2 match" in done.out
    report = read_report(path)
    assert isinstance(report, CheckReport)
    assert report.verdict == "match"
    assert [bucket.tokens for bucket in report.buckets] == [4, 8]
    assert all(bucket.bitwise and bucket.num_replays == 6 for bucket in report.buckets)
    assert report.timing.model_ms > 0 and report.timing.eager_ms > 0


def test_a_mismatch_is_named_and_exits_with_3(bcg: Any, models: Path, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    done = bcg("replay-check", f"{models}:baked", *WORDS, "--json", path)
    assert done.code == 3
    assert "error: replay is not eager in 2 of 2 buckets: S2: aten.mul.Tensor has 4 baked in" in done.err
    report = read_report(path)
    assert isinstance(report, CheckReport)
    (card,) = report.findings
    assert (card.hazard, card.module) == ("S2", "scale")
    assert card.source_line == f"{models}:13"
    assert "S2 aten.mul.Tensor" in done.out
    assert report.buckets[0].first_divergence is not None
    assert report.buckets[0].first_divergence.module == "scale"


def test_without_locating_the_mismatch_is_still_one(bcg: Any, models: Path) -> None:
    done = bcg("replay-check", f"{models}:baked", *WORDS, "--no-locate")
    assert done.code == 3
    assert "unknown cause: replay differs from eager in the bucket of 4" in done.out


def test_a_module_that_is_random_is_inconclusive(bcg: Any, models: Path) -> None:
    done = bcg("replay-check", f"{models}:noisy", *WORDS)
    assert done.code == 3
    assert "error: the check is inconclusive in " in done.err
    assert "eager differs from itself" in done.err


def test_eager_that_is_nan_now_and_then_gives_a_report_that_can_be_read(bcg: Any, models: Path, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    done = bcg("replay-check", f"{models}:spoilt", *WORDS, "--json", path)
    assert done.code == 3
    assert "error: the check is inconclusive in " in done.err
    report = read_report(path)
    assert isinstance(report, CheckReport) and report.spread is None
    shown = bcg("report", path, "--html", tmp_path / "page.html")
    assert shown.code == 0, shown.err
    for text in (shown.out, (tmp_path / "page.html").read_text()):
        assert "Eager differs from itself by NaN or infinity: no bits are compared." in text
        assert "eager differs from itself by NaN or infinity, replay from eager by " in text


def test_hooks_are_warned_of(bcg: Any, models: Path) -> None:
    done = bcg("replay-check", f"{models}:hooked", *WORDS)
    assert done.code == 0, done.err
    assert "1 forward hook will not run in a replay, the first on the root module at" in " ".join(done.out.split())


def test_what_cannot_be_captured_is_an_error_or_gets_a_break(bcg: Any, models: Path) -> None:
    done = bcg("replay-check", f"{models}:reading", *WORDS)
    assert done.code == 1
    assert "the host reads a device value inside a segment" in done.err
    assert "hint: give --auto-break to check with the breaks of `bcg capture`; or " in done.err
    done = bcg("replay-check", f"{models}:reading", *WORDS, "--auto-break")
    assert "--auto-break to check" not in done.err


def test_json_to_stdout_and_the_page(bcg: Any, tmp_path: Path) -> None:
    done = bcg("replay-check", *WORDS, "--rounds", 1, "--json", "-", "--html", tmp_path / "page.html")
    assert done.code == 0, done.err
    assert json.loads(done.out)["kind"] == "replay-check"
    assert "token counts match" in (tmp_path / "page.html").read_text()
    (tmp_path / "report.json").write_text(done.out)
    assert bcg("report", tmp_path / "report.json").out.count("match (bitwise)") == 2


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--rtol", "-1"), "error: --rtol must be a number of at least 0, got -1\n"),
        (("--atol", "nan"), "error: --atol must be a number of at least 0, got nan\n"),
        (("--rounds", "0"), "--rounds"),
    ],
)
def test_bad_numbers(bcg: Any, words: tuple[str, str], text: str) -> None:
    done = bcg("replay-check", *WORDS, *words)
    assert done.code == 2
    assert text in done.err
    assert done.out == ""


def test_prompts_are_read_before_anything_else(bcg: Any, models: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("")
    for path, text in ((tmp_path / "none", "cannot read prompts"), (tmp_path / "empty", "hold no prompt")):
        done = bcg("replay-check", "no-such-model", *WORDS, "--prompts", path)
        assert done.code == 2
        assert text in done.err
    (tmp_path / "prompts").write_text("hello")
    done = bcg("replay-check", *WORDS, "--prompts", tmp_path / "prompts")
    assert done.code == 2
    assert "error: prompts need a model with a tokenizer, and qwen3-tiny has none\nhint: " in done.err


def test_prompts_without_a_tokenizer_beside_the_model(bcg: Any, minilm: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "model.safetensors"):
        (model / name).symlink_to(minilm / name)
    (tmp_path / "prompts").write_text("hello")
    done = bcg("replay-check", model, *WORDS, "--prompts", tmp_path / "prompts")
    assert done.code == 2
    assert "error: prompts need a model with a tokenizer, and there is none in" in done.err
    (model / "tokenizer.json").write_text("{")
    done = bcg("replay-check", model, *WORDS, "--prompts", tmp_path / "prompts")
    assert done.code == 1
    assert "error: the tokenizer of" in done.err


def test_prompts_are_shown(bcg: Any, minilm: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts").write_text("hello\n" + "word " * 60)
    done = bcg("replay-check", minilm, "--device", "cpu", "--tokens", "16", "--prompts", tmp_path / "prompts")
    assert done.code == 0, done.err
    assert "Prompts: 1 of 2 replayed, 3 tokens in 1 batch: match (bitwise)" in " ".join(done.out.split())
    assert "1 of 2 prompts are longer than 16 tokens" in " ".join(done.out.split())
