"""The replay check on a GPU: true shapes match, and what is planted is found there too."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch

from bcg import GraphRunner, assert_graph_safe, check, load_target
from bcg.checking import verify
from bcg.device import find_device

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(autouse=True)
def _empty_gpu() -> Iterator[None]:
    yield
    gc.collect()
    torch.cuda.empty_cache()


@pytest.mark.parametrize("model", ["qwen3-tiny", "qwen3-moe-tiny", "nemotron-h-tiny", "deepseek-v3-tiny"])
def test_tiny_presets_match(model: str) -> None:
    report = assert_graph_safe(model, device="cuda", buckets=(4, 16, 64))
    assert all(bucket.num_launches for bucket in report.buckets)


def test_nine_buckets_of_a_true_shape_match() -> None:
    report = check("qwen3-0.6b", device="cuda")
    assert report.verdict == "match", report
    assert len(report.buckets) == 9
    assert report.timing.eager_ms > 0


def test_poison_fills_free_blocks_of_the_pool_and_replays_stand_it() -> None:
    runner = GraphRunner(load_target("qwen3-tiny", device="cuda"))
    runner.capture((16, 64))
    assert runner.pool is not None
    device = find_device("cuda")
    reserved = runner.pool.reserved_bytes()
    device.poison(runner.pool)
    assert runner.pool.reserved_bytes() == reserved
    assert verify(runner, num_rounds=1).matches


def test_captured_attention_is_a_leak_of_padding(minilm: object) -> None:
    target = load_target(str(minilm), device="cuda", attention_break=False)
    report = check(target, buckets=(8, 32))
    assert report.verdict == "mismatch"
    assert [card.hazard for card in report.findings] == ["S10"]
    assert report.findings[0].module == "encoder.layer.0.attention.self"
