"""What torch's launcher tells the processes that it starts; no torch."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

RUN_PREFIX = "bcg-"
"""Beginning of the ids of runs that bcg started itself: there the launching process tells failures, not the ranks."""

DEFAULT_TIMEOUT_S = 600.0
"""Seconds after which a rank that makes no progress ends the run."""

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Member:
    """This process as one rank of a run.

    Attributes:
        rank: Among all.
        size: Number of ranks.
        local_rank: On this machine; also the index of its GPU.
        local_size: Number of ranks on this machine.
        run_id: The same for all ranks of a run.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    run_id: str

    @property
    def is_started_by_bcg(self) -> bool:
        return self.run_id.startswith(RUN_PREFIX)

    @property
    def log(self) -> Path:
        """The file that takes the output of a rank other than 0."""
        return log_path(self.run_id, self.rank)


def this_member(variables: Mapping[str, str] = os.environ) -> Member | None:
    """Return this process's place in a run; None where torch's launcher did not start it."""
    if not all(name in variables for name in _VARIABLES):
        return None
    rank, size, local_rank, local_size = (int(variables[name]) for name in _VARIABLES[:4])
    return Member(rank, size, local_rank, local_size, variables.get("TORCHELASTIC_RUN_ID", "none"))


def log_path(run_id: str, rank: int) -> Path:
    """Return the file that takes the output of a rank other than 0."""
    return Path(tempfile.gettempdir()) / f"bcg-ranks-{run_id}" / f"rank-{rank}.log"
