"""The attention break on a GPU gives the very bits of transformers' own function."""

from __future__ import annotations

import pytest
import torch

from bcg import load_target, make_batch
from bcg.context import ForwardContext, forward_context


@pytest.mark.parametrize("model", ["qwen3-tiny", "qwen3-moe-tiny", "deepseek-v3-tiny"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_one_whole_request_gets_the_bits_of_transformers_own_attention(model: str, dtype: str) -> None:
    broken = load_target(model, device="cuda", dtype=dtype)
    plain = load_target(model, device="cuda", dtype=dtype, attention_break=False)
    for tokens in (1, 2, 17, 64):
        batch = make_batch(plain, (tokens,), torch.Generator("cuda").manual_seed(tokens))
        with forward_context(ForwardContext((tokens,))):
            assert torch.equal(broken(batch.inputs), plain(batch.inputs)), tokens
