"""Results of breaks reach their boundaries through a node of the next segment, wherever they lie."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from bcg import BreakableCUDAGraph, BreakableCUDAGraphCapture, break_graph, eager_on_graph


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.inference_mode():
        yield


def capture(body: Callable[[], Any]) -> tuple[BreakableCUDAGraph, Any]:
    graph = BreakableCUDAGraph("cuda")
    with BreakableCUDAGraphCapture(graph):
        result = body()
    return graph, result


def copies(graph: BreakableCUDAGraph) -> list[int]:
    return [segment.contents().node_counts.get("memcpy", 0) for segment in graph.segments]


def test_results_are_copied_from_wherever_they_lie() -> None:
    x, kept = torch.ones(1000, device="cuda"), []

    @eager_on_graph
    def double(x: Tensor) -> Tensor:
        result = x * 2
        kept.append(result)  # the allocator must find another block each time
        return result

    graph, y = capture(lambda: double(x + 1) + 1)
    assert copies(graph) == [0, 1]
    for value in (3.0, 4.0, 5.0):
        x.fill_(value)
        graph.replay()
        assert torch.equal(y, torch.full_like(y, (value + 1) * 2 + 1))
    assert len({result.data_ptr() for result in kept}) == 4


def test_a_result_in_another_layout_is_laid_out_as_the_first() -> None:
    x, turned = torch.arange(12.0, device="cuda").reshape(3, 4), [False]

    @eager_on_graph
    def increase(x: Tensor) -> Tensor:
        return (x.T.contiguous().T if turned[0] else x) + 1

    graph, y = capture(lambda: increase(x * 1) * 10)
    turned[0] = True
    x += 5
    graph.replay()
    assert torch.equal(y, (x + 1) * 10)


def test_each_result_of_a_break_has_its_copy() -> None:
    x = torch.ones(8, device="cuda")

    @eager_on_graph
    def both(x: Tensor) -> dict[str, Tensor]:
        return {"more": x + 1, "less": x - 1}

    def body() -> Tensor:
        parts = both(x * 1)
        return parts["more"] * 100 + parts["less"]

    graph, y = capture(body)
    assert copies(graph) == [0, 2]
    x.fill_(7)
    graph.replay()
    assert torch.equal(y, torch.full_like(y, 806))


def test_without_a_segment_after_it_a_break_fills_its_boundary_at_once() -> None:
    x = torch.ones(8, device="cuda")

    @eager_on_graph
    def increase(x: Tensor) -> Tensor:
        return x + 1

    graph, y = capture(lambda: increase(increase(x * 1)))
    assert (graph.num_segments, graph.num_breaks) == (1, 2)
    x.fill_(5)
    graph.replay()
    assert torch.equal(y, torch.full_like(y, 7))


def test_copies_of_the_model_itself_are_left_alone() -> None:
    x, target = torch.ones(8, device="cuda"), torch.zeros(8, device="cuda")

    @eager_on_graph
    def increase(x: Tensor) -> Tensor:
        return x + 1

    def body() -> Tensor:
        y = increase(x * 1)
        target.copy_(y)
        return target * 2

    graph, y = capture(body)
    assert copies(graph) == [0, 2]
    kept = []
    for value in (2.0, 3.0):
        kept.append(torch.empty_like(x))
        x.fill_(value)
        graph.replay()
        assert torch.equal(target, torch.full_like(x, value + 1))
        assert torch.equal(y, torch.full_like(x, (value + 1) * 2))


def test_a_break_may_return_its_own_boundary() -> None:
    x = torch.ones(8, device="cuda")
    last: list[Tensor] = []

    @eager_on_graph
    def first_or_last(x: Tensor) -> Tensor:
        return last[0] if last else x + 1

    def body() -> Tensor:
        handed = first_or_last(x * 1)
        y = handed + 1
        last.append(handed)
        return y

    graph, y = capture(body)
    graph.replay()
    assert torch.equal(y, torch.full_like(y, 3))


def test_no_result_is_held_once_its_copy_was_launched() -> None:
    x = torch.ones(2**20, device="cuda")

    @eager_on_graph
    def increase(x: Tensor) -> Tensor:
        return x + 1

    def body() -> Tensor:
        y = increase(x) * 2
        break_graph()
        return increase(y) + 1

    graph, y = capture(body)
    before = torch.cuda.memory_allocated()
    graph.replay()
    assert torch.cuda.memory_allocated() == before
    assert torch.equal(y, torch.full_like(y, 6))


def test_the_first_result_is_there_for_the_next_step_of_the_capture() -> None:
    x, seen = torch.ones(8, device="cuda"), []

    @eager_on_graph
    def increase(x: Tensor) -> Tensor:
        seen.append(x.sum().item())
        return x + 1

    def body() -> Tensor:
        y = increase(x * 1)  # a segment copies this result,
        return increase(increase(y * 2))  # and none the other two

    graph, y = capture(body)
    assert seen == [8, 32, 40]
    assert torch.equal(y, torch.full_like(y, 6))
    assert copies(graph) == [0, 1]
