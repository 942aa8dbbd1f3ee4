"""S2: a Python number of the capture's batch is baked into a kernel's arguments. Healthy: it stays on the device."""

import torch
from planted import between_layers
from torch import Tensor, nn

from bcg import current_forward_context, eager_on_graph


class ScalesByNumber(nn.Module):
    longest = 1

    def forward(self, x: Tensor) -> Tensor:
        self.look()
        return x * (1 / self.longest)

    @eager_on_graph
    def look(self) -> None:
        self.longest = current_forward_context().max_length


class ScalesByTensor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("longest", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        self.look()
        return x / self.longest

    @eager_on_graph
    def look(self) -> None:
        self.longest.fill_(current_forward_context().max_length)


def faulty():
    return between_layers(ScalesByNumber())


def healthy():
    return between_layers(ScalesByTensor())
