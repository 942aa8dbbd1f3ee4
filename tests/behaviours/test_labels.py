"""Breaks keep their modules in captures that no tape follows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bcg import BreakableCUDAGraph, BreakableCUDAGraphCapture, eager_on_graph


class Doubles(nn.Module):
    @eager_on_graph
    def double(self, x: Tensor) -> Tensor:
        return x * 2

    def forward(self, x: Tensor) -> Tensor:
        return self.double(x + 1)


def captured(model: nn.Module, x: Tensor, device: str) -> BreakableCUDAGraph:
    graph = BreakableCUDAGraph(device)
    with torch.no_grad(), BreakableCUDAGraphCapture(graph, known_externals=[x]):
        model(x)
    return graph


def test_labels_are_adopted_from_the_same_program_only(device: str) -> None:
    x = torch.ones(4, device=device)
    model, other = nn.Sequential(nn.ReLU(), Doubles()), nn.Sequential(Doubles(), Doubles())
    taped = BreakableCUDAGraph(device)
    with torch.no_grad(), BreakableCUDAGraphCapture(taped):
        model(x)
    assert [step.label.module for step in taped.breaks] == ["1"]
    graph = captured(model, x, device)
    graph.adopt_labels(taped)
    assert [step.label.module for step in graph.breaks] == ["1"]
    different = captured(other, x, device)
    labels = [step.label for step in different.breaks]
    different.adopt_labels(taped)
    assert [step.label for step in different.breaks] == labels
