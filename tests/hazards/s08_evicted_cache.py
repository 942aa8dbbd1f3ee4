"""S8: a cache for one size is overwritten by the next size's. Healthy: one entry a size."""

import torch
from planted import WIDTH, between_layers
from torch import Tensor, nn

MOST_TOKENS = 64


def write_table(memory: Tensor, num_rows: int) -> Tensor:
    """Write a factor for each column, repeated for all rows, column by column; return it as rows."""
    columns = memory[: WIDTH * num_rows].view(WIDTH, num_rows)
    columns.copy_(torch.linspace(1, 2, WIDTH, device=memory.device).unsqueeze(1).expand(WIDTH, num_rows))
    return columns.t()


class OneEntry(nn.Module):
    """Keeps the table of the size that was last met."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("workspace", torch.zeros(MOST_TOKENS * WIDTH))
        self.num_rows = 0

    def forward(self, x: Tensor) -> Tensor:
        if len(x) != self.num_rows:
            self.num_rows = len(x)
            write_table(self.workspace, len(x))
        return x * self.workspace[: WIDTH * len(x)].view(WIDTH, len(x)).t()


class OneEntryPerSize(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tables: dict[int, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        if len(x) not in self.tables:
            self.tables[len(x)] = write_table(torch.empty(MOST_TOKENS * WIDTH, device=x.device), len(x))
        return x * self.tables[len(x)]


def faulty():
    return between_layers(OneEntry())


def healthy():
    return between_layers(OneEntryPerSize())
