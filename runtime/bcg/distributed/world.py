"""`World`: the ranks of one run as one of them sees it.

What ranks tell each other about progress and failures goes through the run's key-value store, which the launcher
holds, never through collectives: a rank that is gone or elsewhere can then be named, where a collective would hang.
"""

from __future__ import annotations

import os
import pickle
import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from bcg.alignment import Dropped
from bcg.distributed.failure import Failure, PeerLost
from bcg.distributed.member import DEFAULT_TIMEOUT_S, Member
from bcg.errors import CaptureError, UsageError

GRACE_S = 3.0
"""Seconds that a rank leaves to the one it waits for, to tell its own error first."""

_LOOK_S = 1.0
"""Seconds between two tellings of progress, and between two looks at it."""

_POLL_S = (0.0002, 0.05)
"""First and longest pause between two looks at the store."""


class World:
    """The ranks of a run, joined: an `Alignment`.

    Life: `join` makes the process group; `close` destroys it, after the graphs that hold its collectives are gone.

    Args:
        member: This process.
        device: Where its tensors live.
        timeout_s: How long to wait for a rank that makes no progress.
        store: Shared by all ranks.

    Attributes:
        place: Where this rank was last, in words.
        since: When that was (`time.monotonic`).
        is_waiting: Whether it waits for other ranks there.
    """

    def __init__(self, member: Member, device: torch.device, timeout_s: float, store: Store) -> None:
        self._member = member
        self.device = device
        self.timeout_s = timeout_s
        self.place, self.since, self.is_waiting = "the start", time.monotonic(), False
        self._store = store
        self._told_since = self.since
        self._attempt = self._meeting = self._exchange = 0
        self._begun = ""

    @property
    def rank(self) -> int:
        return self._member.rank

    @property
    def size(self) -> int:
        return self._member.size

    @classmethod
    def join(
        cls, member: Member, device: torch.device, timeout_s: float = DEFAULT_TIMEOUT_S, name: str = "bcg"
    ) -> World:
        """Join the run that the launcher prepared: NCCL where `device` is a GPU, gloo on the host.

        On the host the ranks of a machine share its cores. Several process groups of one run, such as those of the
        modes of a profile, have names of their own.

        Raises:
            UsageError: There is no GPU for this rank.
        """
        if device.type == "cuda":
            if member.local_rank >= torch.cuda.device_count():
                raise UsageError(
                    f"rank {member.rank} needs GPU {member.local_rank}, this machine has {torch.cuda.device_count()}",
                    hint="start as many ranks per machine as it has GPUs, or use --device cpu",
                )
            device = torch.device("cuda", member.local_rank)
            torch.cuda.set_device(device)
        else:
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // member.local_size))
        base, _, _ = next(rendezvous("env://", member.rank, member.size))
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=PrefixStore(f"{name}/collectives", base),
            rank=member.rank,
            world_size=member.size,
            # Stalls are found and named by `bcg.distributed.watch`; this is for what it can't see.
            timeout=timedelta(seconds=2 * timeout_s + 60),
            device_id=device if device.type == "cuda" else None,
        )
        return cls(member, device, timeout_s, PrefixStore(f"{name}/ranks", base.clone()))

    def close(self) -> None:
        """Wait for all ranks and destroy the process group; no graph that holds collectives may be left."""
        self.begin("the end")
        dist.destroy_process_group()

    def tick(self) -> None:
        self.since = time.monotonic()
        if self.since - self._told_since > _LOOK_S:
            self._told_since = self.since
            self._store.set(f"progress/{self.rank}", str(self.since))

    def at(self, place: str) -> None:
        """Note progress, and where: a rank that notes none for `timeout_s` ends the run."""
        self.place = place
        self.tick()
        self._store.set(f"at/{self.rank}", place)

    def begin(self, what: str) -> None:
        self._attempt, self._meeting, self._begun = self._attempt + 1, 0, what
        self.meet("the beginning")

    def meet(self, place: str) -> None:
        self._meeting += 1
        key = f"meet/{self._attempt}/{self._meeting}"
        self.at(f"{place} of {self._begun}")
        places = [said.decode() for said in self._all(key, f"{self._begun}: {place}".encode())]
        if len(set(places)) > 1:
            if all(said.startswith(f"{self._begun}: ") for said in places):
                places = [said.removeprefix(f"{self._begun}: ") for said in places]
            # With more than two ranks the one that differs from most is the odd one out.
            usual = max(places, key=places.count)
            odd = next(rank for rank in reversed(range(self.size)) if places[rank] != usual)
            other = places.index(usual)
            raise CaptureError(
                f"ranks differ (hazard S19): rank {odd} is at {places[odd]!r}, rank {other} at {usual!r}",
                hint="give every rank the same model, buckets and breaks",
                hazard="S19",
            )

    def drop(self, reason: str) -> None:
        self._store.set(f"dropped/{self._attempt}", f"rank {self.rank}: {reason}")

    def exchange(self, ours: Any) -> list[Any]:
        self._exchange += 1
        # Everything in this store was written by ranks of this run.
        return [pickle.loads(theirs) for theirs in self._all(f"exchange/{self._exchange}", pickle.dumps(ours))]

    def fail(self, failure: Failure) -> bool:
        """Tell the others that this rank fails; return whether it is the first."""
        told: bytes = self._store.compare_set("failure", "", failure.encode())
        return told.decode() == failure.encode()

    def failure(self) -> Failure | None:
        """Return what the first rank that failed told."""
        return Failure.decode(self._store.get("failure").decode()) if self._store.check(["failure"]) else None

    def last_place(self, rank: int) -> str:
        """Return where a rank was last, in words."""
        return self._told("at", rank) or "the start"

    def _told(self, what: str, rank: int) -> str:
        key = f"{what}/{rank}"
        return self._store.get(key).decode() if self._store.check([key]) else ""

    def _all(self, key: str, ours: bytes) -> list[bytes]:
        """Give `ours`, wait for what every rank gives under the same key, and return it by rank."""
        self._store.set(f"{key}/{self.rank}", ours.decode("latin-1"))
        keys = [f"{key}/{rank}" for rank in range(self.size)]
        self.is_waiting = True
        try:
            self._wait_for(keys, is_meeting=key.startswith("meet/"))
        finally:
            self.is_waiting = False
            self.tick()
        return [value.decode().encode("latin-1") for value in self._store.multi_get(keys)]

    def _wait_for(self, keys: list[str], *, is_meeting: bool) -> None:
        pause, since = _POLL_S[0], time.monotonic()
        looked, seen = since, ""
        while not self._store.check(keys):
            time.sleep(pause)
            pause = min(pause * 1.5, _POLL_S[1])
            self._raise_for_others(keys if is_meeting else None)
            now = time.monotonic()
            if now - looked < _LOOK_S:
                continue
            looked, missing = now, [rank for rank, key in enumerate(keys) if not self._store.check([key])]
            progress = "".join(self._told("progress", rank) for rank in missing)
            if progress != seen:
                since, seen = now, progress
            elif now - since > self.timeout_s + GRACE_S:
                where = "; ".join(f"rank {rank} was last at {self.last_place(rank)}" for rank in missing)
                raise PeerLost(
                    f"waited more than {self.timeout_s:g} s at {self.place}: {where}",
                    hint="a larger --rank-timeout waits longer",
                )

    def _raise_for_others(self, meeting: list[str] | None) -> None:
        dropped = f"dropped/{self._attempt}"
        # Whoever drops was in this meeting first if all were: then it is over, and the next one is left.
        if meeting is not None and self._store.check([dropped]) and not self._store.check(meeting):
            raise Dropped(self._store.get(dropped).decode())
        failure = self.failure()
        if failure is not None:
            raise PeerLost(f"rank {failure.rank} failed: {failure.message}", hint=failure.hint, failure=failure)
