"""This process as one rank of a run, for as long as a block lasts: joined, watched, and taken apart at its end."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from bcg.distributed.failure import Failure
from bcg.distributed.member import this_member
from bcg.distributed.watch import Watch
from bcg.distributed.world import World


@contextmanager
def joined(
    device: torch.device, timeout_s: float, end: Callable[[Failure], None], name: str = "bcg"
) -> Iterator[World | None]:
    """Be a rank inside the ``with`` block, where torch's launcher has started this process; else there is no world.

    Graphs that hold collectives must be gone when the block ends well: then the communicators are torn down. After an
    error they stay, and so does the watch: destroying communicators whose peers are gone may hang.

    Args:
        device: Of which kind this rank's own is; see `World.join`.
        timeout_s: After which a rank without progress ends the run.
        end: Ends the process because of a failure; called on the watching thread.
        name: Of the process group, where a run has several.

    Raises:
        UsageError: There is no GPU for this rank.
    """
    member = this_member()
    if member is None:
        yield None
        return
    world = World.join(member, device, timeout_s, name)
    watch = Watch(world, end)
    watch.start()
    yield world
    gc.collect()  # graphs that nobody holds any more
    world.close()
    watch.stop()
