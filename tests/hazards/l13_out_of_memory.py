"""L13: memory runs out at the largest size. Healthy: less is asked for.

The bucket is reported, and the smaller ones are captured all the same.
"""

import torch
from planted import between_layers
from torch import Tensor, nn

MOST_TOKENS = 20


class Hungry(nn.Module):
    def __init__(self, most_tokens: int) -> None:
        super().__init__()
        self.most_tokens = most_tokens

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.most_tokens:
            raise torch.OutOfMemoryError("out of memory: tried to allocate a table of all pairs of tokens")
        return x + 1


def faulty():
    return between_layers(Hungry(MOST_TOKENS))


def healthy():
    return between_layers(Hungry(10**9))
