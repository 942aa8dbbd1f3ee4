"""S1: a Python branch is frozen as it went at capture. Healthy: the branch is inside the break."""

from planted import between_layers
from torch import Tensor, nn

from bcg import current_forward_context, eager_on_graph

LONG = 20


class Branches(nn.Module):
    """A break finds out whether the batch is long; the segment after it branches on that."""

    is_long = False

    def forward(self, x: Tensor) -> Tensor:
        self.look()
        if self.is_long:
            return x.tanh()
        return x * 2

    @eager_on_graph
    def look(self) -> None:
        self.is_long = current_forward_context().num_tokens > LONG


class BranchesInBreak(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return self.choose(x) + 1

    @eager_on_graph
    def choose(self, x: Tensor) -> Tensor:
        return x.tanh() if current_forward_context().num_tokens > LONG else x * 2


def faulty():
    return between_layers(Branches())


def healthy():
    return between_layers(BranchesInBreak())
