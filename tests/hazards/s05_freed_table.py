"""S5: a table that a graph reads is freed when the next size comes. Healthy: it is kept.

The tables are one to a number of tokens, in a cache of the file's own.
"""

import torch
from planted import WIDTH, between_layers
from torch import Tensor, nn


class Tables:
    def __init__(self, frees: bool) -> None:
        self.frees = frees
        self.by_size: dict[int, Tensor] = {}

    def __call__(self, num_rows: int, device: torch.device) -> Tensor:
        if num_rows not in self.by_size:
            if self.frees:
                for other in self.by_size.values():
                    other.untyped_storage().resize_(0)
                self.by_size.clear()
            self.by_size[num_rows] = torch.linspace(1, 2, WIDTH, device=device).repeat(num_rows, 1)
        return self.by_size[num_rows]


class Ramp(nn.Module):
    def __init__(self, tables: Tables) -> None:
        super().__init__()
        self.table = tables

    def forward(self, x: Tensor) -> Tensor:
        return x * self.table(len(x), x.device)


def faulty():
    return between_layers(Ramp(Tables(frees=True)))


def healthy():
    return between_layers(Ramp(Tables(frees=False)))
