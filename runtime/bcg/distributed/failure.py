"""How a rank's own error gets out of a run: to the other ranks, and to the launcher.

torch's elastic agent names a file for each rank's error and reads them all when a rank has failed; the record holds
the time, so the first one is known. `launch.py` reads it, and so does `torchrun`.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import msgspec

from bcg.distributed.member import log_path
from bcg.errors import BcgError

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"


class Failure(msgspec.Struct, frozen=True):
    """Why a rank ended the run.

    Attributes:
        rank: Which.
        message: One line.
        hint: What to do next.
        exit_code: Of the whole run.
        is_own: Whether the cause lies in this rank, and not in one that it waited for.
    """

    rank: int
    message: str
    hint: str | None = None
    exit_code: int = 1
    is_own: bool = True

    def for_user(self, run_id: str) -> Failure:
        """Return it with the rank in its message and the rank's log in its hint.

        Wrong usage, and checks that failed, are the same on all ranks.
        """
        log = log_path(run_id, self.rank)
        hints = [self.hint, f"the log of rank {self.rank} is {log}" if log.is_file() else None]
        message = f"rank {self.rank}: {self.message}" if self.exit_code == 1 else self.message
        return msgspec.structs.replace(self, message=message, hint="; ".join(filter(None, hints)) or None)

    def encode(self) -> str:
        return msgspec.json.encode(self).decode()

    @classmethod
    def decode(cls, text: str) -> Failure:
        return msgspec.json.decode(text, type=cls)


class PeerLost(BcgError):
    """Another rank failed, is gone, or does not come: the cause lies there, not here.

    Args:
        message: One line.
        hint: What to do next.
        failure: What the other rank told, if it could.
    """

    def __init__(self, message: str, *, hint: str | None = None, failure: Failure | None = None) -> None:
        super().__init__(message, hint=hint)
        self.failure = failure


def failure_of(error: BaseException, rank: int, message: str, hint: str | None, exit_code: int) -> Failure:
    """Describe why a rank ends: its own error, or that of the rank which it lost.

    Args:
        error: What ended it, with its causes.
        rank: Of this process.
        message: What to say of `error`.
        hint: What to do next.
        exit_code: Of the process.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, PeerLost) and cause.failure is not None:
            return cause.failure
        if isinstance(cause, PeerLost) or _is_of_backend(cause):
            return Failure(rank, message, hint, exit_code, is_own=False)
        cause = cause.__cause__
    return Failure(rank, message, hint, exit_code)


def _is_of_backend(error: BaseException) -> bool:
    """Tell whether a communication backend says that it lost a peer."""
    return isinstance(error, RuntimeError) and any(name in str(error) for name in ("gloo", "NCCL", "TCPStore"))


def write_failure(failure: Failure) -> None:
    """Leave a rank's failure where torch's elastic agent looks for it."""
    path = os.environ.get(ERROR_FILE)
    if path is None:
        return
    record: dict[str, Any] = {
        "message": {
            "message": failure.message,
            "extraInfo": {"py_callstack": "", "timestamp": str(int(time.time()))},
            "bcg": msgspec.to_builtins(failure),
        }
    }
    Path(path).write_text(json.dumps(record))


def read_failure(record: Any) -> Failure | None:
    """Read what `write_failure` wrote; None if it was somebody else."""
    message = record.get("message") if isinstance(record, dict) else None
    told = message.get("bcg") if isinstance(message, dict) else None
    return None if told is None else msgspec.convert(told, type=Failure)
