"""Behaviours 27 to 31: side streams are joined at breaks, and all segments share one pool."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch

from bcg import BreakableCUDAGraph, BreakableCUDAGraphCapture, break_graph, eager_on_graph


def streams(device: str) -> Any:
    """The streams of `torch.cuda`, or on the host those of `torch.cpu`, which do nothing."""
    return torch.cuda if device == "cuda" else torch.cpu


def test_27_a_side_stream_forked_and_joined_inside_a_segment(device: str) -> None:
    kind = streams(device)
    side = kind.Stream()
    x = torch.zeros(4, device=device)
    graph = BreakableCUDAGraph(device)
    with BreakableCUDAGraphCapture(graph):
        side.wait_stream(kind.current_stream())
        with kind.stream(side):
            a = x + 1
        b = x + 2
        kind.current_stream().wait_stream(side)
        y = a * b
    x.fill_(3)
    graph.replay()
    assert y.tolist() == [20.0] * 4
    assert graph.num_segments == 1


def test_28_a_break_inside_a_two_stream_overlap(device: str) -> None:
    kind = streams(device)
    side = kind.Stream()
    double = eager_on_graph(lambda t: t * 2)
    x = torch.zeros(4, device=device)
    graph = BreakableCUDAGraph(device)
    with BreakableCUDAGraphCapture(graph):
        start = x + 1
        side.wait_stream(kind.current_stream())
        with kind.stream(side):
            a = start * 10
        b = double(start)
        with kind.stream(side):
            a = a + 1
        kind.current_stream().wait_stream(side)
        y = a + b
    for value in (1, 2, 3):
        x.fill_(value)
        graph.replay()
        assert y.tolist() == [12.0 * (value + 1) + 1] * 4


def test_28_a_break_called_on_the_side_stream(device: str) -> None:
    kind = streams(device)
    side = kind.Stream()
    double = eager_on_graph(lambda t: t * 2)
    x = torch.zeros(4, device=device)
    graph = BreakableCUDAGraph(device)
    with BreakableCUDAGraphCapture(graph):
        start = x + 1
        side.wait_stream(kind.current_stream())
        with kind.stream(side):
            a = double(start * 10) + 1
        kind.current_stream().wait_stream(side)
        y = a + start
    assert y.tolist() == [22.0] * 4
    for value in (1, 2, 3):
        x.fill_(value)
        graph.replay()
        assert y.tolist() == [21.0 * (value + 1) + 1] * 4


def test_29_an_unjoined_side_stream_is_joined_at_the_break(device: str) -> None:
    kind = streams(device)
    side = kind.Stream()
    x = torch.zeros(4, device=device)
    graph = BreakableCUDAGraph(device)
    with BreakableCUDAGraphCapture(graph):
        side.wait_stream(kind.current_stream())
        with kind.stream(side):
            a = x + 5
        break_graph()
        y = a + 1
    x.fill_(2)
    graph.replay()
    assert y.tolist() == [8.0] * 4


def test_30_all_graphs_share_one_pool(device: str) -> None:
    x = torch.zeros(4, device=device)
    first = BreakableCUDAGraph(device)
    with BreakableCUDAGraphCapture(first):
        break_graph()
        x + 1
    second = BreakableCUDAGraph(device)
    with BreakableCUDAGraphCapture(second, pool=first.pool):
        y = x + 2
    assert first.pool is not None and second.pool is not None
    assert first.pool.id == second.pool.id
    x.fill_(1)
    first.replay()
    second.replay()
    assert y.tolist() == [3.0] * 4


def test_31_descending_buckets_reuse_the_largest_ones_memory(device: str) -> None:
    """Intermediates and boundaries of 2**18 rows take megabytes; seven smaller buckets add nothing."""
    largest = 2**18
    x = torch.zeros(largest, device=device)
    step = eager_on_graph(lambda t: t * 2)

    def forward(t: torch.Tensor) -> torch.Tensor:
        for _ in range(3):
            t = step(t + 1) * 3
        return t.sum()

    pool = None
    sizes, graphs = [], []
    for exponent in range(8):
        graph = BreakableCUDAGraph(device)
        with BreakableCUDAGraphCapture(graph, pool=pool):
            y = forward(x[: largest >> exponent])
        pool = graph.pool
        graphs.append((graph, y, exponent))
        assert pool is not None
        sizes.append(pool.reserved_bytes())
    assert largest * 4 <= sizes[0]
    assert sizes[-1] <= 1.1 * sizes[0] + 2**20
    x.fill_(1)
    for graph, y, exponent in reversed(graphs):
        graph.replay()
        assert y.item() == forward(x[: largest >> exponent]).item()


@pytest.mark.gpu
def test_31_a_handle_of_torch_is_a_pool_too() -> None:
    handle = torch.cuda.graph_pool_handle()
    x = torch.zeros(4, device="cuda")
    double = eager_on_graph(lambda t: t * 2)
    graphs = []
    for _ in range(2):
        graph = BreakableCUDAGraph("cuda")
        with BreakableCUDAGraphCapture(graph, pool=handle, stream=torch.cuda.Stream()):
            y = double(x + 1) + 0
        graphs.append((graph, y))
    x.fill_(4)
    for graph, y in graphs:
        graph.replay()
        assert y.tolist() == [10.0] * 4


def test_memory_after_many_captures_is_that_after_the_first(device: str) -> None:
    x = torch.zeros(2**16, device=device)
    double = eager_on_graph(lambda t: t * 2)

    def capture_and_drop() -> None:
        graph = BreakableCUDAGraph(device)
        with BreakableCUDAGraphCapture(graph):
            double(x + 1) + 3
        graph.replay()
        graph.reset()

    def memory() -> int:
        gc.collect()
        if device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            free, total = torch.cuda.mem_get_info()
            return total - free
        return sum(t.nbytes for t in gc.get_objects() if type(t) is torch.Tensor)

    capture_and_drop()
    after_first = memory()
    for _ in range(50):
        capture_and_drop()
    assert memory() <= after_first


@pytest.mark.gpu
def test_replays_on_other_streams_are_ordered() -> None:
    x = torch.zeros(2**22, device="cuda")
    graph = BreakableCUDAGraph("cuda")
    with BreakableCUDAGraphCapture(graph):
        for _ in range(20):
            x.add_(1)
    x.zero_()
    torch.cuda.synchronize()
    sides = [torch.cuda.Stream() for _ in range(4)]
    for side in sides:
        with torch.cuda.stream(side):
            graph.replay()
    torch.cuda.synchronize()
    assert x.unique().tolist() == [80.0]
