"""The attention break against the stock implementation, over architectures that attend in their own ways."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import transformers
from transformers import CONFIG_MAPPING, AutoConfig

from bcg import Batch, GraphRunner, attention, attention_interface, check
from bcg.breaks import BreakLabel
from bcg.context import ForwardContext, forward_context
from bcg.diagnose import break_where_needed
from bcg.errors import ModelError, ReplayError
from bcg.models.build import Made, build_target
from bcg.models.huggingface import quiet, random_model
from bcg.structure import tensors_in
from bcg.target import Target, make_batch, plain_output
from bcg.words import TargetWords
from benchmarks.tiny import tiny_config
from tests.targets import own_target

CPU = torch.device("cpu")
COMMON = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "qwen3": {},
    "mistral": {"sliding_window": 6},
    "gemma2": {"sliding_window": 6, "query_pre_attn_scalar": 16, "attn_logit_softcapping": 0.5},
    "gpt_oss": {"sliding_window": 6, "num_local_experts": 4, "num_experts_per_tok": 2},
    "bert": {},
    "modernbert": {"local_attention": 8, "global_attn_every_n_layers": 2},
    "qwen3_next": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32,
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
    },
}
LENGTHS = (9, 1, 12)


def load(name: str, **options: Any) -> Target:
    with quiet():
        config = AutoConfig.for_model(name, **{**COMMON, **ARCHITECTURES.get(name, {}), **options.pop("config", {})})
    module = random_model(TargetWords(name), config, torch.float32)
    # Attention over random weights is nearly uniform; sharper scores make windows, caps and sinks matter.
    for path, parameter in module.named_parameters():
        if path.endswith(("q_proj.weight", "k_proj.weight", "query.weight", "key.weight", "Wqkv.weight")):
            parameter.data.mul_(15)
        if path.endswith("sinks"):
            parameter.data.fill_(2)
    return build_target(Made(module, "preset", "random", seed=0), TargetWords(name, **options))


def batch_for(target: Target, lengths: tuple[int, ...], padding: int = 0, fill: int = 0) -> dict[str, torch.Tensor]:
    inputs = make_batch(target, lengths, torch.Generator().manual_seed(5)).inputs
    return {name: torch.nn.functional.pad(value, (0, padding), value=fill) for name, value in inputs.items()}


def run(target: Target, inputs: dict[str, torch.Tensor], lengths: tuple[int, ...] | None) -> torch.Tensor:
    with forward_context(None if lengths is None else ForwardContext(lengths)):
        output: torch.Tensor = target(inputs)
    return output


@pytest.fixture(scope="module", params=ARCHITECTURES)
def pair(request: pytest.FixtureRequest) -> tuple[Target, Target]:
    """The stock model and the same one with breaks."""
    return load(request.param, attention_break=False), load(request.param)


def test_with_breaks_the_output_is_the_stock_one_bitwise(pair: tuple[Target, Target]) -> None:
    stock, broken = pair
    inputs = batch_for(broken, (22,))
    expected = run(stock, inputs, None)
    assert torch.equal(run(broken, inputs, None), expected)
    assert torch.equal(run(broken, inputs, (22,)), expected)


def test_padding_rows_do_not_reach_real_ones(pair: tuple[Target, Target]) -> None:
    stock, broken = pair
    expected = run(stock, batch_for(broken, (22,)), None)
    padded = [run(broken, batch_for(broken, (22,), 4, fill), (22,)) for fill in (0, 77)]
    for rows in padded:  # not to the bit: experts multiply as many rows as they are given, padding among them
        torch.testing.assert_close(rows[:, :22], expected, rtol=0, atol=5e-6)


@pytest.mark.parametrize("name", ["deepseek_v4", "inkling2_text"])
def test_keys_of_their_own_and_options_per_row_are_not_cut_wrongly(name: str) -> None:
    """Compressed keys (the first), attention over blocks and a sink for every row (the second)."""
    if name not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {name}")
    stock, broken = (
        own_target(
            random_model(TargetWords(name), tiny_config(name), torch.float32), "cpu", attention_break=attention_break
        )
        for attention_break in (False, True)
    )
    assert broken.break_rules.attention
    expected = run(stock, batch_for(broken, (22,)), None)
    assert torch.equal(run(broken, batch_for(broken, (22,)), (22,)), expected)
    padded = run(broken, batch_for(broken, (22,), 4, 77), (22,))
    torch.testing.assert_close(padded[:, :22], expected, rtol=0, atol=5e-6)


def test_packed_requests_are_what_each_is_alone(pair: tuple[Target, Target]) -> None:
    """Behaviour 36: the live batch's context reaches the breaks."""
    stock, broken = pair
    assert broken.packs_requests
    inputs = batch_for(broken, LENGTHS, padding=3)
    packed, start = run(broken, inputs, LENGTHS), 0
    for length in LENGTHS:
        alone = {name: value[:, start : start + length] for name, value in inputs.items()}
        torch.testing.assert_close(packed[:, start : start + length], run(stock, alone, None), rtol=0, atol=2e-5)
        start += length


