"""A worker as its parent sees it: a process that answers commands, or has died and says of what."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import msgspec

from bcg.errors import BcgError, UsageError
from bcg.profile.messages import Command, Failed, Reply

R = TypeVar("R")

_GRACE_S = 10.0


class WorkerFailed(BcgError):
    """A worker could not do what it was told, or is gone."""


class Session:
    """One worker process; kill it by leaving the `with` block.

    It gets a compiler cache of its own, empty at first: start-up is measured cold, and modes don't help each other.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="bcg-profile-", ignore_cleanup_errors=True)
        self._log = open(Path(self._folder.name) / "stderr", "w+b")  # noqa: SIM115 - closed in __exit__
        command_read, command_write = os.pipe()
        reply_read, reply_write = os.pipe()
        caches = {
            "TORCHINDUCTOR_CACHE_DIR": str(Path(self._folder.name) / "inductor"),
            "TRITON_CACHE_DIR": str(Path(self._folder.name) / "triton"),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bcg.profile.worker", str(command_read), str(reply_write)],
            pass_fds=(command_read, reply_write),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env={**os.environ, **caches, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        os.close(command_read)
        os.close(reply_write)
        self._commands = open(command_write, "wb")  # noqa: SIM115 - closed in __exit__
        self._replies = open(reply_read, "rb")  # noqa: SIM115 - closed in __exit__

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._commands.close()
        if kind is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_GRACE_S)
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._replies.close()
        self._log.close()
        self._folder.cleanup()

    def tell(self, command: Command) -> None:
        """Send a command without waiting for its reply."""
        with contextlib.suppress(BrokenPipeError):
            self._commands.write(msgspec.json.encode(command) + b"\n")
            self._commands.flush()

    def hear(self, kind: type[R]) -> R:
        """Wait for the reply to the last command.

        Raises:
            UsageError: The worker was told something impossible, such as a preset that does not exist.
            WorkerFailed: The worker failed at it, or died.
        """
        line = self._replies.readline()
        if not line.endswith(b"\n"):
            raise WorkerFailed(f"the process of the mode {self._end()}", hint=self._last_words())
        reply: Reply = msgspec.json.decode(line, type=Reply)
        if isinstance(reply, Failed):
            error = UsageError if reply.exit_code == 2 else WorkerFailed
            raise error(reply.message, hint=reply.hint)
        assert isinstance(reply, kind)
        return reply

    def ask(self, command: Command, kind: type[R]) -> R:
        """Send a command and wait for its reply; see `hear`."""
        self.tell(command)
        return self.hear(kind)

    def _end(self) -> str:
        code = self._process.wait()
        if code < 0:
            return f"was killed by {signal.Signals(-code).name}"
        return f"ended with {code}"

    def _last_words(self) -> str | None:
        self._log.flush()
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else None
