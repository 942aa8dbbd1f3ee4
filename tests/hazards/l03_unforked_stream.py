"""L3: work on a side stream that was not forked from the current one. Healthy: it waits for the current one first."""

import torch
from planted import between_layers
from torch import Tensor, nn


class SideStream(nn.Module):
    def __init__(self, forks: bool) -> None:
        super().__init__()
        self.forks = forks
        self.side = torch.cuda.Stream()

    def forward(self, x: Tensor) -> Tensor:
        current = torch.cuda.current_stream()
        if self.forks:
            self.side.wait_stream(current)
        with torch.cuda.stream(self.side):
            doubled = x * 2
        current.wait_stream(self.side)
        return doubled + 1


def faulty():
    return between_layers(SideStream(forks=False))


def healthy():
    return between_layers(SideStream(forks=True))
