"""S11: a tensor of the graph's pool is kept, and the next replay overwrites it. Healthy: a clone is kept."""

import torch
from planted import WIDTH, between_layers
from torch import Tensor, nn

from bcg import eager_on_graph


class Remembers(nn.Module):
    def __init__(self, clones: bool) -> None:
        super().__init__()
        self.clones = clones
        self.last = torch.zeros(1, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        self.remember(x)
        return x + 1

    @eager_on_graph
    def remember(self, x: Tensor) -> None:
        self.last = x.clone() if self.clones else x


def faulty():
    return between_layers(Remembers(clones=False))


def healthy():
    return between_layers(Remembers(clones=True))
