"""L14: the forward captures a graph of its own. Healthy: it leaves that to its caller.

A break inside a break is no fault: the inner one runs inline.
"""

from planted import between_layers
from torch import Tensor, nn

from bcg import BreakableCUDAGraph, BreakableCUDAGraphCapture, eager_on_graph


class CapturesItself(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        graph = BreakableCUDAGraph(x.device)
        with BreakableCUDAGraphCapture(graph):
            return x + 1


class BreaksInABreak(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return self.outer(x) + 1

    @eager_on_graph
    def outer(self, x: Tensor) -> Tensor:
        return self.inner(x * 2)

    @eager_on_graph
    def inner(self, x: Tensor) -> Tensor:
        return x + x.new_tensor(0.5)


def faulty():
    return between_layers(CapturesItself())


def healthy():
    return between_layers(BreaksInABreak())
