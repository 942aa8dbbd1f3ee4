"""Modules that their owner gave to torch's compiler: what looks at a model leaves them compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bcg import GraphRunner, make_batch
from bcg.compilations import runs_compiled_code
from bcg.diagnose import break_where_needed
from tests.targets import Between, own_target


class Layer(nn.Module):
    """A forward of a user's own: torch's compiler treats those of torch.nn otherwise."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.gelu(x) * 2


class Counting:
    """A compiler's back end that counts how often its code runs."""

    def __init__(self) -> None:
        self.num_runs = 0

    def __call__(self, graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            self.num_runs += 1
            return graph.forward(*args)

        return run


def make_inputs(num_tokens: int, device: torch.device, generator: torch.Generator) -> dict[str, Tensor]:
    return {"x": torch.rand(num_tokens, 8, device=device, generator=generator)}


@pytest.fixture(params=[False, True], ids=["in pieces", "as one graph"])
def compiled(request: pytest.FixtureRequest) -> tuple[Between, Counting]:
    backend, module = Counting(), Between(Layer())
    module.inner.compile(backend=backend, dynamic=True, fullgraph=request.param)
    return module, backend


def test_compiled_code_runs_after_a_search_for_breaks(compiled: tuple[Between, Counting], device: str) -> None:
    module, backend = compiled
    target = own_target(module, device, make_inputs)
    assert break_where_needed(target, (4, 8)).automatic_breaks == []
    before = backend.num_runs
    GraphRunner(target).eager(make_batch(target, (8,), torch.Generator(device).manual_seed(0)))
    assert backend.num_runs == before + 1


def test_a_module_that_is_a_break_is_not_taken_for_a_compiled_one(device: str) -> None:
    target = own_target(Between(Layer()), device, make_inputs, break_globs=("inner",))
    assert not runs_compiled_code(target.module)
    runner = GraphRunner(target)
    runner.capture((4, 8))
    assert all(segment.tape.operations for segment in runner.graphs[8].segments)  # the tape has followed it


def test_a_break_at_a_compiled_module_runs_what_was_compiled(compiled: tuple[Between, Counting], device: str) -> None:
    module, backend = compiled
    target = own_target(module, device, make_inputs, break_globs=("inner",))
    runner = GraphRunner(target)
    runner.capture((4, 8))
    batch, before = make_batch(target, (7,), torch.Generator(device).manual_seed(0)), backend.num_runs
    replayed = runner.replay(batch).clone()
    assert backend.num_runs == before + 1
    assert [graph.num_breaks for graph in runner.graphs.values()] == [1, 1]
    torch.testing.assert_close(replayed, runner.eager(batch))
