"""L5: the forward waits for an event recorded before the capture. Healthy: it waits once, before the capture."""

import torch
from planted import WIDTH, between_layers
from torch import Tensor, nn


class WaitsForUpload(nn.Module):
    def __init__(self, waits_in_forward: bool) -> None:
        super().__init__()
        self.waits_in_forward = waits_in_forward
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            self.table = torch.ones(WIDTH, device="cuda")
        self.uploaded = side.record_event()
        torch.cuda.current_stream().wait_event(self.uploaded)

    def forward(self, x: Tensor) -> Tensor:
        if self.waits_in_forward:
            torch.cuda.current_stream().wait_event(self.uploaded)
        return x + self.table


def faulty():
    return between_layers(WaitsForUpload(waits_in_forward=True))


def healthy():
    return between_layers(WaitsForUpload(waits_in_forward=False))
