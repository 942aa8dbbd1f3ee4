"""L2: pinned host memory is allocated in the forward. Healthy: once, before it."""

import torch
from planted import WIDTH, between_layers
from torch import Tensor, nn


class Pins(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        ones = torch.ones(WIDTH, pin_memory=True)
        return x + ones.to(x.device, non_blocking=True)


class PinsBefore(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ones = torch.ones(WIDTH, pin_memory=True)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.ones.to(x.device, non_blocking=True)


def faulty():
    return between_layers(Pins())


def healthy():
    return between_layers(PinsBefore())
