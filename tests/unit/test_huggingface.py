from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch._subclasses import FakeTensorMode
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlavaConfig, T5Config

from bcg import GraphRunner, check
from bcg.context import ForwardContext, forward_context
from bcg.errors import ModelError, UsageError
from bcg.models import load_target, make_target
from bcg.models.huggingface import preset_config
from bcg.models.shapes import load_shapes
from bcg.presets import PRESETS
from bcg.target import make_batch
from bcg.words import TargetWords


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def test_a_trained_model_loads_with_its_own_weights_and_breaks(minilm: Path) -> None:
    target = load_target(str(minilm))
    assert target.info.source == "directory"
    assert target.info.weights == "safetensors"
    assert target.info.seed is None
    assert target.info.architecture == "BertModel"
    assert len(target.break_rules.attention) == 6
    assert target.packs_requests
    assert target.warnings == []


def test_trained_sentences_packed_are_as_each_is_alone(minilm: Path) -> None:
    from transformers import AutoTokenizer

    target = load_target(str(minilm))
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    sentences = ["A cat sits on the mat.", "The stock market fell today.", "Shares lost value on Monday."]
    tokens = [tokenizer(text, return_tensors="pt")["input_ids"] for text in sentences]
    lengths = tuple(ids.shape[1] for ids in tokens)
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    with forward_context(ForwardContext(lengths)):
        packed = target({"input_ids": torch.cat(tokens, 1), "position_ids": positions})
    means = []
    for ids, rows in zip(tokens, packed.split(lengths, dim=1), strict=True):
        alone = target({"input_ids": ids, "position_ids": torch.arange(ids.shape[1])[None]})
        torch.testing.assert_close(rows, alone, rtol=0, atol=1e-5)
        means.append(torch.nn.functional.normalize(rows.mean(1), dim=1))
    cat, market, shares = means
    assert (market @ shares.T).item() > 0.5 > (cat @ market.T).item()


def test_more_tokens_than_learned_positions_are_refused(minilm: Path) -> None:
    target = load_target(str(minilm))
    with pytest.raises(UsageError, match="has positions for 512 tokens, asked for 513"):
        make_batch(target, (513,), torch.Generator())


def test_a_directory_without_weights_gets_seeded_random_ones(tmp_path: Path) -> None:
    preset_config(PRESETS["qwen3-tiny"]).save_pretrained(tmp_path)
    first, again, other = (load_target(str(tmp_path), seed=seed) for seed in (1, 1, 2))
    assert first.info.weights == "random"
    assert first.info.seed == 1
    assert first.info.dtype == "float32"
    weights = [target.module.layers[0].mlp.up_proj.weight for target in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_saved_causal_lm_loads_as_its_inner_stack(tmp_path: Path) -> None:
    from transformers import Qwen3ForCausalLM

    model = Qwen3ForCausalLM(preset_config(PRESETS["qwen3-tiny"])).eval()
    model.save_pretrained(tmp_path)
    target = load_target(str(tmp_path))
    assert target.info.architecture == "Qwen3Model"
    ids = torch.arange(9)[None]
    with torch.inference_mode():
        expected = model.model(ids, use_cache=False).last_hidden_state
    assert torch.equal(target({"input_ids": ids, "position_ids": torch.arange(9)[None]}), expected)


def saved_checkpoint(folder: Path, **config: object) -> Path:
    """Save the tiny Qwen3 with its weights and these settings."""
    load_target("qwen3-tiny", attention_break=False).module.save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


def test_weights_that_no_file_holds_are_warned_of(tmp_path: Path) -> None:
    folder = saved_checkpoint(tmp_path)
    assert load_target(str(folder)).warnings == []
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith("layers.1.")}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    (warning,) = load_target(str(folder)).warnings
    assert warning.code == "weights-missing"
    count = f"{len(weights) - len(kept)} of {len(weights)} weights"
    assert warning.message == f"{count} of {folder} are in none of its files, first layers.1.input_layernorm.weight"


