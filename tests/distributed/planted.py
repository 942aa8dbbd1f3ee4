"""A model that shards itself over the ranks, and what may go wrong on one of them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bcg import break_graph

NUM_TOKENS = 32
"""The bucket in which rank 1 goes wrong; the ones for 64 tokens are fine on every rank."""


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(dist.get_rank())
        self.linear = nn.Linear(8, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        part = self.linear(x)
        dist.all_reduce(part)
        return x + part


class Model(nn.Module):
    def __init__(self, fault: Callable[[int], None], num_layers: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(32, 8)
        self.layers = nn.ModuleList(Layer() for _ in range(num_layers))
        self.fault = fault

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.layers[0](self.embedding(input_ids))
        if dist.get_rank() == 1:
            self.fault(input_ids.shape[1])
        return self.layers[1](x) if len(self.layers) > 1 else x


def fine() -> nn.Module:
    return Model(lambda _: None)


def lacks_a_layer() -> nn.Module:
    return Model(lambda _: None, num_layers=2 if dist.get_rank() == 0 else 1)


def breaks_once_more() -> nn.Module:
    return Model(lambda _: break_graph())


def _in_the_second_bucket(fault: Callable[[], None]) -> nn.Module:
    return Model(lambda tokens: fault() if tokens == NUM_TOKENS else None)


def raises() -> nn.Module:
    def fault() -> None:
        raise ValueError("planted on rank 1")

    return _in_the_second_bucket(fault)


def runs_out_of_memory() -> nn.Module:
    def fault() -> None:
        raise torch.OutOfMemoryError("planted on rank 1")

    return _in_the_second_bucket(fault)


def is_killed() -> nn.Module:
    return _in_the_second_bucket(lambda: os.kill(os.getpid(), signal.SIGKILL))


def sleeps() -> nn.Module:
    return _in_the_second_bucket(lambda: time.sleep(600))


def leaves() -> nn.Module:
    return _in_the_second_bucket(lambda: os._exit(0))
