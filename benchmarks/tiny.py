"""Tiny configurations of transformers' architectures: every known size shrunk by one rule, a few by hand."""

from __future__ import annotations

from typing import Any

import transformers

_SIZES: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "d_model": 64,
    "n_embd": 64,
    "n_embed": 64,
    "embed_dim": 64,
    "intermediate_size": 96,
    "ffn_dim": 96,
    "d_ff": 96,
    "n_inner": 96,
    "ffn_hidden_size": 96,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "num_hidden_layers": 3,
    "n_layer": 3,
    "n_layers": 3,
    "num_layers": 3,
    "decoder_layers": 3,
    "num_attention_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "decoder_attention_heads": 4,
    "attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rotary_dim": 16,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_k": 2,
    "moe_topk": 2,
    "n_group": 2,
    "topk_group": 1,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "max_position_embeddings": 512,
    "n_positions": 512,
    "sliding_window": 8,
    "attention_chunk_size": 16,
    "index_topk": 8,
    "index_n_heads": 2,
    "index_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "mamba_d_state": 8,
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_num_heads": 8,
    "mamba_head_dim": 16,
    "mamba_chunk_size": 16,
    "ssm_state_size": 8,
    "state_size": 8,
    "chunk_size": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

_ONE_BY_ONE: dict[str, dict[str, Any]] = {
    "cohere_compass_text": {
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]}
            for kind in ("full_attention", "sliding_attention")
        },
    },
    "dbrx": {
        "attn_config": {"rope_theta": 1e4, "kv_n_heads": 2, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": 64, "ffn_hidden_size": 96, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "dory": {
        "num_hidden_layers": 6,
        "n_input_layers": 2,
        "n_recurrent_layers": 2,
        "n_output_layers": 2,
        "layer_types": ["sliding_attention", "mlp", "full_attention", "mlp", "sliding_attention", "mlp"],
    },
    "dots3_note_text": {
        "layer_types": ["indexed_attention", "sliding_attention", "sliding_attention"],
        "mlp_layer_types": ["dense", "sparse", "sparse"],
        "per_layer_config": {
            layer: {"num_attention_heads": 2, "num_key_value_heads": 2, "kv_lora_rank": 32} for layer in ("01", "02")
        },
        "head_dim": 24,
        "index_topk": 8,
        "index_head_dim": 16,
        "index_n_heads": 2,
        "shared_experts_intermediate_size": 32,
    },
    "gemma3n_text": {
        "num_hidden_layers": 5,
        "num_kv_shared_layers": 2,
        "layer_types": [
            "sliding_attention",
            "full_attention",
            "sliding_attention",
            "sliding_attention",
            "full_attention",
        ],
        "activation_sparsity_pattern": [0.95, 0.0, 0.0, 0.0, 0.0],
        "intermediate_size": [96] * 5,
        "vocab_size_per_layer_input": 128,
        "hidden_size_per_layer_input": 16,
        "laurel_rank": 8,
    },
    "gemma4_text": {
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "per_layer_config": {"02": {"head_dim": 32}},
        "vocab_size_per_layer_input": 128,
        "hidden_size_per_layer_input": 16,
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"], "num_dense_layers": 1},
    "longcat_flash": {
        "head_dim": 8,
        "qk_head_dim": 24,
        "zero_expert_num": 2,
        "expert_ffn_hidden_size": 32,
    },
    "qwen4_exp_text": {
        "layer_types": ["linear_attention", "indexed_attention", "linear_attention"],
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
        "hc_lowrank": 8,
        "ple_layer_ids": [1],
        "ple_embed_dim": 32,
        "ngram_vocab_size_base": 64,
        "split_ngram_parts": 2,
        "heads_per_ngram": 2,
    },
    "reformer": {
        "attn_layers": ["local", "lsh", "local"],
        "axial_pos_shape": [16, 32],
        "axial_pos_embds_dim": [16, 48],
    },
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 6,
        "layers_block_type": [
            "linear_attention",
            "hybrid",
            "linear_attention",
            "hybrid",
            "linear_attention",
            "linear_attention",
        ],
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
        "num_key_value_heads": 4,
        "mamba_dt_rank": 4,
    },
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 32},
}
"""Sizes that hang together in a way of the architecture's own, and layers of each of its kinds; by model type."""


def tiny_config(name: str) -> Any:
    """Make an architecture's configuration with every known size shrunk; ``name+experts`` names that implementation.

    Raises:
        Exception: Whatever the configuration class thinks of the sizes.
    """
    name, _, experts = name.partition("+")
    config_class = transformers.CONFIG_MAPPING[name]
    default = config_class()
    text = default.get_text_config() if hasattr(default, "get_text_config") else default
    if type(text) is not config_class:
        config_class, default = type(text), text
    known = default.to_dict()
    sizes = {
        key: value
        for key, value in _SIZES.items()
        if (key in known or key in config_class.attribute_map) and not isinstance(known.get(key), (list, dict))
    }
    for key in ("sliding_window", "q_lora_rank"):
        if key in sizes and known.get(key) is None:
            del sizes[key]
    if "kv_lora_rank" in known:  # latent attention expands to as many key heads as queries
        sizes["num_key_value_heads"] = sizes["num_attention_heads"]
        sizes.pop("head_dim", None)
    if "expand" in known and "num_heads" in known:
        sizes |= {"num_heads": 8, "n_groups": 2}
    if "mamba_expand" in known and "mamba_d_ssm" in known:
        sizes |= {"mamba_d_ssm": 128, "mamba_n_groups": 1}
    per_layer = known.get("num_hidden_layers") or known.get("n_layer") or known.get("num_layers")
    for key, value in known.items():
        if isinstance(value, list) and per_layer and len(value) == per_layer and key not in sizes:
            kinds = list(dict.fromkeys(map(str, value)))
            picked = [next(item for item in value if str(item) == kind) for kind in kinds]
            sizes[key] = (picked * 3)[:3]
    config = config_class(**{**sizes, **_ONE_BY_ONE.get(config_class.model_type, {})})
    if experts:
        config._experts_implementation = experts
    return config
