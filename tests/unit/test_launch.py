"""Which rank is named, of those that ended; whole runs are in `tests/distributed`."""

from __future__ import annotations

import signal
import sys
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from bcg import collectives
from bcg.distributed.failure import Failure
from bcg.distributed.launch import _rank_failed
from bcg.distributed.watch import _is_in_torch


def ended(code: int, told: Failure | None = None) -> Any:
    message = None if told is None else {"bcg": msgspec.to_builtins(told)}
    return SimpleNamespace(exitcode=code, message=message)


WAITED = Failure(0, "has waited 15 s in torch since the survey", is_own=False)


def frame_of(path: str) -> Any:
    scope: dict[str, Any] = {"sys": sys}
    exec(compile("frame = sys._getframe()", path, "exec"), scope)
    return scope["frame"]


def test_a_rank_that_waits_in_a_collective_is_not_the_one_that_stands_still() -> None:
    assert _is_in_torch(frame_of(collectives.__file__))
    assert not _is_in_torch(frame_of("/home/me/model.py"))


def test_a_rank_that_was_ended_from_outside_says_so() -> None:
    failures = {1: ended(-signal.SIGTERM), 0: ended(-signal.SIGTERM)}
    assert _rank_failed("bcg-0", 2, failures).message.endswith("was ended by SIGTERM, and no other rank had failed")


def test_a_rank_that_was_killed_by_itself_is_named_as_such() -> None:
    failures = {1: ended(-signal.SIGKILL), 0: ended(-signal.SIGTERM)}
    assert _rank_failed("bcg-0", 2, failures).message == "rank 1: was killed by SIGKILL"


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_rank_that_could_not_be_asked_to_end_stood_still(order: tuple[int, int]) -> None:
    found = {0: ended(1, WAITED), 1: ended(-signal.SIGKILL)}
    failure = _rank_failed("bcg-0", 2, {rank: found[rank] for rank in order})
    assert failure.message.startswith("rank 1: stood still and was ended; rank 0 has waited 15 s in torch")


def test_a_rank_that_aborted_is_named_by_its_signal() -> None:
    found = {1: ended(-signal.SIGABRT), 0: ended(-signal.SIGTERM)}
    assert _rank_failed("bcg-0", 2, found).message == "rank 1: was killed by SIGABRT"
