"""S13: warm-up and capture fill a cache that the first replay finds advanced. Healthy: the forward begins afresh.

The cache has a write position, on the device; each forward writes its rows after those of the last one.
"""

import torch
from planted import WIDTH, between_layers
from torch import Tensor, nn

MOST_ROWS = 512


class Cache(nn.Module):
    def __init__(self, begins_afresh: bool) -> None:
        super().__init__()
        self.begins_afresh = begins_afresh
        self.register_buffer("rows", torch.zeros(MOST_ROWS, WIDTH))
        self.register_buffer("length", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        if self.begins_afresh:
            self.length.zero_()
        places = (self.length + torch.arange(len(x), device=x.device)) % MOST_ROWS
        self.rows.index_copy_(0, places, x)
        self.length.add_(len(x))
        return self.rows[places] * 2


def faulty():
    return between_layers(Cache(begins_afresh=False))


def healthy():
    return between_layers(Cache(begins_afresh=True))
