from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from bcg.attention_interface import _breaks
from bcg.context import ForwardContext, forward_context
from bcg.errors import ModelError
from bcg.models import load_target
from bcg.target import make_batch

CUDA = "cuda"


@pytest.mark.parametrize("name", ["qwen3-0.6b", "qwen3-8b", "nemotron-h-8b"])
def test_big_presets_are_made_on_the_device_in_seconds(name: str) -> None:
    torch.zeros(1, device=CUDA)
    before = torch.cuda.memory_allocated()
    started = time.perf_counter()
    target = load_target(name, device=CUDA)
    torch.cuda.synchronize()
    assert time.perf_counter() - started < 20
    assert target.info.dtype == "bfloat16"
    assert target.packs_requests
    assert target.warnings == []
    taken = torch.cuda.memory_allocated() - before
    assert taken == pytest.approx(target.info.weight_bytes, rel=0.05)
    del target
    assert torch.cuda.memory_allocated() - before < 0.05 * taken


def test_the_seed_decides_the_weights_and_the_global_state_is_untouched() -> None:
    state = torch.cuda.get_rng_state()
    first, again, other = (
        load_target("qwen3-tiny", device=CUDA, seed=seed).module.layers[0].mlp.up_proj.weight for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.cuda.get_rng_state(), state)


def test_a_model_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ModelError, match="^the weights of qwen3-235b-a22b need 436"):
        load_target("qwen3-235b-a22b", device=CUDA)


@pytest.mark.parametrize("lengths", [(60, 40), (1, 3, 90), (30, 30, 30, 30)])
def test_one_variable_length_call_is_the_loop_over_requests(
    lengths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = load_target("qwen3-0.6b", device=CUDA)
    found = _breaks[target.module.layers[0].self_attn]
    query, key, value = (
        torch.randn(1, 128, heads, 128, device=CUDA, dtype=torch.bfloat16).transpose(1, 2) for heads in (16, 8, 8)
    )
    calls = []
    packed = found._packed

    def counted(*args: Any) -> Any:
        calls.append(1)
        return packed(*args)

    monkeypatch.setattr(found, "_packed", counted)
    with torch.inference_mode(), forward_context(ForwardContext(lengths)):
        together, _ = found.run(query, key, value, None, scaling=128**-0.5, dropout=0.0)
        monkeypatch.setattr(found, "_can_pack", False)
        alone, _ = found.run(query, key, value, None, scaling=128**-0.5, dropout=0.0)
    assert calls == [1]
    assert together.shape == alone.shape == (1, 128, 16, 128)
    torch.testing.assert_close(together, alone, rtol=0, atol=0.01)
    assert not together[:, sum(lengths) :].any()


@pytest.mark.parametrize("name", ["qwen3-tiny", "nemotron-h-tiny", "deepseek-v3-tiny", "qwen3-moe-tiny"])
def test_packed_requests_are_what_each_is_alone(name: str) -> None:
    target = load_target(name, device=CUDA)
    lengths, start = (37, 3, 90), 0
    batch = make_batch(target, lengths, torch.Generator(CUDA).manual_seed(1))
    with forward_context(ForwardContext(lengths)):
        packed = target(batch.inputs)
    for length in lengths:
        alone = {key: value[:, start : start + length] for key, value in batch.inputs.items()}
        with forward_context(ForwardContext((length,))):
            expected = target(alone)
        torch.testing.assert_close(packed[:, start : start + length], expected, rtol=0, atol=0.05)
        start += length
