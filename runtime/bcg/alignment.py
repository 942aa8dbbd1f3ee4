"""How ranks that capture together keep in step (hazard S19); kept by `bcg.distributed.world.World`."""

from __future__ import annotations

from typing import Any, Protocol

from bcg.errors import BcgError


class Dropped(BcgError):
    """Another rank could not finish what all ranks had begun, and all go on without it."""


class Alignment(Protocol):
    """What a runner and its captures need of the other ranks.

    Every rank makes the same calls in the same order; a rank that doesn't is what `meet` finds.
    """

    @property
    def rank(self) -> int:
        """Of this process."""

    @property
    def size(self) -> int:
        """Number of ranks."""

    def tick(self) -> None:
        """Note that this rank makes progress; one that makes none for long ends the run."""

    def begin(self, what: str) -> None:
        """Wait until every rank begins `what`, such as a bucket."""

    def meet(self, place: str) -> None:
        """Wait until every rank is at `place`.

        Raises:
            Dropped: A rank has dropped what was begun.
            BcgError: A rank is elsewhere, has failed, or does not come.
        """

    def drop(self, reason: str) -> None:
        """Tell the ranks that this one can't finish what was begun."""

    def exchange(self, ours: Any) -> list[Any]:
        """Return what every rank gave, by rank."""
