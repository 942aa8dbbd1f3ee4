"""A thread beside each rank's work: ends the process when the rank stands still, or when another one is gone.

The main thread of a rank may hang where no exception reaches it: in a collective that another rank never enters, or
in a wait for a GPU on which such a collective runs.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import torch

from bcg import collectives
from bcg.distributed.failure import Failure
from bcg.distributed.world import GRACE_S, World
from bcg.whereabouts import line_of

_TORCH = (str(Path(torch.__file__).parent), collectives.__file__)
"""Where a rank waits for others: inside torch, or where a collective is called."""


class Watch(threading.Thread):
    """Watches the thread that makes it.

    Args:
        world: Of this rank.
        end: Ends the process because of a failure; called on the watching thread.
    """

    def __init__(self, world: World, end: Callable[[Failure], None]) -> None:
        super().__init__(name="bcg rank watch", daemon=True)
        self._world = world
        self._end = end
        self._watched = threading.get_ident()
        self._stopped = threading.Event()
        self._position: tuple[int, int] | None = None
        self._gone_since: float | None = None

    def stop(self) -> None:
        """Stop watching; the work is done."""
        self._stopped.set()
        self.join()

    def run(self) -> None:
        pause = min(0.5, self._world.timeout_s / 10)
        while not self._stopped.wait(pause):
            try:
                self._count_python_as_progress()
                failure = self._stall() or self._failure_of_another()
            except (RuntimeError, OSError) as error:  # the store, which all of these ask, is the launcher's
                failure = self._of_others(f"its launcher is gone: {error}".splitlines()[0])
            if failure is not None and not self._stopped.is_set():
                self._end(failure)
                return

    def _count_python_as_progress(self) -> None:
        """Loading and compiling take long and note nothing, but a thread that moves on does not stand still."""
        frame = sys._current_frames().get(self._watched)
        position = None if frame is None else (id(frame), frame.f_lasti)
        if position != self._position and not self._world.is_waiting:
            self._world.tick()
        self._position = position

    def _stall(self) -> Failure | None:
        world = self._world
        stands_s = time.monotonic() - world.since
        if world.is_waiting or stands_s < world.timeout_s:
            return None
        frame = sys._current_frames().get(self._watched)
        line = _users_line(frame)
        where = f"{world.place}, {line}" if line else world.place
        if not _is_in_torch(frame):
            message = f"no progress for {world.timeout_s:g} s since {where}"
            return Failure(world.rank, message, hint="a larger --rank-timeout waits longer")
        if stands_s < world.timeout_s + GRACE_S:
            return None
        others = "; ".join(
            f"rank {rank} was last at {world.last_place(rank)}" for rank in range(world.size) if rank != world.rank
        )
        return self._of_others(f"has waited {world.timeout_s:g} s in torch since {where}; {others}")

    def _failure_of_another(self) -> Failure | None:
        other = self._world.failure()
        if other is None or other.rank == self._world.rank:
            return None
        self._gone_since = self._gone_since or time.monotonic()
        return other if time.monotonic() - self._gone_since > GRACE_S else None

    def _of_others(self, message: str) -> Failure:
        return Failure(self._world.rank, message, is_own=False)


def _is_in_torch(frame: FrameType | None) -> bool:
    return frame is not None and frame.f_code.co_filename.startswith(_TORCH)


def _users_line(frame: FrameType | None) -> str | None:
    while frame is not None and _is_in_torch(frame):
        frame = frame.f_back
    return None if frame is None else f"in {frame.f_code.co_name} ({line_of(frame)})"