@pytest.mark.parametrize(
    ("name", "without"),
    [
        ("mistral", {"sliding_window": None}),
        ("gemma2", {"attn_logit_softcapping": None}),
        ("modernbert", {"local_attention": 128}),
    ],
)
def test_windows_and_caps_matter_in_these_tests(name: str, without: dict[str, Any]) -> None:
    inputs = batch_for(load(name), (22,))
    assert (run(load(name), inputs, (22,)) - run(load(name, config=without), inputs, (22,))).abs().max() > 0.05


def test_a_soft_cap_is_applied_whatever_the_library_would_default_to() -> None:
    assert load("gemma2", attention_break=False).module.config._attn_implementation == "eager"


def test_sinks_matter_in_these_tests() -> None:
    target = load("gpt_oss")
    inputs = batch_for(target, (22,))
    before = run(target, inputs, (22,))
    target.module.layers[0].self_attn.sinks.data.fill_(-50)
    assert (run(target, inputs, (22,)) - before).abs().max() > 0.05


def test_metadata_larger_than_the_bucket_is_refused_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule 7."""
    target = load("qwen3")
    layer = target.module.layers[0].self_attn
    found = attention_interface._breaks[layer]
    monkeypatch.setattr(found, "original", lambda *args, **kwargs: pytest.fail("the attention ran"))
    with pytest.raises(ReplayError, match="^the forward context describes 9 tokens in 2 requests"):
        run(target, batch_for(target, (8,)), (4, 5))


def test_masks_are_built_once_per_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    target, built = load("mistral"), []
    make = attention.build_mask

    def counting(*args: Any, **kwargs: Any) -> Any:
        built.append(args)
        return make(*args, **kwargs)

    monkeypatch.setattr(attention, "build_mask", counting)
    run(target, batch_for(target, (10, 10)), (10, 10))
    assert len(built) == 1


def test_every_attention_module_is_a_break_by_path(monkeypatch: pytest.MonkeyPatch) -> None:
    target, labels = load("qwen3"), []

    def recording(function: Any, args: Any, kwargs: Any, label: BreakLabel) -> Any:
        labels.append(label)
        return function(*args, **kwargs)

    monkeypatch.setattr(attention, "call_break", recording)
    run(target, batch_for(target, (8,)), (8,))
    assert labels == [
        BreakLabel("sdpa_attention_forward", f"layers.{index}.self_attn", "attention") for index in range(4)
    ]
    assert target.break_rules.attention == tuple(label.module for label in labels)


def test_without_the_attention_break_the_stock_implementation_stays() -> None:
    target = load("qwen3_next", attention_break=False)
    assert target.module.config._attn_implementation == "sdpa"
    assert target.break_rules.attention == target.break_rules.mixers == ()
    assert target.warnings == []


def test_a_locally_overridden_implementation_is_the_one_that_runs() -> None:
    """Doge declares an attention interface of its own; the break must look there."""
    from transformers.models.doge import modeling_doge

    stock, broken = load("doge", attention_break=False), load("doge")
    layer = broken.module.layers[0].self_attn
    assert attention_interface._breaks[layer].original is modeling_doge.ALL_ATTENTION_FUNCTIONS["sdpa"]
    inputs = batch_for(broken, (22,))
    assert torch.equal(run(broken, inputs, (22,)), run(stock, inputs, None))


def test_chunked_attention_keeps_the_models_masks_and_takes_one_request() -> None:
    options = {"attention_chunk_size": 8, "num_local_experts": 2, "intermediate_size_mlp": 64}
    stock, broken = (load("llama4_text", config=options, attention_break=on) for on in (False, True))
    inputs = batch_for(broken, (22,))
    assert broken.module.config._attn_implementation == "bcg_sdpa_with_model_masks"
    assert torch.equal(run(broken, inputs, (22,)), run(stock, inputs, None))
    torch.testing.assert_close(
        run(broken, batch_for(broken, (22,), 4), (22,))[:, :22], run(stock, inputs, None), rtol=0, atol=5e-6
    )
    assert not broken.packs_requests
    with pytest.raises(ReplayError, match="^packed prefill needs attention that works without the model's own mask"):
        run(broken, batch_for(broken, LENGTHS), LENGTHS)


def padded_inputs(num_tokens: int, device: torch.device, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Make a request of which the first half is padding."""
    ids = torch.randint(128, (1, num_tokens), device=device, generator=generator)
    return {"input_ids": ids, "attention_mask": (torch.arange(num_tokens) >= num_tokens // 2).long()[None]}


class Masking(torch.nn.Module):
    """Masks the first half of its tokens, as nothing in its inputs tells."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        length = tokens.shape[1]
        mask = (torch.arange(length, device=tokens.device) >= length // 2).long()[None]
        output: torch.Tensor = self.model(input_ids=tokens, attention_mask=mask, use_cache=False).last_hidden_state
        return output


def tokens_only(num_tokens: int, device: torch.device, generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {"tokens": padded_inputs(num_tokens, device, generator)["input_ids"]}


@pytest.mark.parametrize("is_input", [True, False], ids=["an input", "made by the model"])
@pytest.mark.parametrize("name", ["qwen3", "mistral", "gemma2"])
def test_a_mask_of_the_users_is_respected(name: str, is_input: bool) -> None:
    module = load(name, attention_break=False).module
    module, make = (module, padded_inputs) if is_input else (Masking(module), tokens_only)
    inputs = make(16, CPU, torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = plain_output(module(**inputs), name).clone()
    target = own_target(module, "cpu", make, name=name, attention_break=True)
    assert target.break_rules.attention
    (warning,) = [warning for warning in target.warnings if warning.code == "model-masks"]
    assert ("attention_mask" in warning.cause) == is_input
    assert not target.packs_requests
    break_where_needed(target, (16,))  # mask builders of transformers 5.17 copy constants to the device
    runner = GraphRunner(target)
    runner.capture((16,))
    torch.testing.assert_close(runner.replay(Batch(inputs, (16,))), expected, rtol=0, atol=5e-6)


def test_masks_of_one_target_are_not_those_of_the_next() -> None:
    module = load("qwen3", attention_break=False).module
    with attention_interface.attention_kept(module):
        own_target(module, "cpu", padded_inputs, attention_break=True)
    target = own_target(module, "cpu", attention_break=True)
    assert (target.packs_requests, target.warnings) == (True, [])


def test_an_architecture_outside_the_interface_is_warned_about() -> None:
    """Rule 9: a break rule that matched nothing."""
    target = load("mpnet")
    assert [warning.code for warning in target.warnings] == ["no-default-break", "requests-mix"]
    assert not target.packs_requests


def test_state_that_flows_between_requests_is_warned_about() -> None:
    target = load("minimax", config={"num_local_experts": 2, "num_experts_per_tok": 1, "block_size": 8})
    assert [warning.code for warning in target.warnings] == ["requests-mix"]
    assert not target.packs_requests


def test_learned_positions_start_after_the_padding_index_and_end_with_the_table() -> None:
    target = load("roberta")
    positions = batch_for(target, (3, 2))["position_ids"]
    assert positions.tolist() == [[1, 2, 3, 1, 2]]
    with pytest.raises(Exception, match="^roberta has positions for 255 tokens, asked for 256"):
        batch_for(target, (256,))


SPARSE = {
    "num_key_value_heads": 4,
    "head_dim": 8,
    "index_head_dim": 16,
    "index_n_heads": 2,
    "index_topk": 6,
    "kv_lora_rank": 16,
    "q_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "moe_intermediate_size": 32,
}


def test_sparse_attention_stays_sparse() -> None:
    """The model makes the choice of keys a mask only for implementations that it knows by name."""
    stock = load("deepseek_v32", attention_break=False, config=SPARSE)
    dense = load("deepseek_v32", attention_break=False, config={**SPARSE, "index_topk": 64})
    broken = load("deepseek_v32", config=SPARSE)
    assert len(broken.break_rules.attention) == 4
    inputs = batch_for(broken, (22,))
    expected = run(stock, inputs, None)
    assert torch.equal(run(broken, inputs, (22,)), expected)
    assert not torch.allclose(run(dense, inputs, None), expected, atol=1e-3)
    (warning,) = broken.warnings
    assert (warning.code, warning.remedy) == ("model-masks", "give one request per batch")


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("gemma3_text", {"sliding_window": 24, "query_pre_attn_scalar": 16, "use_bidirectional_attention": True}),
        ("modernbert", {"local_attention": 24, "global_attn_every_n_layers": 2}),
    ],
)
def test_a_two_sided_window_is_as_wide_as_the_models_own(name: str, config: dict[str, Any]) -> None:
    """Wider than the first forwards, which would not show it."""
    stock, broken = load(name, attention_break=False, config=config), load(name, config=config)
    assert broken.packs_requests
    for lengths in ((60,), (3, 50, 40)):
        inputs = batch_for(broken, lengths)
        alone = [
            run(stock, {key: value[:, start:end] for key, value in inputs.items()}, None)
            for start, end in itertools.pairwise(itertools.accumulate(lengths, initial=0))
        ]
        torch.testing.assert_close(run(broken, inputs, lengths), torch.cat(alone, 1), rtol=0, atol=5e-6)


def test_a_two_sided_window_that_is_read_wrongly_is_found_beyond_it(monkeypatch: pytest.MonkeyPatch) -> None:
    own = attention.build_mask
    monkeypatch.setattr(
        attention,
        "build_mask",
        lambda make, query, window, **options: own(make, query, window and window + 1, **options),
    )
    target = load("modernbert", config={"local_attention": 60})
    assert [warning.code for warning in target.warnings] == ["model-masks"]
    assert not target.packs_requests


def test_attention_that_differs_as_a_break_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_interface._MaskedName, "__eq__", str.__eq__)
    with pytest.raises(ModelError, match="gives other results where its attention is a break") as caught:
        load("deepseek_v32", config=SPARSE)
    assert "--no-attention-break" in str(caught.value.hint)


def _whisper() -> torch.nn.Module:
    return transformers.WhisperForConditionalGeneration(
        transformers.WhisperConfig(
            vocab_size=128,
            num_mel_bins=16,
            d_model=32,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=64,
            decoder_ffn_dim=64,
            max_source_positions=64,
            max_target_positions=64,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=1,
        )
    )


def _t5_decoder() -> torch.nn.Module:
    sizes = {"vocab_size": 128, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    decoder: torch.nn.Module = transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes)).decoder
    return decoder


def _vit() -> torch.nn.Module:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return transformers.ViTForImageClassification(transformers.ViTConfig(**sizes, image_size=16, patch_size=4))


def _speech(num_tokens: int, device: torch.device, generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {
        "input_features": torch.randn(1, 16, 128, device=device, generator=generator),
        "decoder_input_ids": torch.randint(10, 128, (1, num_tokens), device=device, generator=generator),
    }


def _seven_states(num_tokens: int, device: torch.device, generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {
        "input_ids": torch.randint(10, 128, (1, num_tokens), device=device, generator=generator),
        "encoder_hidden_states": torch.randn(1, 7, 32, device=device, generator=generator),
    }


def _images(num_tokens: int, device: torch.device, generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(num_tokens, 3, 16, 16, device=device, generator=generator)}


@pytest.mark.parametrize(
    ("make_module", "make"),
    [(_whisper, _speech), (_t5_decoder, _seven_states), (_vit, _images)],
    ids=["an encoder of 64 rows", "keys of another sequence, as many as a bucket has tokens", "an image a token"],
)
def test_attention_over_other_rows_than_the_batchs_runs_whole(make_module: Any, make: Any) -> None:
    torch.manual_seed(0)
    module = make_module().eval()
    target = own_target(module, "cpu", make, attention_break=True)
    runner = GraphRunner(target)
    runner.capture((7, 16))
    for tokens in (7, 6, 16, 9, 1):
        batch = make_batch(target, (tokens,), torch.Generator().manual_seed(tokens))
        replayed = tensors_in(runner.replay(batch))[0].clone()
        with torch.inference_mode(), attention_interface.without_attention_break(module):
            expected = tensors_in(plain_output(module(**batch.copied_inputs(), **target.forward_options), "plain"))[0]
        torch.testing.assert_close(replayed, expected, rtol=0, atol=2e-6)


def test_requests_that_share_keys_of_another_sequence_are_refused() -> None:
    target = own_target(_t5_decoder().eval(), "cpu", _seven_states, attention_break=True)
    assert not target.packs_requests
    with pytest.raises(ReplayError, match="takes one request at a time, got a batch of 2"):
        GraphRunner(target).eager(make_batch(target, (3, 4), torch.Generator()))


def test_a_model_that_would_take_a_mask_is_advised_to_and_the_advice_helps() -> None:
    module = load("mpnet").module
    (card,) = check(module, buckets=(4, 8)).findings
    assert card.hazard == "S10"
    assert card.remedy.startswith("give it an attention_mask of ones, from make_inputs of a factory")

    def masked(num_tokens: int, device: torch.device, generator: torch.Generator) -> dict[str, torch.Tensor]:
        ids = torch.randint(3, 128, (1, num_tokens), device=device, generator=generator)
        return {"input_ids": ids, "attention_mask": torch.ones(1, num_tokens, dtype=torch.int64, device=device)}

    assert check(module, buckets=(4, 8), make_inputs=masked).verdict == "match"
