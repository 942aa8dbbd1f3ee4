"""S4: an input is rebound instead of copied into its static buffer. Healthy: it is copied."""

import torch
from planted import WIDTH, between_layers
from torch import Tensor, nn

from bcg import current_forward_context, eager_on_graph


class Rebinds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scales = torch.ones(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        self.prepare(x)
        return x * self.scales

    @eager_on_graph
    def prepare(self, x: Tensor) -> None:
        longest = current_forward_context().max_length
        self.scales = torch.full((WIDTH,), 1 / longest, device=x.device)


class Copies(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scales", torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        self.prepare(x)
        return x * self.scales

    @eager_on_graph
    def prepare(self, x: Tensor) -> None:
        longest = current_forward_context().max_length
        self.scales.copy_(torch.full((WIDTH,), 1 / longest, device=x.device))


def faulty():
    return between_layers(Rebinds())


def healthy():
    return between_layers(Copies())
