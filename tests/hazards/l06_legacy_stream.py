"""L6: a part runs on the legacy default stream, forked and joined. Healthy: on a stream of its own."""

import torch
from planted import between_layers
from torch import Tensor, nn


class Overlaps(nn.Module):
    def __init__(self, side: torch.cuda.Stream) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        current = torch.cuda.current_stream()
        self.side.wait_stream(current)
        with torch.cuda.stream(self.side):
            doubled = x * 2
        current.wait_stream(self.side)
        return x + doubled


def faulty():
    return between_layers(Overlaps(torch.cuda.default_stream()))


def healthy():
    return between_layers(Overlaps(torch.cuda.Stream()))
