"""S20: all of the model runs eagerly: a comparison with eager proves nothing. Healthy: only a part does."""

from planted import make_inputs
from torch import Tensor, nn

from bcg import eager_on_graph


class Wrapped(nn.Module):
    def __init__(self, whole: bool) -> None:
        super().__init__()
        self.whole = whole
        self.layer = nn.Linear(8, 8)

    def forward(self, input: Tensor) -> Tensor:
        return self.run(input) if self.whole else self.run(input) + 1

    @eager_on_graph
    def run(self, x: Tensor) -> Tensor:
        return self.layer(x).tanh()


def faulty():
    return Wrapped(whole=True), make_inputs


def healthy():
    return Wrapped(whole=False), make_inputs
