"""S12: the forward counts on the host, and a replay doesn't. Healthy: it counts in a break."""

from planted import between_layers
from torch import Tensor, nn

from bcg import eager_on_graph


class Counts(nn.Module):
    num_calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.num_calls += 1
        return x + 1


class CountsInBreak(nn.Module):
    num_calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.count()
        return x + 1

    @eager_on_graph
    def count(self) -> None:
        self.num_calls += 1


def faulty():
    return between_layers(Counts())


def healthy():
    return between_layers(CountsInBreak())
