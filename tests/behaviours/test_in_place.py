"""Breaks that can be bound write their results where the next segment reads them, without any copy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bcg import BreakableCUDAGraph, BreakableCUDAGraphCapture, GraphRunner, make_batch
from bcg.breaks import Allocate, Bindable, BreakLabel, InPlace, bound_breaks, call_break, inline_breaks
from bcg.structure import unowned_alias
from bcg.whereabouts import source_line_of
from tests.targets import own_target


class Doubles:
    """Doubles a tensor; counts how often it was called, bound and run in place."""

    def __init__(self, *, can_be_bound: bool = True) -> None:
        self.called, self.bound, self.written = 0, 0, 0
        self._can_be_bound = can_be_bound
        self._break = Bindable(self._double, self._bind)

    def __call__(self, x: Tensor) -> Any:
        return call_break(self._break, (x,), {}, BreakLabel("double"))

    def _double(self, x: Tensor) -> Tensor:
        self.called += 1
        return x * 2

    def _bind(self, allocate: Allocate, x: Tensor) -> InPlace | None:
        if not self._can_be_bound:
            return None
        self.bound += 1
        result = allocate(x.shape, x.stride(), x.dtype)
        output = unowned_alias(result)

        def write() -> None:
            self.written += 1
            torch.mul(x, 2, out=output)

        return InPlace(result, write)


@pytest.mark.parametrize("taped", [True, False], ids=["taped", "externals known"])
def test_a_bound_break_is_run_in_place_and_its_memory_is_the_pools(device: str, taped: bool) -> None:
    double, graph = Doubles(), BreakableCUDAGraph(device)
    x = torch.ones(4, device=device)
    with torch.inference_mode():
        with BreakableCUDAGraphCapture(graph, known_externals=None if taped else [x]):
            handed = double(x + 1)
            y = handed + 3
        assert y.tolist() == [7.0] * 4
        assert (graph.num_segments, graph.num_breaks) == (2, 1)
        assert graph.pool is not None
        assert graph.pool.owns(handed)
        (boundary,) = graph.breaks[0].boundaries
        assert boundary.data_ptr() == handed.data_ptr()
        assert graph.breaks[0].boundary_bytes >= 16
        for value in (3.0, 4.0):
            graph.device.poison(graph.pool)
            x.fill_(value)
            graph.replay()
            assert y.tolist() == [(value + 1) * 2 + 3] * 4
            assert handed.tolist() == [(value + 1) * 2] * 4
    assert (double.called, double.bound, double.written) == (0, 1, 3)


def test_its_memory_is_used_again_when_nothing_of_the_body_needs_it(device: str) -> None:
    double, graph = Doubles(), BreakableCUDAGraph(device)
    x = torch.ones(2**16, device=device)
    with torch.inference_mode():
        with BreakableCUDAGraphCapture(graph):
            y = x
            for _ in range(8):
                y = double(y + 1)
        assert graph.pool is not None
        assert len({step.boundaries[0].data_ptr() for step in graph.breaks}) < 8
        x.fill_(2)
        graph.replay()
        expected = torch.full_like(x, 2)
        for _ in range(8):
            expected = (expected + 1) * 2
        assert torch.equal(y, expected)


def test_what_cannot_be_bound_is_called_and_copied(device: str) -> None:
    double, graph = Doubles(can_be_bound=False), BreakableCUDAGraph(device)
    x = torch.ones(4, device=device)
    with BreakableCUDAGraphCapture(graph):
        y = double(x + 1) + 3
    x.fill_(5)
    graph.replay()
    assert y.tolist() == [15.0] * 4
    assert (double.called, double.written) == (2, 0)


def test_under_autocast_it_is_called(device: str) -> None:
    double, graph = Doubles(), BreakableCUDAGraph(device)
    x = torch.ones(4, device=device)
    with torch.autocast(device, torch.bfloat16), BreakableCUDAGraphCapture(graph):
        double(x + 1)
    assert (double.called, double.bound) == (1, 0)


def test_where_nobody_follows_it_is_bound_only_for_a_warm_up(device: str) -> None:
    double, x = Doubles(), torch.ones(4, device=device)
    assert double(x).tolist() == [2.0] * 4
    assert (double.called, double.bound) == (1, 0)
    with bound_breaks():
        assert double(x).tolist() == [2.0] * 4
        assert (double.called, double.bound, double.written) == (1, 1, 1)
        with inline_breaks():
            double(x)
    assert (double.called, double.bound) == (2, 1)


class DoublesBetween(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.double = Doubles()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.double(x + 1) + 3
        return result


def test_a_runner_warms_up_in_place_and_compares_with_eager_that_is_not(device: str) -> None:
    """Else libraries would make ready for two ways, and what is compared would be the same way twice."""
    module = DoublesBetween()
    target = own_target(module, device, make_inputs=lambda n, place, _: {"x": torch.ones(n, 4, device=place)})
    runner, double = GraphRunner(target, tape=False), module.double  # its rehearsal for a GPU's pool is not in place
    called = double.called
    runner.capture([8, 4])
    assert double.called == called
    batch = make_batch(target, (4,), torch.Generator(device))
    written = double.written
    assert torch.equal(runner.replay(batch), torch.full((4, 4), 7.0, device=device))
    assert (double.called, double.written) == (called, written + 1)
    assert torch.equal(runner.eager_padded(batch), torch.full((4, 4), 7.0, device=device))
    assert (double.called, double.written) == (called + 1, written + 1)


def test_an_error_while_binding_undoes_the_capture(device: str) -> None:
    def fail(allocate: Allocate, x: Tensor) -> InPlace | None:
        raise ValueError("no such kernel")

    graph, x = BreakableCUDAGraph(device), torch.ones(4, device=device)
    with pytest.raises(ValueError, match="^no such kernel") as caught, BreakableCUDAGraphCapture(graph):
        call_break(Bindable(torch.neg, fail), (x + 1,), {}, BreakLabel("fails"))
    assert "in break fails" in caught.value.__notes__
    assert not graph.steps


def test_reports_tell_where_its_function_is_written(device: str) -> None:
    double, graph = Doubles(), BreakableCUDAGraph(device)
    with BreakableCUDAGraphCapture(graph):
        double(torch.ones(4, device=device) + 1)
    assert source_line_of(graph.breaks[0].function) == source_line_of(double._double)
    assert source_line_of(double._double).rpartition(":")[0] == __file__