def test_weights_in_files_of_another_kind_are_said_to_be_unread(tmp_path: Path) -> None:
    folder = saved_checkpoint(tmp_path)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    assert load_target(str(folder)).warnings == []
    (folder / "model.safetensors").unlink()
    target = load_target(str(folder))
    assert target.info.weights == "random"
    assert [warning.message for warning in target.warnings] == [
        f"the weights of {folder} are random: pytorch_model.bin is not read"
    ]


@pytest.mark.parametrize("with_weights", [True, False])
def test_no_code_of_a_checkpoint_is_run(with_weights: bool, tmp_path: Path) -> None:
    own = {"auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model"}, "model_type": "own"}
    folder = saved_checkpoint(tmp_path, **own)
    (folder / "own.py").write_text("raise SystemExit('it was run')\n")
    if not with_weights:
        (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="contains custom code") as refused:
        load_target(str(folder))
    assert (
        refused.value.hint == "bcg runs no code out of a checkpoint: load it in a factory of your own (file.py:factory)"
    )


def test_an_encoder_decoder_needs_inputs_of_its_own(tmp_path: Path) -> None:
    config = T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=16)
    config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"^the forward of .* raised") as refused:
        load_target(str(tmp_path))
    assert refused.value.hint is not None and refused.value.hint.startswith("an encoder-decoder needs inputs for both")


def test_a_language_model_inside_another_model_has_its_own_positions_and_makes_no_cache(tmp_path: Path) -> None:
    text = LlamaConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=16)
    vision = CLIPVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=8
    )
    LlavaConfig(text_config=text, vision_config=vision).save_pretrained(tmp_path)
    target = load_target(str(tmp_path))
    assert target.forward_options == {"use_cache": False}
    assert target.max_tokens == text.max_position_embeddings, "not the two positions of the images"
    assert [step.status for step in GraphRunner(target).capture((4,))] == ["captured"]


def test_a_quantized_model_that_is_loaded_as_a_plain_one_is_warned_of(tmp_path: Path) -> None:
    folder = saved_checkpoint(tmp_path, quantization_config={"quant_method": "nosuch"})
    (warning,) = load_target(str(folder)).warnings
    assert warning.code == "not-quantized"
    assert warning.message == f"{folder} is quantized (nosuch), but was loaded as float32"


def test_a_quantized_model_replays_right(tmp_path: Path) -> None:
    """BitNet of transformers calls `torch.compile` by itself, which on a machine without a C++ compiler fails."""
    method = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}
    target = load_target(str(saved_checkpoint(tmp_path, quantization_config=method)))
    assert type(target.module.layers[0].mlp.up_proj).__name__ == "AutoBitLinear"
    assert target.warnings == []
    report = check(target, buckets=(8, 16))
    assert report.verdict == "match"
    assert all(bucket.bitwise for bucket in report.buckets)


def test_a_directory_without_a_config_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^directory .* holds no config\.json"):
        load_target(str(tmp_path))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", r"^can't read .*config\.json"),
        (json.dumps({"model_type": "no-such-architecture"}), r"^can't read .*config\.json"),
        (json.dumps({"model_type": "qwen3", "hidden_size": "wide"}), r"^can't read .*hidden_size.*got str"),
        (json.dumps({"model_type": "qwen3", "head_dim": 0}), "^transformers can't build "),
    ],
)
def test_a_config_that_cannot_be_read(config: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ModelError, match=message) as caught:
        load_target(str(tmp_path))
    assert "\n" not in caught.value.message


def test_damaged_weights_are_one_clear_line(tmp_path: Path) -> None:
    preset_config(PRESETS["qwen3-tiny"]).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(ModelError, match="^can't load ") as caught:
        load_target(str(tmp_path))
    assert "\n" not in caught.value.message


