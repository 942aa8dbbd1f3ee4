"""L15: somebody's capture failed earlier in the process. Ruled out: the next one finds a clean state."""

from contextlib import suppress

import torch
from planted import between_layers
from torch import Tensor, nn


class Plus(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1


def faulty():
    x = torch.ones(4, device="cuda")
    with suppress(RuntimeError), torch.cuda.graph(torch.cuda.CUDAGraph()):
        (x + 1).sum().item()
    return between_layers(Plus())


def healthy():
    return between_layers(Plus())
