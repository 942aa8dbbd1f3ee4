"""Captures a program over several buckets in one pool, and compares every replay with eager, bit by bit."""

from __future__ import annotations

import random
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bcg import BreakableCUDAGraph, BreakableCUDAGraphCapture
from bcg.device import find_device
from bcg.structure import map_tensors, unowned_alias
from tests.fuzz.programs import WIDTH, Statics, Step, run


@dataclass(frozen=True)
class Scenario:
    """A program and how it is captured and replayed.

    Attributes:
        program: What is captured.
        buckets: Token counts.
        holds_outputs: Whether outputs are held, or left to the pool as `GraphRunner` does.
        inference: Capture in inference mode instead of under `no_grad`.
        taped: Let the tape find the externals, where the device can do without.
        seed: Decides order and inputs of the replays.
    """

    program: tuple[Step, ...]
    buckets: tuple[int, ...]
    holds_outputs: bool
    inference: bool
    taped: bool
    seed: int


def check(device: str, scenario: Scenario) -> None:
    """Capture all buckets, largest first; replay each twice in shuffled order; compare all with eager.

    Raises:
        AssertionError: A result, an input or the state has another bit than in eager.
    """
    chance = random.Random(scenario.seed)
    bench = Bench(device, max(scenario.buckets))
    graphs: dict[int, tuple[BreakableCUDAGraph, list[Tensor]]] = {}
    pool: Any = None
    for tokens in sorted(scenario.buckets, reverse=True):
        expected = bench.eager(scenario.program, tokens, tokens)
        bench.load(tokens)
        graph = BreakableCUDAGraph(device)
        statics = bench.statics(tokens)
        known = None if scenario.taped else list(bench.changeable(tokens))
        with _grad_mode(scenario.inference), BreakableCUDAGraphCapture(graph, pool, known_externals=known):
            outputs = run(scenario.program, statics)
        pool = graph.pool
        assert_same(outputs, expected, f"capture of {tokens}")
        assert_same(bench.changeable(tokens), bench.changed, f"what the capture of {tokens} changed")
        graphs[tokens] = (graph, outputs if scenario.holds_outputs else map_tensors(unowned_alias, outputs))
        del outputs
    if not all(graph.steps for graph, _ in graphs.values()):
        return  # nothing but views: there is nothing to replay
    for tokens in chance.sample(list(graphs) * 2, 2 * len(graphs)):
        seed = chance.randrange(100, 200)
        expected = bench.eager(scenario.program, tokens, seed)
        find_device(device).poison(pool)
        bench.load(seed)
        graph, outputs = graphs[tokens]
        graph.replay()
        assert_same(outputs, expected, f"replay of {tokens}")
        assert_same(bench.changeable(tokens), bench.changed, f"what the replay of {tokens} changed")
    for graph, _ in graphs.values():
        graph.reset()


class Bench:
    """The static tensors of all buckets, and eager runs on copies of them."""

    def __init__(self, device: str, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._device = device
        self._all = self._values(0)
        self.changed: list[Tensor] = []

    def statics(self, tokens: int) -> Statics:
        return _cut(self._all, tokens)

    def load(self, seed: int) -> None:
        fresh = self._values(seed)
        self._all.x.copy_(fresh.x)
        self._all.ids.copy_(fresh.ids)
        self._all.state.copy_(fresh.state)
        self._all.weight.copy_(fresh.weight)

    def eager(self, program: tuple[Step, ...], tokens: int, seed: int) -> list[Tensor]:
        statics = _cut(self._values(seed), tokens)
        with torch.no_grad():
            outputs = run(program, statics)
        self.changed = [statics.x, statics.ids, statics.state, statics.weight]
        return outputs

    def changeable(self, tokens: int) -> list[Tensor]:
        statics = self.statics(tokens)
        return [statics.x, statics.ids, statics.state, statics.weight]

    def _values(self, seed: int) -> Statics:
        generator = torch.Generator().manual_seed(seed)
        place = self._device
        return Statics(
            x=(torch.rand(self._max_tokens, WIDTH, generator=generator) * 2 - 1).to(place),
            ids=torch.randint(WIDTH, (self._max_tokens,), generator=generator).to(place),
            weight=(torch.randint(-8, 9, (WIDTH, WIDTH), generator=generator) / 8).to(place),
            state=torch.rand(6, generator=generator).to(place),
        )


def _cut(statics: Statics, tokens: int) -> Statics:
    return Statics(statics.x[:tokens], statics.ids[:tokens], statics.weight, statics.state)


def _grad_mode(inference: bool) -> AbstractContextManager[object]:
    return torch.inference_mode() if inference else torch.no_grad()


def assert_same(got: list[Tensor], expected: list[Tensor], what: str) -> None:
    assert len(got) == len(expected), f"{what}: {len(got)} tensors, expected {len(expected)}"
    for index, (left, right) in enumerate(zip(got, expected, strict=True)):
        assert left.shape == right.shape and left.dtype == right.dtype, f"{what}: tensor {index} is another kind"
        assert torch.equal(_bits(left), _bits(right)), f"{what}: tensor {index} is\n{left}, expected\n{right}"


def _bits(tensor: Tensor) -> Tensor:
    """Every bit but those that tell one NaN from another."""
    if not tensor.is_floating_point():
        return tensor
    return torch.nan_to_num(tensor, nan=12345.0, posinf=torch.inf, neginf=-torch.inf)