def test_a_missing_directory_is_not_taken_for_a_hub_id(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="^no such directory: "):
        load_target(str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="^no such directory: "):
        load_target("./nowhere")


@pytest.mark.usefixtures("offline")
def test_a_hub_id_without_a_network_is_one_clear_line() -> None:
    with pytest.raises(ModelError, match="^can't load no-such-owner/no-such-model: ") as caught:
        load_target("no-such-owner/no-such-model")
    assert "\n" not in caught.value.message
    assert caught.value.hint == "a hub id needs a network or a filled cache, with *.safetensors"


def test_weights_that_nobody_reads_are_warned_of(tmp_path: Path) -> None:
    folder = saved_checkpoint(tmp_path)
    weights = load_file(folder / "model.safetensors")
    more = {"layers.0.self_attn.q_proj.bias": torch.zeros(64), "lm_head.weight": torch.zeros(4, 4)}
    save_file(weights | more, folder / "model.safetensors", metadata={"format": "pt"})
    (warning,) = load_target(str(folder)).warnings
    assert warning.code == "weights-unused"
    assert warning.message.startswith(f"1 weights in the files of {folder} are of no use to the model")
    assert warning.message.endswith("first layers.0.self_attn.q_proj.bias")


def test_weights_of_other_sizes_are_named(tmp_path: Path) -> None:
    folder = saved_checkpoint(tmp_path, vocab_size=77)
    with pytest.raises(ModelError, match=r"^1 weights of .* first embed_tokens.weight: .* in the file, \[77, \d+\]"):
        load_target(str(folder))


@pytest.mark.parametrize(
    ("contents", "said"),
    [(b"", "download it again"), (b"version https://git-lfs.github.com/spec/v1\n", "run git lfs pull")],
)
def test_a_file_that_cant_be_read_is_named(tmp_path: Path, contents: bytes, said: str) -> None:
    folder = saved_checkpoint(tmp_path)
    (folder / "model.safetensors").write_bytes(contents)
    with pytest.raises(ModelError, match=f"^can't load .*: model.safetensors can't be read: {said}$"):
        load_target(str(folder))


@pytest.mark.parametrize("name", ["model.safetensors.index.json", "model.safetensors.incomplete"])
def test_a_part_of_a_checkpoint_gets_no_random_weights(tmp_path: Path, name: str) -> None:
    folder = saved_checkpoint(tmp_path)
    (folder / "model.safetensors").unlink()
    (folder / name).write_text("{}")
    with pytest.raises(ModelError, match=f"is a part of a checkpoint: it has {name}, and no") as refused:
        load_target(str(folder))
    assert refused.value.hint == "download it again"


def test_an_adapter_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UsageError, match="holds an adapter, not a model$"):
        load_target(str(tmp_path))


@pytest.mark.parametrize("plans", [True, False])
def test_code_and_quantization_that_are_left_out_are_warned_of(tmp_path: Path, plans: bool) -> None:
    folder = saved_checkpoint(
        tmp_path, quantization_config={"quant_method": "nosuch"}, auto_map={"AutoModel": "own.Model"}
    )
    found = load_shapes(TargetWords(str(folder)), FakeTensorMode()) if plans else load_target(str(folder))
    assert [warning.code for warning in found.warnings] == ["own-code-not-run", "not-quantized"]
    assert ("but was planned as float32" in found.warnings[1].message) == plans
    assert "transformers' qwen3 is run instead" in found.warnings[0].message


def test_images_have_no_positions_in_a_text() -> None:
    config = CLIPVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4
    )

    def images(num_tokens: int, device: torch.device, generator: torch.Generator) -> dict[str, torch.Tensor]:
        return {"pixel_values": torch.randn(num_tokens, 3, 8, 8, device=device, generator=generator)}

    target = make_target(CLIPVisionModel(config), images)
    assert target.max_tokens is None, "it has five, of the four patches of an image"
    assert [row.status for row in GraphRunner(target).capture((8,))] == ["captured"]
