from __future__ import annotations

import pytest
import torch
from transformers import AutoModel

from bcg.errors import ModelError, UsageError
from bcg.models import huggingface, load_target
from bcg.models.huggingface import preset_config, random_model
from bcg.presets import PRESETS, find_preset
from bcg.words import TargetWords

TINY = [name for name in PRESETS if name.endswith("-tiny")]
PUBLISHED_BILLIONS = {
    # Inner layer stack with embedding, without the LM head.
    "qwen3-0.6b": 0.596,
    "qwen3-8b": 7.568,
    "qwen3-32b": 31.984,
    "qwen3-30b-a3b": 30.221,
    "qwen3-235b-a22b": 234.471,
    "nemotron-h-8b": 7.564,
}


def test_all_presets_of_the_command_line_exist() -> None:
    assert set(PRESETS) == {*PUBLISHED_BILLIONS, *TINY}
    assert sorted(TINY) == ["deepseek-v3-tiny", "nemotron-h-tiny", "qwen3-moe-tiny", "qwen3-tiny"]


@pytest.mark.parametrize(("name", "billions"), PUBLISHED_BILLIONS.items())
def test_big_presets_have_the_published_number_of_parameters(name: str, billions: float) -> None:
    with huggingface.quiet(), torch.device("meta"):
        model = AutoModel.from_config(preset_config(PRESETS[name]))
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e9 == pytest.approx(billions, abs=1e-3)


def test_nemotron_h_mixes_the_published_layers() -> None:
    with huggingface.quiet():
        types = preset_config(PRESETS["nemotron-h-8b"]).layers_block_type
    assert len(types) == 52
    assert [types.count(kind) for kind in ("linear_attention", "full_attention", "mlp")] == [24, 4, 24]


@pytest.mark.parametrize("name", TINY)
def test_tiny_presets_load_with_their_breaks(name: str) -> None:
    target = load_target(name)
    assert target.info.source == "preset"
    assert target.info.dtype == "float32"
    assert target.info.weights == "random"
    assert target.info.num_parameters < 1_000_000
    assert target.packs_requests
    assert target.output_token_dims == (1,)
    assert target.warnings == []
    assert target.break_rules.attention
    assert bool(target.break_rules.mixers) == (name == "nemotron-h-tiny")
    assert target.module.config._attn_implementation == "bcg_sdpa"


def test_the_seed_decides_the_weights_and_the_global_state_is_untouched() -> None:
    config = preset_config(PRESETS["qwen3-tiny"])
    state = torch.get_rng_state()
    weights = [random_model(TargetWords("tiny", seed=seed), config, torch.float32).state_dict() for seed in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), state)
    first, again, other = (state["layers.0.mlp.up_proj.weight"] for state in weights)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_special_parameters_are_sane() -> None:
    mixer = load_target("nemotron-h-tiny").module.layers[0].mixer
    assert torch.allclose(mixer.A_log.exp(), torch.arange(1.0, 9.0))
    assert (torch.nn.functional.softplus(mixer.dt_bias) > 0).all()
    router = load_target("deepseek-v3-tiny").module.layers[1].mlp.gate
    assert not router.e_score_correction_bias.any()


def test_dtype_overrides_the_presets_own() -> None:
    target = load_target("qwen3-tiny", dtype="bfloat16")
    assert target.info.dtype == "bfloat16"
    assert target.info.weight_bytes == 2 * target.info.num_parameters
    with pytest.raises(UsageError, match="^unknown dtype 'int3'"):
        load_target("qwen3-tiny", dtype="int3")


@pytest.mark.parametrize(
    ("name", "near"), [("qwen3-8", "qwen3-8b"), ("Qwen3-Tiny", "qwen3-tiny"), ("nemotron", "nemotron-h-8b")]
)
def test_an_unknown_preset_lists_near_names(name: str, near: str) -> None:
    with pytest.raises(UsageError, match=f"^unknown model '{name}'") as caught:
        load_target(name)
    assert near in (caught.value.hint or "")
    assert caught.value.exit_code == 2


def test_a_gpu_that_is_not_there_is_wrong_usage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="^can't load qwen3-tiny on cuda: there is no usable GPU"):
        load_target("qwen3-tiny", device="cuda")


def test_a_far_name_lists_all_presets() -> None:
    with pytest.raises(UsageError) as caught:
        find_preset("zzz")
    assert "qwen3-0.6b" in (caught.value.hint or "")


def test_weights_that_do_not_fit_are_refused_before_any_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface, "_free_bytes", lambda device: 22 * 2**30)
    with pytest.raises(ModelError, match=r"^the weights of qwen3-235b-a22b need 436\.7 GiB, cpu has 22\.0 GiB free"):
        load_target("qwen3-235b-a22b")
