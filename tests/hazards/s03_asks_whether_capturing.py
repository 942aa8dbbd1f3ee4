"""S3: the forward asks whether it is being captured, and computes something else then. Healthy: it doesn't ask."""

from planted import between_layers
from torch import Tensor, nn

from bcg import current_capture


class TakesShortCut(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.softmax(-1) if current_capture() is None else x.relu()


class TakesNoShortCut(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.softmax(-1)


def faulty():
    return between_layers(TakesShortCut())


def healthy():
    return between_layers(TakesNoShortCut())
