"""S9: a break returns a structure that can't be written back. Healthy: a tuple."""

from collections import deque

from planted import between_layers
from torch import Tensor, nn

from bcg import eager_on_graph


class Returns(nn.Module):
    def __init__(self, structure: type) -> None:
        super().__init__()
        self.structure = structure

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.halves(x)
        return one + other

    @eager_on_graph
    def halves(self, x: Tensor) -> object:
        return self.structure([x * 0.5, x.tanh()])


def faulty():
    return between_layers(Returns(deque))


def healthy():
    return between_layers(Returns(tuple))
