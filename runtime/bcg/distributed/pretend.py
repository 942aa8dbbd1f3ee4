"""A process group of which only this rank exists, for plans that are made from shapes alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch.distributed as dist


@contextlib.contextmanager
def pretended_ranks(size: int) -> Iterator[None]:
    """Be rank 0 of that many ranks inside the ``with`` block: collectives do nothing, and say what they would return.

    torch's own fake backend; it is kept among torch's testing tools.
    """
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=size, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()
