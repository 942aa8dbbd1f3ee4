"""S14: a part is computed on another thread, whose current stream is another one. Healthy: on the same thread.

Eager waits for the device before and after, so it is right whatever the two streams are; a stream that is being
captured can't be waited for, and the part is missing from the graph.
"""

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
        waits = x.is_cuda and not torch.cuda.is_current_stream_capturing()
        if waits:
            torch.cuda.synchronize()
        with ThreadPoolExecutor(max_workers=1) as workers:
            part = workers.submit(self.compute, x).result()
        if waits:
            torch.cuda.synchronize()
        return x + part

    @torch.inference_mode()
    def compute(self, x: Tensor) -> Tensor:
        return x.tanh()


def faulty():
    return between_layers(Helper(in_thread=True))


def healthy():
    return between_layers(Helper(in_thread=False))
