"""L7: a helper thread asks whether an event is done, as a pinning data loader does. Healthy: it is asked before."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import torch
from planted import between_layers
from torch import Tensor, nn


class Watched(nn.Module):
    def __init__(self, in_forward: bool) -> None:
        super().__init__()
        self.in_forward = in_forward
        self.uploaded = torch.cuda.current_stream().record_event()
        self.uploaded.synchronize()

    def forward(self, x: Tensor) -> Tensor:
        if self.in_forward:
            with ThreadPoolExecutor(max_workers=1) as workers:
                workers.submit(self.watch).result()
        return x + 1

    def watch(self) -> None:
        with suppress(RuntimeError):
            self.uploaded.query()


def faulty():
    return between_layers(Watched(in_forward=True))


def healthy():
    return between_layers(Watched(in_forward=False))
