"""Ranks that meet, exchange and fail, as threads over a store in memory."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist

from bcg.alignment import Dropped
from bcg.distributed import watch as watch_module
from bcg.distributed import world as world_module
from bcg.distributed.failure import Failure, PeerLost, failure_of, read_failure, write_failure
from bcg.distributed.member import Member, this_member
from bcg.distributed.watch import Watch
from bcg.distributed.world import World
from bcg.errors import CaptureError

LAUNCHED = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_RUN_ID": "one",
}


def run_ranks(*works: Callable[[World], Any], timeout_s: float = 60.0) -> list[Any]:
    """Run each rank's work on a thread of its own; return what each returned or raised."""
    store = dist.HashStore()
    results: list[Any] = [None] * len(works)

    def work(rank: int) -> None:
        member = Member(rank, len(works), rank, len(works), "test")
        world = World(member, torch.device("cpu"), timeout_s, dist.PrefixStore("test", store))
        try:
            results[rank] = works[rank](world)
        except Exception as error:  # noqa: BLE001 - what a rank raises is what is tested
            results[rank] = error

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_a_process_knows_its_place_by_what_torchs_launcher_says() -> None:
    assert this_member(LAUNCHED) == Member(rank=3, size=4, local_rank=1, local_size=2, run_id="one")
    assert this_member({**LAUNCHED, "TORCHELASTIC_RUN_ID": "bcg-1"}).is_started_by_bcg  # type: ignore[union-attr]
    assert this_member({"RANK": "3", "WORLD_SIZE": "4"}) is None


def test_ranks_exchange_what_they_have() -> None:
    def work(world: World) -> list[Any]:
        world.begin("a bucket")
        world.meet("step 1")
        return world.exchange({"rank": world.rank}) + world.exchange(None)

    assert run_ranks(work, work, work) == [[{"rank": 0}, {"rank": 1}, {"rank": 2}, None, None, None]] * 3


def test_the_rank_that_differs_from_most_is_named_with_both_places() -> None:
    def work(world: World) -> None:
        world.begin("the bucket")
        world.meet("another place" if world.rank == 1 else "a place")

    for error in run_ranks(work, work, work):
        assert isinstance(error, CaptureError)
        assert error.hazard == "S19"
        assert error.message == "ranks differ (hazard S19): rank 1 is at 'another place', rank 0 at 'a place'"


def test_a_rank_that_begins_something_else_is_found_as_well() -> None:
    errors = run_ranks(lambda world: world.begin("64 tokens"), lambda world: world.begin("32 tokens"))
    assert all("rank 1 is at '32 tokens: the beginning'" in str(error) for error in errors)


