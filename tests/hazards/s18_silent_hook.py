"""S18: a forward hook that counts; it doesn't run in a replay. Healthy: the count is kept in a break."""

from planted import between_layers
from torch import Tensor, nn

from bcg import eager_on_graph


class Plus(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
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
    planted = Plus()
    seen: list[int] = []
    planted.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    return between_layers(planted)


def healthy():
    return between_layers(CountsInBreak())
