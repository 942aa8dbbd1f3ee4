"""L7: another thread asks for the state of an event, as a pinning data loader does. Healthy: it doesn't."""

import threading

import torch
from planted import between_layers
from torch import Tensor, nn


class Loader(nn.Module):
    def __init__(self, queries: bool) -> None:
        super().__init__()
        self.queries = queries
        self.event = torch.cuda.Event()
        self.event.record()
        torch.cuda.synchronize()

    def forward(self, x: Tensor) -> Tensor:
        thread = threading.Thread(target=self._look, name="pinning loader")
        thread.start()
        thread.join()
        return x + 1

    def _look(self) -> None:
        if self.queries:
            try:
                self.event.query()
            except RuntimeError:
                return


def faulty():
    return between_layers(Loader(queries=True))


def healthy():
    return between_layers(Loader(queries=False))
