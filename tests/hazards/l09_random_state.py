"""L9: the state of the random generator is read in the forward. Healthy: once, before."""

import torch
from planted import between_layers
from torch import Tensor, nn


class ReadsSeed(nn.Module):
    def __init__(self, in_forward: bool) -> None:
        super().__init__()
        self.in_forward = in_forward
        self.seed = torch.cuda.initial_seed()

    def forward(self, x: Tensor) -> Tensor:
        seed = torch.cuda.initial_seed() if self.in_forward else self.seed
        return x + seed % 2


def faulty():
    return between_layers(ReadsSeed(in_forward=True))


def healthy():
    return between_layers(ReadsSeed(in_forward=False))
