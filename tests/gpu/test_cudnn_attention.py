"""Attention bound to cuDNN's plans gives the bits of torch's own call, with nothing copied between segments."""

from __future__ import annotations

import gc
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from bcg import GraphRunner, load_target, make_batch
from bcg.device import cudnn_attention
from bcg.device.cudnn_attention import Plan, find_plan, frontend
from bcg.device.cudnn_builders import current_builders, planned_ahead
from bcg.device.cudnn_graph import Attention, build

if frontend() is None:
    pytest.skip("needs nvidia-cudnn-frontend below 1.27, with torch's cuDNN", allow_module_level=True)
SHAPES = {
    "grouped": (16, 8, 128, torch.bfloat16),
    "each head its own keys": (4, 4, 64, torch.bfloat16),
    "half": (32, 8, 128, torch.float16),
    "one key head": (8, 1, 96, torch.bfloat16),
}

ENDS_WITH_ITS_CONTEXTS_STATE = """
import runpy, sys
runpy.run_path(sys.argv[1], run_name="__main__")
from cuda.bindings import driver
driver.cuInit(0)
error, _, is_active = driver.cuDevicePrimaryCtxGetState(0)
with open(sys.argv[2], "a") as states:
    states.write(f"{error.name} {is_active}\\n")
"""


@pytest.fixture(autouse=True)
def _on_hopper() -> Iterator[None]:
    query = heads_of(4, 64, 64, torch.bfloat16)
    if torch._fused_sdp_choice(query, query, query, None, 0.0, True) != SDPBackend.CUDNN_ATTENTION.value:
        pytest.skip("torch does not call cuDNN for attention on this GPU")
    with torch.inference_mode():
        yield


def heads_of(num: int, rows: int, dim: int, dtype: torch.dtype, device: str = "cuda") -> Tensor:
    return torch.randn(1, rows, num, dim, dtype=dtype, device=device).transpose(1, 2)


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    is_grouped = query.shape[1] != key.shape[1]
    output = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=is_grouped)
    return output.transpose(1, 2)


def assert_torchs_bits(plan: Plan, query: Tensor, key: Tensor, value: Tensor, scale: float) -> None:
    output = torch.empty_strided(*plan.output_layout, dtype=query.dtype, device="cuda").fill_(float("nan"))
    launch = plan.bind(query, key, value, output)
    for tensor in (query, key, value):
        tensor.normal_()
        launch()
        assert torch.equal(output, attend(query, key, value, scale)), query.shape


@pytest.mark.parametrize("shape", SHAPES)
def test_a_plan_gives_torchs_bits(shape: str) -> None:
    heads, key_heads, dim, dtype = SHAPES[shape]
    scale = dim**-0.5 * 0.9
    for rows in (2, 16, 17, 24, 100, 128, 256, 1000, 1024, 2047):
        query = heads_of(heads, rows, dim, dtype)
        key, value = (heads_of(key_heads, rows, dim, dtype) for _ in range(2))
        plan = find_plan(query, key, value, scale)
        assert plan is not None
        assert_torchs_bits(plan, query, key, value, scale)


