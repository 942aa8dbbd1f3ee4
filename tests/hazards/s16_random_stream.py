"""S16: every replay draws the same random number. Healthy: the numbers are drawn on the device.

The noise is small beside the activations, so that the model still separates requests.
"""

import random

import torch
from planted import between_layers
from torch import Tensor, nn


class HostNoise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1e-3 * random.random()


class DeviceNoise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1e-5 * torch.rand(x.shape[-1], device=x.device)


def faulty():
    return between_layers(HostNoise())


def healthy():
    return between_layers(DeviceNoise())
