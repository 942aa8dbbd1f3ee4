"""L9: the random generator is seeded anew in the forward. Healthy: once, before."""

import torch
from planted import between_layers
from torch import Tensor, nn


class Seeds(nn.Module):
    def __init__(self, in_forward: bool) -> None:
        super().__init__()
        self.in_forward = in_forward
        torch.cuda.seed()

    def forward(self, x: Tensor) -> Tensor:
        if self.in_forward:
            torch.cuda.seed()
        return x + 1


def faulty():
    return between_layers(Seeds(in_forward=True))


def healthy():
    return between_layers(Seeds(in_forward=False))
