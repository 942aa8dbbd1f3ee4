"""Code that asks whether it is being captured gets the answer of a GPU on the host device, and in a survey, too.

Some libraries compute something else while a stream is captured (hazard S3); transformers' mask builders do, so
that they need no host read then. What is recorded without a GPU should be what a GPU would record.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch


class _Answer:
    """Stands in for torch's own question while any thread pretends."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_pretending = 0
        self._original: Any = None
        self._thread = threading.local()

    def __call__(self) -> bool:
        if not getattr(self._thread, "pretends", False):
            return bool(self._original())
        if self._thread.on_ask is not None:
            self._thread.on_ask()
        return True

    def set(self, pretends: bool, on_ask: Callable[[], None] | None = None) -> None:
        self._thread.on_ask = on_ask
        if getattr(self._thread, "pretends", False) == pretends:
            return
        self._thread.pretends = pretends
        with self._lock:
            self._num_pretending += 1 if pretends else -1
            if pretends and self._num_pretending == 1:
                self._original = torch.cuda.is_current_stream_capturing
                torch.cuda.is_current_stream_capturing = self
            elif self._num_pretending == 0:
                torch.cuda.is_current_stream_capturing = self._original


_answer = _Answer()


def pretend_capturing(pretends: bool, on_ask: Callable[[], None] | None = None) -> None:
    """Let `torch.cuda.is_current_stream_capturing` say yes on this thread from now on, or tell the truth again.

    Args:
        pretends: What it shall be.
        on_ask: Called whenever the question is answered with a pretended yes.
    """
    _answer.set(pretends, on_ask)


@contextlib.contextmanager
def telling_the_truth() -> Iterator[None]:
    """Tell the truth inside the block, and then go on as before."""
    before = (getattr(_answer._thread, "pretends", False), getattr(_answer._thread, "on_ask", None))
    _answer.set(False)
    try:
        yield
    finally:
        _answer.set(*before)
