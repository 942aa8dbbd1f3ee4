"""Behaviours 8 to 13: the decorator."""

from __future__ import annotations

import gc
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bcg import (
    BreakableCUDAGraph,
    BreakableCUDAGraphCapture,
    GraphRunner,
    current_capture,
    eager_on_graph,
    make_batch,
)
from bcg.breaks import BreakLabel, inline_breaks, is_in_break, running_breaks
from tests.targets import own_target


def plain(t: torch.Tensor) -> torch.Tensor:
    return t * 2


def test_8_disabled_it_returns_the_very_function() -> None:
    assert eager_on_graph(enable=False)(plain) is plain
    assert eager_on_graph(False)(plain) is plain
    assert eager_on_graph(enable=True)(plain) is not plain
    assert eager_on_graph(True)(plain) is not plain


def test_8_what_can_not_be_called_is_no_break() -> None:
    for mark in (eager_on_graph, eager_on_graph(enable=True)):
        with pytest.raises(TypeError, match="^eager_on_graph marks a function as a break, got int$"):
            mark(3)  # type: ignore[call-overload,type-var]


def test_9_outside_a_capture_the_function_runs(device: str) -> None:
    t = torch.ones(4, device=device)
    assert torch.equal(eager_on_graph(plain)(t), t * 2)
    assert eager_on_graph(plain).__name__ == "plain"


def test_10_positional_and_keyword_arguments(device: str) -> None:
    @eager_on_graph
    def scale(t: torch.Tensor, factor: float, *, offset: torch.Tensor) -> torch.Tensor:
        return t * factor + offset

    x, offset = torch.ones(4, device=device), torch.ones(4, device=device)
    graph = BreakableCUDAGraph(device)
    with BreakableCUDAGraphCapture(graph):
        y = scale(x, 3.0, offset=offset) + 0
    x.fill_(2)
    offset.fill_(10)
    graph.replay()
    assert y.tolist() == [16.0] * 4


def test_11_a_break_inside_a_break_runs_inline(device: str) -> None:
    inner = eager_on_graph(lambda t: t + 1)
    outer = eager_on_graph(lambda t: inner(t) * 2)
    x = torch.zeros(4, device=device)
    graph = BreakableCUDAGraph(device)
    with BreakableCUDAGraphCapture(graph):
        y = outer(x + 0) + 0
    x.fill_(4)
    graph.replay()
    assert y.tolist() == [10.0] * 4
    assert graph.num_breaks == 1


def test_12_it_works_on_methods(device: str) -> None:
    class Scaler:
        factor = 2.0

        @eager_on_graph(enable=True)
        def scale(self, t: torch.Tensor) -> torch.Tensor:
            return t * self.factor

    scaler = Scaler()
    x = torch.ones(4, device=device)
    graph = BreakableCUDAGraph(device)
    with BreakableCUDAGraphCapture(graph):
        y = scaler.scale(x) + 1
    scaler.factor = 5.0
    graph.replay()
    assert y.tolist() == [6.0] * 4
    assert graph.breaks[0].label.name.endswith("Scaler.scale")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_12_it_works_through_torch_compile(device: str) -> None:
    inside: list[bool] = []

    @eager_on_graph
    def double(t: torch.Tensor) -> torch.Tensor:
        inside.append(torch.compiler.is_compiling())
        return t * 2

    def surrounding(t: torch.Tensor) -> torch.Tensor:
        return double(t + 1) + 3

    compiled = torch.compile(surrounding, backend="eager")
    x = torch.zeros(4, device=device)
    assert compiled(x).tolist() == [5.0] * 4
    graph = BreakableCUDAGraph(device)
    with BreakableCUDAGraphCapture(graph):
        y = compiled(x)
    x.fill_(10)
    graph.replay()
    assert y.tolist() == [25.0] * 4
    assert (graph.num_segments, graph.num_breaks) == (2, 1)
    assert not any(inside)


def test_13_argument_tensors_are_not_kept_alive(device: str) -> None:
    double = eager_on_graph(plain)
    x = torch.ones(4, device=device)
    graph = BreakableCUDAGraph(device)
    with BreakableCUDAGraphCapture(graph):
        argument = x + 1
        watched = weakref.ref(argument)
        y = double(argument) + 1
        del argument
    gc.collect()
    assert watched() is None
    assert y.tolist() == [5.0] * 4