@pytest.mark.parametrize("is_split", [False, True], ids=["rows of all heads", "one head after the other"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_plan_that_another_process_built_gives_torchs_bits(
    shape: str, is_split: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads, key_heads, dim, dtype = SHAPES[shape]
    scale, row_counts = dim**-0.5 * (0.8 if is_split else 0.7), (2047, 1024, 512, 256, 128, 100, 24, 16, 2, 1)
    builds: list[int] = []

    def build_here(cudnn: Any, attention: Attention, **place: Any) -> Any:
        builds.append(attention.query[0][2])
        return build(cudnn, attention, **place)

    monkeypatch.setattr(cudnn_attention, "build", build_here)
    with planned_ahead(row_counts):
        for rows in row_counts[:-1]:
            tensors = [heads_of(num, rows, dim, dtype) for num in (heads, key_heads, key_heads)]
            query, key, value = [tensor.contiguous() for tensor in tensors] if is_split else tensors
            plan = find_plan(query, key, value, scale)
            assert plan is not None
            builders = current_builders()
            assert builders is not None
            for reader in builders._readers:
                reader.join(timeout=30)
            assert_torchs_bits(plan, query, key, value, scale)
    assert builds == [2047]


def test_the_other_processes_take_no_memory_of_the_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    popen, states = subprocess.Popen, tmp_path / "states"

    def watched(command: list[str], **options: Any) -> Any:
        return popen([*command[:-1], "-c", ENDS_WITH_ITS_CONTEXTS_STATE, command[-1], str(states)], **options)

    query = heads_of(4, 600, 64, torch.bfloat16)
    with planned_ahead(range(20, 36)):
        monkeypatch.setattr(subprocess, "Popen", watched)
        assert find_plan(query, query, query, 0.3) is not None
        builders = current_builders()
        assert builders is not None
        for reader in builders._readers:
            reader.join(timeout=60)
        assert sum(map(bool, builders._plans.values())) == 16
    assert states.read_text().splitlines() == ["CUDA_SUCCESS 0"] * 4, "state of the GPU's context in each process"


def test_there_is_no_plan_where_torch_would_do_something_else() -> None:
    query = heads_of(4, 64, 64, torch.bfloat16)
    assert find_plan(query, query, query, 0.1) is not None
    single, one_row = query.float(), query[:, :, :1]
    two = query.expand(2, -1, -1, -1)
    for tensor in (single, one_row, two):
        assert find_plan(tensor, tensor, tensor, 0.1) is None
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        assert find_plan(query, query, query, 0.1) is None


def test_replays_from_plans_copy_nothing_and_equal_torchs_attention() -> None:
    runner = GraphRunner(load_target("qwen3-0.6b", device="cuda"))
    runner.capture((16, 64, 512))
    for graph in runner.graphs.values():
        assert graph.num_breaks == 28
        assert sum(segment.contents().node_counts.get("memcpy", 0) for segment in graph.segments) == 0
    generator = torch.Generator("cuda").manual_seed(5)
    for tokens in (64, 512, 16, 64):
        for lengths in ((tokens,), (tokens - 1,), (tokens // 2, tokens // 4), (1,), (tokens,)):
            batch = make_batch(runner.target, lengths, generator)
            replayed = runner.replay(batch).clone()
            assert torch.equal(replayed, runner.eager_padded(batch)), lengths


def test_replays_on_other_streams_and_threads_equal_torchs_attention() -> None:
    runner = GraphRunner(load_target("qwen3-0.6b", device="cuda"))
    runner.capture((64,))
    batch = make_batch(runner.target, (64,), torch.Generator("cuda").manual_seed(5))
    expected = runner.eager_padded(batch)
    found = []

    def replay() -> None:
        with torch.inference_mode(), torch.cuda.stream(torch.cuda.Stream()):
            found.append(runner.replay(batch).clone())
            torch.cuda.current_stream().synchronize()

    replay()
    for _ in range(3):
        thread = threading.Thread(target=replay)
        thread.start()
        thread.join()
    assert len(found) == 4
    assert all(torch.equal(replayed, expected) for replayed in found)


def test_a_plan_that_a_thread_built_outlives_it() -> None:
    query, key, value = (heads_of(4, 96, 64, torch.bfloat16, "cuda") for _ in range(3))
    output, plans = torch.zeros_like(query.transpose(1, 2)), []
    thread = threading.Thread(target=lambda: plans.append(find_plan(query, key, value, 0.125)))
    thread.start()
    thread.join()
    gc.collect()
    (plan,) = plans
    assert plan is not None
    plan.bind(query, key, value, output)()
    torch.cuda.synchronize()
    assert torch.equal(output, attend(query, key, value, 0.125))


def test_where_torch_would_not_call_cudnn_results_are_copied() -> None:
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        runner = GraphRunner(load_target("qwen3-0.6b", device="cuda"))
        runner.capture((64,))
        (graph,) = runner.graphs.values()
        assert sum(segment.contents().node_counts.get("memcpy", 0) for segment in graph.segments) == 28
        batch = make_batch(runner.target, (64,), torch.Generator("cuda").manual_seed(5))
        assert torch.equal(runner.replay(batch).clone(), runner.eager_padded(batch))


def test_a_gpu_that_is_not_the_current_one() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    query, key, value = (heads_of(4, 64, 64, torch.bfloat16, "cuda:1") for _ in range(3))
    plan = find_plan(query, key, value, 0.1)
    assert plan is not None
    output = torch.zeros_like(query.transpose(1, 2))
    assert torch.cuda.current_device() == 0
    launch = plan.bind(query, key, value, output)
    launch()
    torch.cuda.synchronize(1)
    assert torch.equal(output, attend(query, key, value, 0.1))
    assert torch.cuda.current_device() == 0
