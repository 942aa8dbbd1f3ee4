"""One command as several processes: ``--tp N`` starts them, ``torchrun`` has them started; rank 0 talks.

What another rank prints goes to its log. An error is told once: by the process that the user started where that was
bcg, by the rank itself under ``torchrun``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from bcg.distributed.failure import Failure, failure_of, write_failure
from bcg.distributed.member import Member, this_member
from bcg.errors import UsageError
from bcg_cli import console

if TYPE_CHECKING:
    import torch

    from bcg.distributed.world import World


@dataclass
class _Process:
    """This process as a rank: its world once it has joined, and the terminal that its log hides."""

    world: World | None = None
    terminal: TextIO | None = None


_process = _Process()


@dataclass(frozen=True)
class Ranks:
    """What the command line says about processes.

    Attributes:
        tp: Number of processes to start, or that ``torchrun`` is expected to have started.
        ep: Whether experts are sharded whole.
        timeout_s: After which a rank without progress ends the run.
    """

    tp: int | None
    ep: bool
    timeout_s: float

    def __post_init__(self) -> None:
        if self.ep and self.tp is None and this_member() is None:
            raise UsageError("--ep shards experts over processes", hint="say over how many, with --tp N")

    @property
    def size(self) -> int | None:
        """Number of processes that the model is sharded over; None where it is not."""
        member = this_member()
        return self.tp if member is None else member.size

    def start(self, words: Sequence[str]) -> bool:
        """Run this very command in `tp` processes, if that is what to do here; return whether it was done.

        Raises:
            UsageError: The options contradict each other, or the launcher.
            BcgError: A rank failed.
        """
        member = this_member()
        if member is not None:
            if self.tp not in (None, member.size):
                raise UsageError(
                    f"--tp {self.tp} in a run of {member.size} ranks",
                    hint="leave --tp away under torchrun, or give it the number of ranks",
                )
            return False
        if self.tp is None:
            return False
        from bcg.distributed.launch import launch

        launch(self.tp, "bcg_cli", words)
        return True

    @contextmanager
    def joined(self, device: torch.device) -> Iterator[World | None]:
        """Be a rank inside the ``with`` block, where this process is one; see `bcg.distributed.rank.joined`."""
        from bcg.distributed.rank import joined

        with joined(device, self.timeout_s, _end) as world:
            _process.world = world
            yield world
        _process.world = None


def prepare() -> None:
    """Send what this process prints to its log, if it is a rank other than 0."""
    member = this_member()
    if member is None or member.rank == 0 or _process.terminal is not None:
        return
    member.log.parent.mkdir(parents=True, exist_ok=True)
    _process.terminal = os.fdopen(os.dup(2), "w")
    with member.log.open("w") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)


def is_rank() -> bool:
    """Tell whether this process is one rank of a run."""
    return this_member() is not None


def talks(world: World | None) -> bool:
    """Tell whether this process prints and writes."""
    return world is None or world.rank == 0


def explain(error: Exception, message: str, hint: str | None, exit_code: int) -> None:
    """Tell a rank's error: to the launcher, the other ranks, its log and, where it is the first, the terminal.

    A rank that has joined its run ends here: destroying communicators whose peers are gone may hang.
    """
    member = this_member()
    assert member is not None
    _tell(member, failure_of(error, member.rank, message, hint, exit_code))
    if _process.world is not None:
        _leave(exit_code)


def _end(failure: Failure) -> None:
    member = this_member()
    assert member is not None
    _tell(member, failure)
    _leave(failure.exit_code)


def _tell(member: Member, failure: Failure) -> None:
    write_failure(failure)
    if member.rank != 0:
        console.error(failure.message, failure.hint)
    is_first = member.rank == 0
    if _process.world is not None:
        try:
            is_first = _process.world.fail(failure) and failure.rank == member.rank
        except RuntimeError as error:
            console.note(f"the launcher's store is gone: {error}")
    if is_first and not member.is_started_by_bcg:
        shown = failure.for_user(member.run_id)
        with console.on_terminal(_process.terminal):
            console.error(shown.message, shown.hint)


def _leave(exit_code: int) -> None:
    for stream in (sys.stdout, sys.stderr, _process.terminal):
        if stream is not None:
            stream.flush()
    os._exit(exit_code)
