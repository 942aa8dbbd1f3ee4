"""L1: the host reads a device value. Healthy: the value stays on the device."""

from planted import between_layers
from torch import Tensor, nn


class ReadsNorm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / (1 + x[0].norm().item())


class KeepsNorm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / (1 + x.norm(dim=-1, keepdim=True))


def faulty():
    return between_layers(ReadsNorm())


def healthy():
    return between_layers(KeepsNorm())
