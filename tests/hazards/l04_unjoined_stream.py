"""L4: a break while work of a kernel library is still on a side stream. Healthy: the stream is joined before.

The work is a memset that torch knows nothing of; what torch itself puts on a side stream is joined at breaks.
"""

import torch
from cuda.bindings import runtime
from planted import between_layers
from torch import Tensor, nn

from bcg import break_graph


class Unjoined(nn.Module):
    def __init__(self, joins: bool) -> None:
        super().__init__()
        self.joins = joins
        self.side = torch.cuda.Stream()

    def forward(self, x: Tensor) -> Tensor:
        current = torch.cuda.current_stream()
        zeros = torch.empty_like(x)
        self.side.wait_stream(current)
        runtime.cudaMemsetAsync(zeros.data_ptr(), 0, zeros.nbytes, self.side.cuda_stream)
        if self.joins:
            current.wait_stream(self.side)
        break_graph()
        if not self.joins:
            current.wait_stream(self.side)
        return x + zeros


def faulty():
    return between_layers(Unjoined(joins=False))


def healthy():
    return between_layers(Unjoined(joins=True))
