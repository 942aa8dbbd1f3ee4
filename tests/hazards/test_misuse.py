"""Faults of the calling code, which no model can hold: each is refused, or can't do harm, or shows as it must."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor, nn

from bcg import (
    Batch,
    BreakableCUDAGraph,
    BreakableCUDAGraphCapture,
    GraphRunner,
    ReplayError,
    Target,
    eager_on_graph,
    load_target,
    make_batch,
)
from bcg.checking import assert_graph_safe
from bcg.errors import CheckFailure
from tests.hazards.planted import between_layers
from tests.targets import own_target


class Plus(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1


def target_on(device: str) -> Target:
    module, make_inputs = between_layers(Plus())
    return own_target(module, device, make_inputs, name="planted")


def batches(target: Target, count: int) -> list[Batch]:
    generator = torch.Generator(target.device).manual_seed(3)
    return [make_batch(target, (5,), generator) for _ in range(count)]


def test_s4_an_input_that_the_caller_rebinds_is_stale_and_the_runner_copies(device: str) -> None:
    x = torch.zeros(4, device=device)
    graph = BreakableCUDAGraph(device)
    with BreakableCUDAGraphCapture(graph):
        y = x + 1
    captured = x.data_ptr()
    x = torch.ones(4, device=device)
    graph.replay()
    assert y.tolist() == [1.0] * 4 and x.data_ptr() != captured
    runner = GraphRunner(target_on(device))
    runner.capture([8])
    for batch in batches(runner.target, 2):
        assert torch.equal(runner.replay(batch), runner.eager_padded(batch))


def test_s11_an_output_that_is_kept_is_overwritten_and_a_clone_is_not(device: str) -> None:
    runner = GraphRunner(target_on(device))
    runner.capture([8])
    first, second = batches(runner.target, 2)
    expected = runner.eager_padded(first).clone()
    kept = runner.replay(first)
    cloned = kept.clone()
    last = runner.replay(second)
    assert torch.equal(kept, last)
    assert torch.equal(cloned, expected)


def test_s17_two_replays_at_once_in_one_pool_are_refused(device: str) -> None:
    inside, go_on = threading.Event(), threading.Event()
    x = torch.ones(4, device=device)
    waits = iter([False, True])

    @eager_on_graph
    def wait(t: Tensor) -> None:
        if next(waits):
            inside.set()
            go_on.wait(30)

    slow, quick = BreakableCUDAGraph(device), BreakableCUDAGraph(device)
    with BreakableCUDAGraphCapture(slow):
        wait(x + 1)
        y = x + 2
    with BreakableCUDAGraphCapture(quick, slow.pool):
        z = x + 3
    thread = threading.Thread(target=slow.replay)
    thread.start()
    try:
        assert inside.wait(30)
        with pytest.raises(ReplayError, match="captured or replayed, by another thread") as caught:
            quick.replay()
        assert caught.value.hazard == "S17"
    finally:
        go_on.set()
        thread.join()
    x.fill_(2)
    quick.replay()
    assert z.tolist() == [5.0] * 4
    waits = iter([False])
    slow.replay()
    assert y.tolist() == [4.0] * 4


def test_s20_batches_above_the_largest_bucket_are_counted_and_nothing_replayed_is_no_match(device: str) -> None:
    runner = GraphRunner(target_on(device))
    runner.capture([4])
    (batch,) = batches(runner.target, 1)
    runner.replay(batch)
    assert (runner.num_replays, runner.num_fallbacks) == (0, 1)


def test_s20_an_assertion_about_a_model_that_replays_nothing_fails(device: str) -> None:
    with pytest.raises(CheckFailure, match="inconclusive"):
        assert_graph_safe(load_target(f"{__file__.rpartition('/')[0]}/s20_nothing_replayed.py:faulty", device=device))


@pytest.mark.gpu
def test_s21_inputs_written_on_another_stream_need_an_order() -> None:
    """Long work delays the write; a replay that waits for it is right."""
    x = torch.zeros(2**20, device="cuda")
    graph = BreakableCUDAGraph("cuda")
    with BreakableCUDAGraphCapture(graph):
        y = x + 1
    side = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(100_000_000)
        x.fill_(5)
    graph.replay()
    stale = y.clone()
    torch.cuda.synchronize()
    assert stale[0].item() == 1.0
    torch.cuda.current_stream().wait_stream(side)
    graph.replay()
    assert y[0].item() == 6.0


@pytest.mark.gpu
def test_l6_work_on_the_legacy_stream_beside_a_blocking_capture_stream() -> None:
    from cuda.bindings import runtime

    error, raw = runtime.cudaStreamCreate()
    assert int(error) == 0
    stream = torch.cuda.ExternalStream(int(raw))
    x = torch.ones(4, device="cuda")
    torch.cuda.synchronize()
    with pytest.raises(RuntimeError, match=r"legacy stream|906|[Ii]mplicit"):
        with BreakableCUDAGraphCapture(BreakableCUDAGraph("cuda"), stream=stream):
            x + 1
            with torch.cuda.stream(torch.cuda.default_stream()):
                x.mul_(2)
    graph = BreakableCUDAGraph("cuda")
    with BreakableCUDAGraphCapture(graph):
        y = x + 1
    graph.replay()
    assert y.tolist() == (x + 1).tolist()
