"""Code that asks whether it is being captured gets the answer of a GPU on the host device, and in a survey, too.

Some libraries compute something else while a stream is captured (hazard S3); transformers' mask builders do, so
that they need no host read then. What is recorded without a GPU should be what a GPU would record.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
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
        return getattr(self._thread, "pretends", False) or bool(self._original())

    def set(self, pretends: bool) -> None:
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


def pretend_capturing(pretends: bool) -> None:
    """Let `torch.cuda.is_current_stream_capturing` say yes on this thread from now on, or tell the truth again."""
    _answer.set(pretends)


@contextlib.contextmanager
def telling_the_truth() -> Iterator[None]:
    """Tell the truth inside the block, and then go on as before."""
    before = getattr(_answer._thread, "pretends", False)
    _answer.set(False)
    try:
        yield
    finally:
        _answer.set(before)
