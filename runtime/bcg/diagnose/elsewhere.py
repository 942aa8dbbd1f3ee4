"""Attempts in a child process, where one could cost this process its device."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from types import TracebackType

from bcg.child import Child, ChildDied, ChildFailed, needed_bytes
from bcg.device import find_device
from bcg.device.meter import find_meter
from bcg.diagnose.attempt import Outcome
from bcg.diagnose.messages import Load, Loaded, RemedyWords, Reply, Tried, Try
from bcg.diagnose.remedies import Remedy
from bcg.diagnose.wording import in_words
from bcg.errors import UsageError
from bcg.target import Target


class Elsewhere:
    """The child process of one search; leave the `with` block to end it.

    A size or an index that an attempt froze may end, at a replay with other inputs, in an error after which the
    process can't use its GPU. The child has a copy of the target, made from the target's words by the first attempt
    that has something to try. It serves later attempts too, until one of them costs it the device or its life.

    Args:
        target: What is attempted on; itself it stays as it is.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._is_possible = target.words is not None and find_device(target.device).can_be_lost
        self._child: Child | None = None
        self._life = contextlib.ExitStack()

    def __enter__(self) -> Elsewhere:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._life.__exit__(kind, error, traceback)

    def attempt(self, remedies: Sequence[Remedy], sizes: Sequence[int]) -> Outcome | None:
        """Capture the target with these remedies at these token counts, in the child, and replay it.

        Returns:
            None where that can't be: there is no remedy, the device can't be lost, the child can't make the target
            or find a remedy's function, or the device has no room for the target twice.
        """
        words = [in_words(remedy, self._target.module) for remedy in remedies]
        known = [each for each in words if each is not None]
        if not self._is_possible or not words or len(known) < len(words):
            return None
        if self._child is None:
            self._is_possible = self._has_room() and self._start()
        return None if self._child is None else self._ask(self._child, known, sizes)

    def _has_room(self) -> bool:
        device = self._target.device
        find_device(device).empty_cache()
        return find_meter(device).free_bytes() >= needed_bytes(self._target.info.weight_bytes, device.type)

    def _start(self) -> bool:
        assert self._target.words is not None
        self._child = self._life.enter_context(Child("bcg.diagnose.trial", "the process of the attempt", Reply))
        try:
            self._child.ask(Load(words=self._target.words), Loaded)
        except (ChildFailed, UsageError):
            self._end()
            return False
        return True

    def _ask(self, child: Child, remedies: list[RemedyWords], sizes: Sequence[int]) -> Outcome | None:
        try:
            tried = child.ask(Try(remedies=remedies, sizes=list(sizes)), Tried)
        except ChildDied as error:
            self._end()
            return Outcome(error.message)
        except ChildFailed:
            return None
        if tried.is_lost:
            self._end()
        return tried.outcome

    def _end(self) -> None:
        self._child = None
        self._life.close()
