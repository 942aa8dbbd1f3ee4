"""L11: the first call of a library, which makes its handle, is in the capture. Healthy: the warm-up calls it too."""

import torch
from planted import WIDTH, between_layers
from torch import Tensor, nn


class Factors(nn.Module):
    def __init__(self, always: bool) -> None:
        super().__init__()
        self.always = always
        self.register_buffer("matrix", torch.eye(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        if self.always or torch.cuda.is_current_stream_capturing():
            return x @ torch.linalg.cholesky_ex(self.matrix).L
        return x @ self.matrix


def faulty():
    return between_layers(Factors(always=False))


def healthy():
    return between_layers(Factors(always=True))
