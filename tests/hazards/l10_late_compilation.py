"""L10: a fast path for small graphs is compiled when the first one needs it. Healthy: the warm-up takes it too.

The capture passes where the compiler keeps its hands off the device; a warning says that it was luck.
"""

import torch
from planted import between_layers
from torch import Tensor, nn

SMALL = 8


def doubled(x: Tensor) -> Tensor:
    return x + x


class FastPath(nn.Module):
    def __init__(self, always: bool) -> None:
        super().__init__()
        self.always = always
        self.fast = torch.compile(doubled, backend="eager")

    def forward(self, x: Tensor) -> Tensor:
        if self.always or (len(x) <= SMALL and torch.cuda.is_current_stream_capturing()):
            return self.fast(x)
        return doubled(x)


def faulty():
    return between_layers(FastPath(always=False))


def healthy():
    return between_layers(FastPath(always=True))