def test_13_external_arguments_are_kept_alive(device: str) -> None:
    add = eager_on_graph(lambda t, u: t + u)
    x = torch.ones(4, device=device)
    external = torch.full((4,), 7.0, device=device)
    graph = BreakableCUDAGraph(device)
    with BreakableCUDAGraphCapture(graph):
        y = add(x + 0, external) * 1
    del external
    churn = [torch.full((4,), float("nan"), device=device) for _ in range(64)]
    graph.replay()
    assert y.tolist() == [8.0] * 4
    assert len(churn) == 64


def test_breaks_can_be_captured_like_everything_else(device: str) -> None:
    """Among `inline_breaks` a break is no break: one segment, the function inside it."""
    x = torch.zeros(4, device=device)
    graph = BreakableCUDAGraph(device)
    doubled = eager_on_graph(lambda t: t * 2)
    with inline_breaks(), torch.inference_mode(), BreakableCUDAGraphCapture(graph):
        y = doubled(x + 1) + 3
    assert (graph.num_segments, graph.num_breaks) == (1, 0)
    x.fill_(10)
    graph.replay()
    assert y.tolist() == [25.0] * 4


class Configured(OrderedDict[str, torch.Tensor]):
    factor: float


class Listed(list[torch.Tensor]):
    factor: float


def test_containers_of_arguments_keep_their_type_and_attributes(device: str) -> None:
    """Found by hand: a break was given a plain dict in place of a subclass with attributes."""
    x = torch.ones(4, device=device)
    graph = BreakableCUDAGraph(device)
    with BreakableCUDAGraphCapture(graph):
        named, listed = Configured(x=x + 1), Listed([x + 2])
        named.factor, listed.factor = 10.0, 100.0
        y = eager_on_graph(lambda n, m: n["x"] * n.factor + m[0] * m.factor)(named, listed) + 0
    x.fill_(3)
    graph.replay()
    assert y.tolist() == [540.0] * 4


class Inline:
    """Runs breaks where they stand."""

    def run_break(
        self, function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], label: BreakLabel
    ) -> Any:
        return function(*args, **kwargs)


def test_whoever_ran_the_breaks_before_runs_them_again_afterwards() -> None:
    outer = Inline()
    with running_breaks(outer):
        with running_breaks(Inline()):
            pass
        assert current_capture() is outer
    assert current_capture() is None


class Scales(nn.Module):
    factor = 2

    def forward(self, x: Tensor) -> Tensor:
        return self.by(x + 1, 3) + self.own(x)

    @staticmethod
    def by(x: Tensor, factor: int) -> Tensor:
        return x * factor

    @classmethod
    def own(cls, x: Tensor) -> Tensor:
        return x * cls.factor


class ScalesMore(Scales):
    factor = 5


@pytest.mark.parametrize("method", ["by", "own"])
def test_a_static_method_and_a_class_method_become_breaks_by_name(device: str, method: str) -> None:
    def make_inputs(num_tokens: int, where: torch.device, generator: torch.Generator) -> dict[str, Tensor]:
        return {"x": torch.rand((num_tokens, 4), device=where, generator=generator)}

    target = own_target(ScalesMore(), device, make_inputs, break_globs=(f"{__name__}:Scales.{method}",))
    runner = GraphRunner(target)
    runner.capture([8])
    assert runner.graphs[8].num_breaks == 1
    batch = make_batch(target, (8,), torch.Generator(device))
    assert torch.equal(runner.replay(batch), runner.eager(batch))
    torch.testing.assert_close(runner.eager(batch), batch.inputs["x"] * 8 + 3)
    assert Scales.by(torch.ones(1), 3).item() == 3


def test_a_capture_inside_a_break_leaves_it_a_break(device: str) -> None:
    told: list[bool] = []

    @eager_on_graph
    def captures(x: torch.Tensor) -> torch.Tensor:
        with running_breaks(object()):  # type: ignore[arg-type]
            pass
        told.append(is_in_break())
        return x * 2

    with BreakableCUDAGraphCapture(BreakableCUDAGraph(device)):
        captures(torch.ones(4, device=device))
    assert told == [True]
