"""True shapes on a GPU: after all buckets were captured, each replays bitwise as eager."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from bcg import GraphRunner, load_target, make_batch

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore")]

BUCKETS = (16, 64, 256, 1024)

DEEPSEEK_V3_TWO_LAYERS = {
    "model_type": "deepseek_v3",
    "architectures": ["DeepseekV3ForCausalLM"],
    "num_hidden_layers": 2,
    "first_k_dense_replace": 1,
    "dtype": "bfloat16",
}
"""The architecture's own defaults are the shape of DeepSeek-V3; 2 of its 61 layers: one dense, one of experts."""


@pytest.fixture(autouse=True)
def _empty_gpu() -> Iterator[None]:
    yield
    gc.collect()
    torch.cuda.empty_cache()


def assert_replay_is_eager(model: str) -> None:
    runner = GraphRunner(load_target(model, device="cuda"))
    results = runner.capture(BUCKETS)
    assert [result.status for result in results] == ["captured"] * len(BUCKETS)
    generator = torch.Generator("cuda").manual_seed(11)
    junk = [torch.full((2**20,), float("nan"), device="cuda") for _ in range(64)]
    del junk
    for tokens in (64, 1024, 16, 256, 16, 1024):
        for lengths in ((tokens,), (tokens - 1,), (tokens // 2, tokens // 4), (1,)):
            batch = make_batch(runner.target, lengths, generator)
            replayed = runner.replay(batch).clone()
            assert torch.isfinite(replayed).all()
            assert torch.equal(replayed, runner.eager_padded(batch)), f"{model}, {lengths}"
    assert runner.num_replays == 24
    assert runner.num_fallbacks == 0


@pytest.mark.parametrize("model", ["qwen3-0.6b", "qwen3-8b", "qwen3-30b-a3b", "nemotron-h-8b"])
def test_replay_equals_eager_bitwise(model: str) -> None:
    assert_replay_is_eager(model)


def test_replay_equals_eager_bitwise_at_deepseek_v3s_width(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(DEEPSEEK_V3_TWO_LAYERS))
    assert_replay_is_eager(str(tmp_path))