def test_a_dropped_bucket_is_left_by_all_and_the_next_one_is_met_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by a rank that hears of it before it has seen that all had begun: found on a machine under load."""
    monkeypatch.setattr(world_module, "_POLL_S", (0.2, 0.2))

    def drops(world: World) -> list[Any]:
        time.sleep(0.05)
        world.begin("64")
        world.drop("no memory")
        return again(world)

    def waits(world: World) -> list[Any]:
        world.begin("64")
        with pytest.raises(Dropped, match="^rank 0: no memory$"):
            world.meet("somewhere")
        return again(world)

    def again(world: World) -> list[Any]:
        answers = world.exchange(world.rank)
        world.begin("32")
        world.meet("step 1")
        return answers

    assert run_ranks(drops, waits) == [[0, 1], [0, 1]]


def test_a_rank_that_waits_learns_why_another_one_failed() -> None:
    def fails(world: World) -> bool:
        world.begin("64")
        return world.fail(Failure(0, "out of luck", "try again"))

    def waits(world: World) -> None:
        world.begin("64")
        world.meet("somewhere")

    first, error = run_ranks(fails, waits)
    assert first is True
    assert isinstance(error, PeerLost)
    assert str(error) == "rank 0 failed: out of luck"
    assert failure_of(error, 1, "other", None, 1) == Failure(0, "out of luck", "try again")


def test_a_rank_that_does_not_come_is_named_with_its_last_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world_module, "GRACE_S", 0.0)
    monkeypatch.setattr(world_module, "_LOOK_S", 0.05)

    def stays_away(world: World) -> None:
        world.begin("64")
        world.at("loading")

    def waits(world: World) -> None:
        world.begin("64")
        world.meet("the end")

    _, error = run_ranks(stays_away, waits, timeout_s=0.2)
    assert isinstance(error, PeerLost)
    assert str(error) == "waited more than 0.2 s at the end of 64: rank 0 was last at loading"


@pytest.mark.parametrize(("asked", "num_answers"), [("failure", 0), ("failure", 1), ("tick", 0)])
def test_a_watch_that_loses_the_store_says_so_whatever_it_asks(
    monkeypatch: pytest.MonkeyPatch, asked: str, num_answers: int
) -> None:
    world = World(Member(0, 2, 0, 2, "test"), torch.device("cpu"), 2.0, dist.HashStore())
    answers = iter([None] * num_answers)

    def ask() -> None:
        for answer in answers:
            return answer
        raise RuntimeError("Broken pipe\nand more")

    monkeypatch.setattr(world, asked, ask)
    ended: queue.Queue[Failure] = queue.Queue()
    watch = Watch(world, ended.put)
    watch.start()
    while ended.empty() and watch.is_alive():
        time.sleep(0.01)
    watch.join()
    assert ended.get_nowait() == Failure(0, "its launcher is gone: Broken pipe", is_own=False)


def test_the_cause_of_a_wrapped_error_says_whose_fault_it_is() -> None:
    def wrapped(cause: Exception) -> Exception:
        try:
            raise CaptureError("bucket") from cause
        except CaptureError as error:
            return error

    assert not failure_of(wrapped(PeerLost("gone")), 0, "bucket", None, 1).is_own
    assert not failure_of(RuntimeError("[gloo/transport] Connection closed by peer"), 0, "closed", None, 1).is_own
    assert failure_of(wrapped(ValueError("mine")), 0, "bucket", None, 1).is_own
    assert failure_of(ValueError("about NCCL"), 0, "mine", None, 1).is_own


def test_a_failure_is_left_where_torchs_launcher_looks_for_it(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

    path = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(path))
    failure = Failure(1, "broken", "mend it", 3)
    write_failure(failure)
    seen = ProcessFailure(local_rank=1, pid=1, exitcode=3, error_file=str(path))
    assert read_failure({"message": seen.message}) == failure
    assert read_failure({"message": "of somebody else"}) is None


def watched() -> tuple[World, Watch]:
    world = World(Member(0, 2, 0, 2, "test"), torch.device("cpu"), 2.0, dist.HashStore())
    return world, Watch(world, lambda failure: None)


def test_a_rank_that_waits_for_others_makes_no_progress() -> None:
    world, watch = watched()
    world.since, world.is_waiting = 0.0, True
    watch._count_python_as_progress()
    assert world.since == 0.0
    world.is_waiting, watch._position = False, None
    watch._count_python_as_progress()
    assert world.since > 0.0


def test_a_rank_that_waits_in_torch_leaves_the_other_time_to_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    world, watch = watched()
    monkeypatch.setattr(watch_module, "_is_in_torch", lambda frame: True)
    monkeypatch.setattr(watch_module, "_users_line", lambda frame: None)
    world.since = time.monotonic() - 2.0 - watch_module.GRACE_S / 2
    assert watch._stall() is None
    world.since -= watch_module.GRACE_S
    failure = watch._stall()
    assert failure is not None
    assert not failure.is_own


def test_a_ranks_own_failure_is_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    world, watch = watched()
    monkeypatch.setattr(watch_module, "GRACE_S", -1.0)
    world.fail(Failure(0, "mine"))
    assert watch._failure_of_another() is None


def test_a_rank_that_makes_progress_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world_module, "GRACE_S", 0.0)
    monkeypatch.setattr(world_module, "_LOOK_S", 0.05)

    def loads(world: World) -> list[Any]:
        for _ in range(10):  # half as often as the other looks
            time.sleep(0.1)
            world.tick()
        return world.exchange(world.rank)

    assert run_ranks(loads, lambda world: world.exchange(world.rank), timeout_s=0.4) == [[0, 1], [0, 1]]


def test_rank_0_is_named_where_it_is_the_one_that_differs() -> None:
    def work(world: World) -> None:
        world.begin("the bucket")
        world.meet("another place" if world.rank == 0 else "a place")

    for error in run_ranks(work, work, work):
        assert "rank 0 is at 'another place', rank 1 at 'a place'" in str(error)


def test_of_two_ranks_that_fail_one_is_the_first() -> None:
    assert sorted(run_ranks(*[lambda world: world.fail(Failure(world.rank, f"{world.rank}"))] * 2)) == [False, True]
