"""Real prompts through the graphs, with a trained model and with a language model that has a head."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from bcg import GraphRunner, UsageError, check, current_forward_context, eager_on_graph, load_target
from bcg.checking.compare import Tolerance
from bcg.checking.prompts import LanguageModelHead, check_prompts, language_model_head
from bcg.checking.spread import Spread
from bcg.errors import ModelError
from bcg.report import PromptCheck
from bcg.state import ModelState
from tests.targets import own_target

PROMPTS = ["The cat sits on the mat.", "hello", "A graph replays in segments, with eager breaks between.", "word " * 40]


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def language_model(request: pytest.FixtureRequest, tmp_path: Path, minilm: Path) -> Path:
    """A small causal language model with random weights and a trained model's tokenizer."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=30522,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        tie_word_embeddings=request.param,
    )
    Qwen3ForCausalLM(config).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        if (minilm / name).exists():
            shutil.copy(minilm / name, tmp_path / name)
    return tmp_path


def test_a_trained_model_on_prompts(minilm: Path) -> None:
    report = check(str(minilm), buckets=(16, 32), prompts=PROMPTS, num_rounds=1)
    assert report.verdict == "match"
    found = report.prompts
    assert found is not None and found.verdict == "match" and found.bitwise
    assert (found.num_prompts, found.num_replayed, found.num_eager, found.num_batches) == (4, 3, 1, 1)
    assert found.num_next_tokens == 0
    assert [warning.code for warning in report.warnings] == ["prompts-not-replayed"]


def test_next_tokens_of_a_language_model(language_model: Path) -> None:
    report = check(str(language_model), buckets=(8, 64), prompts=PROMPTS, num_rounds=1)
    found = report.prompts
    assert found is not None and found.verdict == "match"
    assert (found.num_next_tokens, found.num_other_next_tokens) == (4, 0)
    assert found.num_batches == 2


def test_the_head_is_the_models_own(language_model: Path) -> None:
    target = load_target(str(language_model))
    head = language_model_head(target)
    assert head is not None
    whole = Qwen3ForCausalLM.from_pretrained(language_model)
    hidden = torch.randn(3, 32)
    assert torch.allclose(head(hidden), whole.lm_head(hidden), atol=1e-5)


def test_the_head_of_a_hub_id_is_in_the_cache(
    language_model: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path_factory.mktemp("hub")
    stored = cache / "models--someone--small"
    for folder in ("refs", "snapshots"):
        (stored / folder).mkdir(parents=True)
    (stored / "refs" / "main").write_text("0" * 40)
    (stored / "snapshots" / ("0" * 40)).symlink_to(language_model)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    target = load_target(str(language_model))
    target.name, target.info = "someone/small", msgspec.structs.replace(target.info, source="hub")
    head = language_model_head(target)
    assert head is not None
    assert torch.equal(head(torch.ones(1, 32)), _head_of(language_model)(torch.ones(1, 32)))


def _head_of(path: Path) -> Any:
    return language_model_head(load_target(str(path)))


@pytest.mark.parametrize("language_model", [False], indirect=True, ids=["untied"])
def test_a_path_from_the_home_folder(language_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(language_model.parent))
    report = check(f"~/{language_model.name}", buckets=(8, 64), prompts=PROMPTS[:1], num_rounds=1)
    assert report.prompts is not None and report.prompts.num_next_tokens == 1


@pytest.mark.parametrize("language_model", [False], indirect=True, ids=["untied"])
def test_a_head_that_is_not_found_is_warned_of(language_model: Path) -> None:
    (language_model / "model.safetensors").unlink()
    report = check(str(language_model), buckets=(8, 64), prompts=PROMPTS[:1], num_rounds=1)
    assert report.prompts is not None and report.prompts.num_next_tokens == 0
    assert [warning.code for warning in report.warnings] == ["next-tokens-not-compared"]


def test_only_prompts_that_are_too_long_prove_nothing(minilm: Path) -> None:
    report = check(str(minilm), buckets=(4,), prompts=[PROMPTS[3]], num_rounds=1)
    assert report.prompts is not None and report.prompts.verdict == "inconclusive"
    assert report.verdict == "inconclusive"


class Baked(nn.Module):
    """Multiplies by the longest request of the capture."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 4)

    def forward(self, input_ids: Tensor) -> Tensor:
        context = current_forward_context()
        result: Tensor = self.embedding(input_ids) * (context.max_length if context else 1)
        return result


def test_a_wrong_replay_of_prompts_is_found(device: str) -> None:
    target = own_target(Baked(), device)
    runner = GraphRunner(target)
    runner.capture((8,))
    found, spread = checked_prompts(runner, [[1, 2, 3], [4, 5]], lambda hidden: hidden.flip(-1))
    assert found.verdict == "mismatch" and not found.bitwise
    assert (found.num_replayed, spread.largest) == (2, 0.0)


CALLS = itertools.count()


class Counting(nn.Module):
    """Gives something else three times in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 4)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.count(self.embedding(input_ids))

    @eager_on_graph
    def count(self, x: Tensor) -> Tensor:
        return x + next(CALLS) % 3


def test_prompts_on_an_eager_that_differs_from_itself_tell_nothing(device: str) -> None:
    runner = GraphRunner(own_target(Counting(), device))
    runner.capture((8,))
    found, spread = checked_prompts(runner, [[1, 2, 3], [4, 5]])
    assert (found.verdict, found.bitwise) == ("inconclusive", False)
    assert spread.largest > 0


def checked_prompts(
    runner: GraphRunner, encoded: list[list[int]], head: LanguageModelHead | None = None
) -> tuple[PromptCheck, Spread]:
    state, spread = ModelState(runner.target.module), Spread()
    return check_prompts(runner, encoded, head, state, state.save(), Tolerance(), spread), spread


@pytest.mark.parametrize("language_model", [True], indirect=True, ids=["tied"])
def test_a_token_that_the_model_does_not_know(language_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(language_model)
    tokenizer.add_tokens(["zebrafish"])
    tokenizer.save_pretrained(language_model)
    with pytest.raises(ModelError, match="makes token 30522 of 'a zebrafish', the model knows 30522$"):
        check(str(language_model), buckets=(8,), prompts=["hello", "a zebrafish"], num_rounds=1)


def test_a_model_without_a_tokenizer(language_model: Path) -> None:
    with pytest.raises(UsageError, match="^prompts need a model with a tokenizer, and qwen3-tiny has none$"):
        check("qwen3-tiny", prompts=["a"])
