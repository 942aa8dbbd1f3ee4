"""S8: a cache for one size is overwritten by the next size's. Healthy: one entry a size.

The cache is an object of its own that the module calls, as kernels' workspaces are.
"""

import torch
from planted import WIDTH, between_layers
from torch import Tensor, nn

MOST_TOKENS = 64


def write_table(memory: Tensor, num_rows: int) -> Tensor:
    """Write a factor for each column, repeated for all rows, column by column; return it as rows."""
    columns = memory[: WIDTH * num_rows].view(WIDTH, num_rows)
    columns.copy_(torch.linspace(1, 2, WIDTH, device=memory.device).unsqueeze(1).expand(WIDTH, num_rows))
    return columns.t()


class OneEntry:
    """Keeps the table of the size that was last met, in one memory for all."""

    def __init__(self) -> None:
        self.memory: Tensor | None = None
        self.num_rows = 0

    def __call__(self, num_rows: int, device: torch.device) -> Tensor:
        if self.memory is None:
            self.memory = torch.zeros(MOST_TOKENS * WIDTH, device=device)
        if num_rows != self.num_rows:
            self.num_rows = num_rows
            write_table(self.memory, num_rows)
        return self.memory[: WIDTH * num_rows].view(WIDTH, num_rows).t()


class OneEntryPerSize:
    def __init__(self) -> None:
        self.tables: dict[int, Tensor] = {}

    def __call__(self, num_rows: int, device: torch.device) -> Tensor:
        if num_rows not in self.tables:
            memory = torch.zeros(MOST_TOKENS * WIDTH, device=device)
            self.tables[num_rows] = write_table(memory, num_rows)
        return self.tables[num_rows]


class Scales(nn.Module):
    def __init__(self, cache: OneEntry | OneEntryPerSize) -> None:
        super().__init__()
        self.cache = cache

    def forward(self, x: Tensor) -> Tensor:
        return x * self.cache(len(x), x.device)


def faulty():
    return between_layers(Scales(OneEntry()))


def healthy():
    return between_layers(Scales(OneEntryPerSize()))
