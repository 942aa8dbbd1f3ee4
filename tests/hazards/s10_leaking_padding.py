"""S10: padding rows reach real ones through a norm over rows. Healthy: the norm is over columns."""

from planted import between_layers
from torch import Tensor, nn


class Centered(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(self.dim, keepdim=True)


def faulty():
    return between_layers(Centered(0))


def healthy():
    return between_layers(Centered(-1))
