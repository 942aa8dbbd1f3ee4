"""S15: the function that needs the live requests was captured, for want of a decorator. Healthy: it has it."""

import itertools

from planted import between_layers
from torch import Tensor, nn

from bcg import current_forward_context, eager_on_graph


def center_requests(x: Tensor) -> Tensor:
    """Subtract from each request's rows their mean."""
    offsets = current_forward_context().offsets()
    centered = x.clone()
    for start, end in itertools.pairwise(offsets):
        centered[start:end] -= x[start:end].mean(0)
    return centered


class Centered(nn.Module):
    def __init__(self, has_break: bool) -> None:
        super().__init__()
        self.center = eager_on_graph(center_requests, enable=has_break)

    def forward(self, x: Tensor) -> Tensor:
        return self.center(x) + 1


def faulty():
    return between_layers(Centered(has_break=False))


def healthy():
    return between_layers(Centered(has_break=True))
