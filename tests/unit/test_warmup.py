"""Each kind of layer once."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor, nn

from bcg import GraphRunner, load_target, make_batch
from bcg.warmup import cut_to, distinct_prefixes


class Layer(nn.Module):
    def __init__(self, index: int, width: int = 4, *, is_local: bool = False) -> None:
        super().__init__()
        self.layer_idx = index
        self.is_local = is_local
        self.experts = nn.ModuleList(nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return x


class Stack(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)


@pytest.mark.parametrize(
    ("layers", "prefix"),
    [
        ([Layer(0), Layer(1), Layer(2)], 1),
        ([Layer(0), Layer(1, is_local=True), Layer(2), Layer(3, is_local=True)], 2),
        ([Layer(0), Layer(1), Layer(2, width=8), Layer(3)], 3),
    ],
)
def test_the_shortest_prefix_with_every_kind(layers: list[nn.Module], prefix: int) -> None:
    stack = Stack(*layers)
    assert distinct_prefixes(stack) == {stack.layers: prefix}


def test_lists_of_different_layers_and_lists_inside_layers_stay_whole() -> None:
    assert distinct_prefixes(Stack(Layer(0), Layer(1, width=8))) == {}
    assert distinct_prefixes(Layer(0)) != {}
    assert distinct_prefixes(nn.Linear(2, 2)) == {}


def test_only_the_forward_that_is_given_it_sees_a_cut_list() -> None:
    stack = nn.Sequential(Stack(Layer(0), Layer(1), Layer(2)), nn.Linear(2, 2))
    layers = list(stack[0].layers)
    with cut_to(stack, distinct_prefixes(stack)) as shorter:
        assert list(shorter[0].layers) == layers[:1]
        assert list(stack[0].layers) == layers
        assert shorter[1] is stack[1]
        assert type(shorter[0]) is Stack


class Keeps(Stack):
    def forward(self, x: Tensor) -> Tensor:
        self.num_calls = getattr(self, "num_calls", 0) + 1
        self.made = nn.Linear(1, 1)
        del self.old
        for layer in self.layers:
            x = layer(x)
        return x


def test_what_a_shorter_forward_sets_is_set_even_after_an_error() -> None:
    keeps = Keeps(Layer(0), Layer(1), Layer(2))
    keeps.old = 1
    layers = list(keeps.layers)
    with pytest.raises(ValueError, match="planted"), cut_to(keeps, distinct_prefixes(keeps)) as shorter:
        shorter(torch.ones(2))
        raise ValueError("planted")
    assert (keeps.num_calls, hasattr(keeps, "old"), isinstance(keeps.made, nn.Linear)) == (1, False, True)
    assert list(keeps.layers) == layers


def test_other_threads_see_all_layers_while_a_runner_captures() -> None:
    target = load_target("qwen3-tiny", device="cpu")
    serving, wrong, stop = GraphRunner(target), [], threading.Event()
    batch = make_batch(target, (5,), torch.Generator().manual_seed(3))
    expected = serving.eager(batch)

    def serve() -> None:
        while not stop.is_set():
            wrong.append(not torch.equal(serving.eager(batch), expected))

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        for _ in range(3):
            GraphRunner(target).capture([16, 8, 4])
    finally:
        stop.set()
        thread.join()
    assert wrong and not any(wrong)


@pytest.mark.parametrize(("model", "prefix"), [("qwen3-tiny", 1), ("nemotron-h-tiny", 4)])
def test_after_the_first_bucket_a_prefix_is_warmed_up_and_everything_captured(model: str, prefix: int) -> None:
    target = load_target(model, device="cpu")
    runner = GraphRunner(target)
    num_layers = len(target.module.layers)
    runs: list[int] = []
    target.module.register_forward_pre_hook(lambda module, args: runs.append(len(module.layers)))
    runner.capture([4, 8, 16])
    assert runs == [num_layers, num_layers, prefix, num_layers, prefix, num_layers]
    assert len({graph.num_breaks for graph in runner.graphs.values()}) == 1
    batch = make_batch(target, (4,), torch.Generator().manual_seed(3))
    assert torch.equal(runner.replay(batch), runner.eager_padded(batch))


def test_a_model_that_needs_all_its_layers_is_warmed_up_whole() -> None:
    target = load_target("qwen3-tiny", device="cpu")
    runs: list[int] = []

    def refuse(module: nn.Module, args: object) -> None:
        runs.append(len(module.layers))
        if len(module.layers) < 4:
            raise IndexError("planted")

    target.module.register_forward_pre_hook(refuse)
    GraphRunner(target).capture([4, 8, 16])
    assert runs == [4, 4, 1, 4, 4, 4, 4]
