"""S6: the result of a break is held weakly, and no pool owns its memory. Prevented: it is copied into a boundary.

The break here returns a fresh tensor that nobody else holds.
"""

from planted import between_layers
from torch import Tensor, nn

from bcg import eager_on_graph


class FreshResult(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        fresh = self.compute(x)
        return fresh + fresh.sum(-1, keepdim=True)

    @eager_on_graph
    def compute(self, x: Tensor) -> Tensor:
        return x.tanh()


def faulty():
    return between_layers(FreshResult())


healthy = faulty
