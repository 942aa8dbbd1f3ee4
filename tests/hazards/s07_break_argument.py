"""S7: an argument of a break is held weakly, and another bucket reuses its block. Prevented.

The break here gets an intermediate, a part of it, and one of an earlier segment that only it still reads.
"""

from planted import between_layers
from torch import Tensor, nn

from bcg import break_graph, eager_on_graph


class Arguments(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        early = x * 2
        break_graph()
        late = x + 1
        return self.join(early, late, late[:, :1]) + 1

    @eager_on_graph
    def join(self, early: Tensor, late: Tensor, part: Tensor) -> Tensor:
        return early.tanh() + late * part


def faulty():
    return between_layers(Arguments())


healthy = faulty
