"""The inputs that nobody made: a model's token ids and positions are those that its own forward would use."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    BertConfig,
    BertForMaskedLM,
    CLIPConfig,
    MixtralConfig,
    NystromformerConfig,
    Phi3Config,
    PreTrainedModel,
    RobertaConfig,
    T5Config,
    T5EncoderModel,
)

from bcg import BcgError, Target
from bcg.models import load_target
from bcg.target import make_batch
from tests.targets import own_target

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 80,
}


def batch_inputs(target: Target, tokens: int = 40) -> dict[str, Tensor]:
    return make_batch(target, (tokens,), torch.Generator().manual_seed(3)).inputs


@pytest.mark.parametrize("config", [NystromformerConfig, RobertaConfig, BertConfig])
def test_positions_begin_where_the_models_own_do(tmp_path: Path, config: Any) -> None:
    """Nystromformer's begin at 2, which nothing says; of few ids many would be padding, which RoBERTa passes over."""
    torch.manual_seed(0)
    settings = {**SMALL, "vocab_size": 16, "num_landmarks": 4, "segment_means_seq_len": 4}
    model = AutoModel.from_config(config(**settings)).eval()
    model.save_pretrained(tmp_path)
    target = load_target(str(tmp_path))
    inputs = batch_inputs(target)
    assert "position_ids" in inputs
    with torch.inference_mode():
        torch.testing.assert_close(target(inputs), model(inputs["input_ids"]).last_hidden_state)


class CountsBackwards(nn.Module):
    num_places, first, step = 64, 40, -1

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(16, 4), nn.Embedding(self.num_places, 4)

    def forward(self, input_ids: Tensor, position_ids: Tensor | None = None) -> Tensor:
        if position_ids is None:
            position_ids = self.first + self.step * torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        places: Tensor = self.tokens(input_ids) + self.positions(position_ids)
        return places


def test_positions_that_no_beginning_explains_are_left_to_the_model() -> None:
    torch.manual_seed(0)
    target = own_target(CountsBackwards(), "cpu", attention_break=True)
    assert [spec.name for spec in target.input_specs] == ["input_ids"]
    assert not target.packs_requests
    assert target.warnings[0].code == "model-positions"
    assert target.warnings[0].message == "CountsBackwards counts positions itself, and takes one request per batch"


class HasFewPlaces(CountsBackwards):
    num_places, first, step = 12, 1, 1


def test_a_model_of_few_positions_is_asked_about_no_more() -> None:
    target = own_target(HasFewPlaces(), "cpu")
    assert target.max_tokens == 12
    assert make_batch(target, (3,), torch.Generator()).inputs["position_ids"].tolist() == [[1, 2, 3]]


class NeedsPositions(CountsBackwards):
    def forward(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(input_ids, position_ids)


class DrawsNumbers(CountsBackwards):
    def forward(self, input_ids: Tensor, position_ids: Tensor | None = None) -> Tensor:
        return super().forward(input_ids, torch.arange(input_ids.shape[1])[None]) + torch.rand(4)


@pytest.mark.parametrize("kind", [NeedsPositions, DrawsNumbers])
def test_positions_stay_where_a_model_needs_them_or_only_its_random_numbers_differ(kind: type[nn.Module]) -> None:
    target = own_target(kind(), "cpu")
    assert [spec.name for spec in target.input_specs] == ["input_ids", "position_ids"]
    assert "model-positions" not in [warning.code for warning in target.warnings]


def test_a_pooler_that_no_file_holds_is_not_missed(tmp_path: Path) -> None:
    BertForMaskedLM(BertConfig(**SMALL, vocab_size=16)).save_pretrained(tmp_path)
    target = load_target(str(tmp_path))
    assert target.info.architecture == "BertModel"
    assert target.warnings == []


def saved(folder: Path, model: PreTrainedModel) -> str:
    model.save_pretrained(folder)
    return str(folder)


def test_what_a_model_takes_beside_token_ids_is_hinted_at(tmp_path: Path) -> None:
    tower = {**SMALL, "image_size": 8, "patch_size": 4, "projection_dim": 8, "vocab_size": 16}
    tower.pop("max_position_embeddings")
    clip = saved(tmp_path / "clip", AutoModel.from_config(CLIPConfig(text_config=tower, vision_config=tower)))
    with pytest.raises(BcgError) as refused:
        load_target(clip)
    assert refused.value.hint is not None and refused.value.hint.startswith("it takes pixel_values too: ")
    small = T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=16)
    with pytest.raises(BcgError) as refused:
        load_target(saved(tmp_path / "t5", T5EncoderModel(small)))
    assert refused.value.hint is not None and refused.value.hint.startswith("an encoder-decoder needs inputs for both")


def test_a_dry_run_hints_as_a_capture_does_and_logs_no_traceback(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    from bcg.models.shapes import load_shapes
    from bcg.planning import plan
    from bcg.words import TargetWords

    T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=16).save_pretrained(tmp_path / "t5")
    MixtralConfig(**SMALL, vocab_size=16, num_key_value_heads=2, dtype="float64").save_pretrained(tmp_path / "mixtral")
    monkeypatch.setattr(logging.getLogger("torch"), "propagate", True)
    hints = {"t5": "an encoder-decoder needs inputs for both", "mixtral": "torch's grouped product of experts does"}
    for name, hint in hints.items():
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        with pytest.raises(BcgError) as refused:
            plan(load_shapes(TargetWords(str(tmp_path / name)), mode), mode, (8,), {})
        assert refused.value.hint is not None and refused.value.hint.startswith(hint)
        assert [record for record in caplog.records if record.levelname == "ERROR"] == []


@pytest.mark.parametrize(("kind", "is_warned_of"), [("longrope", True), ("default", False)])
def test_rotary_factors_of_the_longest_request_are_warned_of(tmp_path: Path, kind: str, is_warned_of: bool) -> None:
    factors = {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8} if is_warned_of else {}
    config = Phi3Config(
        **SMALL,
        vocab_size=16,
        num_key_value_heads=2,
        pad_token_id=0,
        original_max_position_embeddings=32,
        rope_parameters={"rope_type": kind, "rope_theta": 1e4, **factors},
    )
    config.save_pretrained(tmp_path)
    target = load_target(str(tmp_path))
    assert target.packs_requests
    assert [warning.code for warning in target.warnings] == ["rope-by-length"] * is_warned_of


def test_a_sequence_that_begins_with_an_embedding_is_given_ids() -> None:
    target = own_target(nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 4)), "cpu")
    assert [spec.name for spec in target.input_specs] == ["input"]
