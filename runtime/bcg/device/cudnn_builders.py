"""Processes that build plans of cuDNN (`bcg.device.cudnn_graph`) while this one does something else.

In this process it would have to be this thread: the package keeps the interpreter's lock while it builds.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import torch

from bcg.device import cudnn_graph
from bcg.device.cudnn_graph import Attention

_NUM_PROCESSES = 4
_FEWEST_PLANS = 8
"""With fewer to build, this process has them all by the time that another one has its first."""


class Builders:
    """Builds the plans of attentions for given numbers of rows.

    Args:
        row_counts: Numbers of rows, in the order in which their plans will be wanted.
    """

    def __init__(self, row_counts: Sequence[int]) -> None:
        self._row_counts = [rows for rows in row_counts if rows > 1]
        self._plans: dict[tuple[int, Attention], bytes] = {}
        self._processes: list[subprocess.Popen[bytes]] = []
        self._readers: list[threading.Thread] = []

    def take(self, cudnn: Any, index: int, attention: Attention) -> bytes:
        """Return a plan if it is there; with the first attention of a kind its other plans are begun.

        Args:
            cudnn: The package.
            index: Of the GPU.
            attention: What the plan computes.

        Returns:
            The serialized plan; nothing where none was built so far.
        """
        if (index, attention) not in self._plans:
            with contextlib.suppress(OSError, RuntimeError):  # no process, or a GPU that can't be described
                self._begin(cudnn, index, attention)
        return self._plans[index, attention]

    def close(self) -> None:
        """End the processes; what they have not built is nothing."""
        for process in self._processes:
            process.kill()
        for reader in self._readers:
            reader.join()

    def _begin(self, cudnn: Any, index: int, first: Attention) -> None:
        self._plans[index, first] = b""
        others = dict.fromkeys(first.with_rows(rows) for rows in self._row_counts)
        missing = [attention for attention in others if (index, attention) not in self._plans]
        self._plans |= {(index, attention): b"" for attention in missing}
        if len(missing) < _FEWEST_PLANS:
            return
        major, minor = torch.cuda.get_device_capability(index)
        job = {
            "version": cudnn.backend_version(),
            "device": cudnn.create_device_properties(index).serialize(),
            "sm_version": major * 10 + minor,
        }
        for start in range(min(_NUM_PROCESSES, len(missing))):
            share = missing[start::_NUM_PROCESSES]
            process = subprocess.Popen(
                [sys.executable, "-P", cudnn_graph.__file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
            text = json.dumps(job | {"attentions": share})
            reader = threading.Thread(target=self._serve, args=(process, text, index, share), daemon=True)
            reader.start()
            self._processes.append(process)
            self._readers.append(reader)

    def _serve(self, process: subprocess.Popen[bytes], job: str, index: int, attentions: Sequence[Attention]) -> None:
        """Give a process its job, and keep what it builds; it may end at any time."""
        assert process.stdin is not None
        assert process.stdout is not None
        with process:
            with contextlib.suppress(BrokenPipeError), process.stdin:
                process.stdin.write(job.encode())
            for attention, line in zip(attentions, process.stdout, strict=False):
                if line.endswith(b"\n"):
                    self._plans[index, attention] = base64.b64decode(line)


_current: ContextVar[Builders | None] = ContextVar("bcg_cudnn_builders", default=None)


def current_builders() -> Builders | None:
    """Return what builds plans ahead on this thread, or `None` outside of `planned_ahead`."""
    return _current.get()


@contextlib.contextmanager
def planned_ahead(row_counts: Sequence[int]) -> Iterator[None]:
    """Inside the block, the first plan of a kind has those for other numbers of rows built by other processes.

    A block inside another one changes nothing.

    Args:
        row_counts: Numbers of rows, in the order in which their plans will be wanted.
    """
    if _current.get() is not None:
        yield
        return
    builders = Builders(row_counts)
    token = _current.set(builders)
    try:
        yield
    finally:
        _current.reset(token)
        builders.close()
