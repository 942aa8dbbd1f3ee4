"""S14: a part is computed on another thread, whose current stream is another one. Healthy: on the same thread."""

from concurrent.futures import ThreadPoolExecutor

import torch
from planted import between_layers
from torch import Tensor, nn


class Helper(nn.Module):
    def __init__(self, in_thread: bool) -> None:
        super().__init__()
        self.in_thread = in_thread

    def forward(self, x: Tensor) -> Tensor:
        if not self.in_thread:
            return x + self.compute(x)
        with ThreadPoolExecutor(max_workers=1) as workers:
            return x + workers.submit(self.compute, x).result()

    @torch.inference_mode()
    def compute(self, x: Tensor) -> Tensor:
        return x.tanh()


def faulty():
    return between_layers(Helper(in_thread=True))


def healthy():
    return between_layers(Helper(in_thread=False))
