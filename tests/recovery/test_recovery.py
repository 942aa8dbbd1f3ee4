"""After any failure the same process captures and replays again, and nothing of the failed capture is left."""

from __future__ import annotations

import gc
import random

import pytest
import torch

from bcg import (
    BreakableCUDAGraph,
    BreakableCUDAGraphCapture,
    GraphRunner,
    current_capture,
    eager_on_graph,
    load_target,
    make_batch,
)
from bcg.device import find_device
from tests.recovery.ways_to_fail import DRIVER_WAYS, WAYS

NUM_FAILURES = 100
NUM_CYCLES = 50


def test_a_hundred_failures_in_a_row_each_followed_by_a_good_capture(device: str) -> None:
    ways = {**WAYS, **DRIVER_WAYS} if device == "cuda" else WAYS
    order = list(ways) + random.Random(1).choices(list(ways), k=NUM_FAILURES)
    pool = find_device(device).new_pool()
    x = torch.ones(4, device=device)
    graph = BreakableCUDAGraph(device)
    for way in order:
        fail, errors = ways[way]
        with pytest.raises(errors):
            fail(graph, pool, x)
        assert current_capture() is None, way
        assert gc.isenabled(), way
        assert graph.steps == (), way
        assert not torch.is_inference_mode_enabled() and torch.is_grad_enabled(), way
        assert_captures(device, pool, way)
    assert len(order) >= NUM_FAILURES


def assert_captures(device: str, pool: object, way: str) -> None:
    """Capture into the same pool, draw random numbers, break and replay."""
    x = torch.ones(4, device=device)
    graph = BreakableCUDAGraph(device)
    with torch.no_grad(), BreakableCUDAGraphCapture(graph, pool):
        noise = torch.rand_like(x)
        y = eager_on_graph(lambda t: t * 2)(x + 1) + 0
    first = noise.clone()
    x.fill_(4)
    graph.replay()
    assert y.tolist() == [10.0] * 4, way
    assert not torch.equal(noise, first), way


def used_bytes(device: str) -> int:
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved()
    tensors = [thing for thing in gc.get_objects() if type(thing) in (torch.Tensor, torch.nn.Parameter)]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def test_memory_after_failed_captures_is_that_after_the_first(device: str) -> None:
    pool = find_device(device).new_pool()
    x = torch.ones(4, device=device)
    sizes = []
    gc.collect()
    gc.freeze()
    try:
        for _ in range(3):
            for fail, errors in WAYS.values():
                with pytest.raises(errors):
                    fail(BreakableCUDAGraph(device), pool, x)
                gc.collect()  # tracebacks hold tensors in cycles
            sizes.append((pool.reserved_bytes(), used_bytes(device)))
    finally:
        gc.unfreeze()
    assert sizes[2][0] == sizes[1][0]
    assert sizes[2][1] <= sizes[1][1]


def test_memory_after_many_runners_is_that_after_the_first(device: str) -> None:
    place = torch.device(device, 0) if device == "cuda" else torch.device(device)
    target = load_target("qwen3-tiny", device=place)
    generator = torch.Generator(place).manual_seed(0)

    def capture_replay_and_drop() -> None:
        runner = GraphRunner(target)
        runner.capture([4])
        runner.replay(make_batch(target, (3,), generator))
        assert runner.num_replays == 1

    capture_replay_and_drop()
    after_first = used_bytes(device)
    for _ in range(NUM_CYCLES - 1):
        capture_replay_and_drop()
    assert used_bytes(device) <= after_first


def test_a_runner_captures_again_and_again_into_the_same_memory(device: str) -> None:
    place = torch.device(device, 0) if device == "cuda" else torch.device(device)
    target = load_target("qwen3-tiny", device=place)
    runner = GraphRunner(target)
    taken = [[result.pool_bytes for result in runner.capture([4, 2])] for _ in range(3)]
    assert taken[0] == taken[1] == taken[2]
    assert taken[0][0] > 0
