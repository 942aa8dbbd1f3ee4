"""S12: the forward counts on the host, and a replay doesn't. Healthy: it counts on the device."""

import torch
from planted import between_layers
from torch import Tensor, nn


class CountsOnHost(nn.Module):
    num_calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.num_calls += 1
        return x + 1


class CountsOnDevice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("num_calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        self.num_calls.add_(1)
        return x + 1


def faulty():
    return between_layers(CountsOnHost())


def healthy():
    return between_layers(CountsOnDevice())
