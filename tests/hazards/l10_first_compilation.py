"""L10: a function is compiled for a shape when it meets it again. Healthy: at the first time.

A shape's first time is its warm-up, so the second one is inside the capture: as with autotuners that wait until a
shape is common.
"""

import torch
from planted import between_layers
from torch import Tensor, nn

_met: set[int] = set()


def gelu(x: Tensor) -> Tensor:
    return torch.nn.functional.gelu(x * 1.5) + 1


class Compiles(nn.Module):
    def __init__(self, late: bool) -> None:
        super().__init__()
        self.late = late
        self.compiled = torch.compile(gelu, dynamic=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.late and len(x) not in _met:
            _met.add(len(x))
            return gelu(x)
        return self.compiled(x)


def faulty():
    return between_layers(Compiles(late=True))


def healthy():
    return between_layers(Compiles(late=False))
