"""Presets: architectures and shapes as data.

The big ones have the shapes of the published checkpoints' ``config.json``; the tiny ones have the same
structure at a size that a laptop captures in a second.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from bcg.errors import UsageError


@dataclass(frozen=True)
class Preset:
    """One named model shape.

    Attributes:
        config_class: Name of the configuration class in transformers.
        options: Its arguments.
        dtype: Dtype of the weights on a GPU.
        host_dtype: Dtype of the weights on the host device.
    """

    name: str
    config_class: str
    options: Mapping[str, Any]
    dtype: str = "bfloat16"
    host_dtype: str = "bfloat16"


_QWEN3 = {
    "vocab_size": 151936,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
}
_QWEN3_MOE = {**_QWEN3, "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True}
_TINY = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "max_position_embeddings": 8192}
_NEMOTRON_H_8B_PATTERN = "M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-"


def _tiny(name: str, config_class: str, **options: Any) -> Preset:
    return Preset(name, config_class, {**_TINY, **options}, host_dtype="float32")


_ALL = (
    _tiny(
        "qwen3-tiny",
        "Qwen3Config",
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
    ),
    _tiny(
        "qwen3-moe-tiny",
        "Qwen3MoeConfig",
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        moe_intermediate_size=32,
        num_experts=8,
        num_experts_per_tok=2,
        norm_topk_prob=True,
    ),
    _tiny(
        "nemotron-h-tiny",
        "NemotronHConfig",
        hybrid_override_pattern="M-M*-M-",
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        mamba_num_heads=8,
        mamba_head_dim=16,
        ssm_state_size=16,
        n_groups=2,
        chunk_size=16,
    ),
    _tiny(
        "deepseek-v3-tiny",
        "DeepseekV3Config",
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        q_lora_rank=32,
        kv_lora_rank=16,
        qk_nope_head_dim=16,
        qk_rope_head_dim=8,
        v_head_dim=16,
        first_k_dense_replace=1,
        moe_intermediate_size=32,
        n_routed_experts=8,
        n_shared_experts=1,
        num_experts_per_tok=2,
        n_group=2,
        topk_group=1,
    ),
    Preset(
        "qwen3-0.6b",
        "Qwen3Config",
        {
            **_QWEN3,
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "tie_word_embeddings": True,
        },
    ),
    Preset(
        "qwen3-8b",
        "Qwen3Config",
        {
            **_QWEN3,
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
        },
    ),
    Preset(
        "qwen3-32b",
        "Qwen3Config",
        {
            **_QWEN3,
            "hidden_size": 5120,
            "intermediate_size": 25600,
            "num_hidden_layers": 64,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
        },
    ),
    Preset(
        "qwen3-30b-a3b",
        "Qwen3MoeConfig",
        {
            **_QWEN3_MOE,
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "moe_intermediate_size": 768,
            "num_hidden_layers": 48,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
        },
    ),
    Preset(
        "qwen3-235b-a22b",
        "Qwen3MoeConfig",
        {
            **_QWEN3_MOE,
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "moe_intermediate_size": 1536,
            "num_hidden_layers": 94,
            "num_attention_heads": 64,
            "num_key_value_heads": 4,
        },
    ),
    Preset(
        "nemotron-h-8b",
        "NemotronHConfig",
        {
            "vocab_size": 131072,
            "hidden_size": 4096,
            "intermediate_size": 21504,
            "hybrid_override_pattern": _NEMOTRON_H_8B_PATTERN,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "mamba_num_heads": 128,
            "mamba_head_dim": 64,
            "ssm_state_size": 128,
            "n_groups": 8,
            "conv_kernel": 4,
            "chunk_size": 128,
            "max_position_embeddings": 8192,
        },
    ),
)
PRESETS: Mapping[str, Preset] = {preset.name: preset for preset in _ALL}


def find_preset(name: str) -> Preset:
    """Return the preset of that name.

    Raises:
        UsageError: If there is none; the hint lists near names.
    """
    if preset := PRESETS.get(name):
        return preset
    near = get_close_matches(name.lower(), PRESETS, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"presets: {', '.join(PRESETS)}"
    raise UsageError(
        f"unknown model {name!r}: neither a preset, nor a directory, nor a hub id, nor file.py:factory",
        hint=hint,
    )
