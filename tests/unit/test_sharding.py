"""Which of transformers' rules are applied, and that weights don't depend on who makes them."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModel

from bcg.errors import ModelError
from bcg.models.huggingface import preset_config, random_model
from bcg.models.sharding import Plan, Sharding, plan_of, sharding_warnings, whole_weights_warnings
from bcg.presets import PRESETS
from bcg.words import TargetWords


def plan(name: str, size: int, *, expert_parallel: bool = False) -> Plan:
    with torch.device("meta"):
        model = AutoModel.from_config(preset_config(PRESETS[name]))
    return plan_of(name, model, Sharding(size, expert_parallel))


def test_attention_is_split_where_its_heads_divide() -> None:
    found = plan("qwen3-tiny", 2)
    assert found.tensor["layers.*.self_attn.k_proj"] == "colwise"
    assert sharding_warnings("qwen3-tiny", preset_config(PRESETS["qwen3-tiny"]), Sharding(2)) == []


def test_attention_stays_whole_where_a_key_value_head_would_be_cut() -> None:
    found = plan("qwen3-235b-a22b", 8)
    assert not any("self_attn" in rule for rule in found.tensor)
    assert found.tensor["layers.*.mlp.experts.gate_up_proj"] == "packed_colwise"
    (warning,) = sharding_warnings("big", preset_config(PRESETS["qwen3-235b-a22b"]), Sharding(8))
    assert warning.code == "attention-not-sharded"


def test_weights_that_stay_whole_are_counted() -> None:
    with torch.device("meta"):
        model = AutoModel.from_config(preset_config(PRESETS["qwen3-tiny"]))
    (warning,) = whole_weights_warnings("m", model, Sharding(2), by_user=False)
    assert warning.code == "weights-not-sharded"
    assert warning.message == "only 0 % of the weights of m are sharded over 2 ranks"
    assert "layers.*.mlp.up_proj" in warning.cause
    (warning,) = whole_weights_warnings("m", model, Sharding(2), by_user=True)
    assert warning.cause.startswith("bcg calls a factory on every rank")
    assert whole_weights_warnings("m", model, Sharding(1), by_user=False) == []


def test_expert_rules_take_the_place_of_tensor_rules() -> None:
    found = plan("qwen3-moe-tiny", 2, expert_parallel=True)
    assert found.expert["layers.*.mlp.experts.down_proj"] == "grouped_gemm"
    assert not any(rule.startswith("layers.*.mlp.experts") for rule in found.tensor)
    assert found.tensor["layers.*.self_attn.o_proj"] == "rowwise"


def test_a_model_without_experts_has_nothing_to_share_by_expert() -> None:
    with pytest.raises(ModelError, match="^transformers has no expert-parallel plan for Qwen3Model of qwen3-tiny$"):
        plan("qwen3-tiny", 2, expert_parallel=True)


def test_a_modules_weights_depend_on_its_path_and_the_seed_alone() -> None:
    config = preset_config(PRESETS["qwen3-tiny"])
    whole = random_model(TargetWords("whole", seed=3), config, torch.float32).state_dict()
    config.num_hidden_layers = 2
    shorter = random_model(TargetWords("shorter", seed=3), config, torch.float32).state_dict()
    other = random_model(TargetWords("other", seed=4), config, torch.float32).state_dict()
    assert all(torch.equal(whole[name], value) for name, value in shorter.items())
    assert not torch.equal(shorter["layers.0.mlp.up_proj.weight"], other["layers.0.mlp.up_proj.weight"])
    assert not torch.equal(shorter["layers.0.mlp.up_proj.weight"], shorter["layers.0.mlp.gate_proj.weight"])
    assert not torch.equal(shorter["layers.0.mlp.up_proj.weight"], shorter["layers.1.mlp.up_proj.weight"])
