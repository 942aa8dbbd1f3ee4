"""L8: a random generator that the graph does not know. Healthy: the numbers are drawn once, before."""

import torch
from planted import WIDTH, between_layers
from torch import Tensor, nn


class OwnNoise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator("cuda").manual_seed(1)

    def forward(self, x: Tensor) -> Tensor:
        return x + 1e-5 * torch.rand(x.shape, device=x.device, generator=self.generator)


class FixedNoise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("noise", 1e-5 * torch.rand(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.noise


def faulty():
    return between_layers(OwnNoise())


def healthy():
    return between_layers(FixedNoise())
