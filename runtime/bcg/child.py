"""A child process that answers commands, one JSON line each: as its parent sees it, and the loop inside it.

    python -m MODULE READ_FD WRITE_FD PARENT

Whatever the child prints goes to a file, whose last line says more where the child dies.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, TypeVar

import msgspec

from bcg.errors import BcgError, UsageError
from bcg.sizes import GIB

R = TypeVar("R")

_ROOM = {"cuda": (4 * GIB, 0.25), "cpu": (GIB, 0.1)}
_GRACE_S = 10.0
_SIGNAL_AT_PARENTS_DEATH = 1
"""``PR_SET_PDEATHSIG`` of Linux."""


class Failed(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """A command could not be done.

    Attributes:
        traceback: Where in the child.
    """

    message: str
    hint: str | None = None
    exit_code: int = 1
    traceback: str | None = None


class ChildFailed(BcgError):
    """A child could not do what it was told, or is gone."""


class ChildDied(ChildFailed):
    """A child is gone, without an answer."""


def needed_bytes(weight_bytes: int, device_type: str) -> int:
    """Return the device memory that a process needs for a model: its weights, and room beside them."""
    least, part = _ROOM.get(device_type, _ROOM["cuda"])
    return weight_bytes + max(least, int(part * weight_bytes))


class Child:
    """A child process; leaving the `with` block ends it, and kills it if the block failed.

    Args:
        module: What it runs; calls `serve`.
        name: What it is called in errors.
        replies: Type of what it answers, `Failed` among it.
        environment: Variables that it gets beside this process's.
    """

    def __init__(self, module: str, name: str, replies: Any, environment: Mapping[str, str] | None = None) -> None:
        self._name = name
        self._decoder = msgspec.json.Decoder(replies)
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__
        command_read, command_write = os.pipe()
        reply_read, reply_write = os.pipe()
        path = os.pathsep.join(filter(None, sys.path))
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, str(command_read), str(reply_write), str(os.getpid())],
            pass_fds=(command_read, reply_write),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env={**os.environ, **(environment or {}), "PYTHONPATH": path},
        )
        os.close(command_read)
        os.close(reply_write)
        self._commands = open(command_write, "wb")  # noqa: SIM115 - closed in __exit__
        self._replies = open(reply_read, "rb")  # noqa: SIM115 - closed in __exit__

    def __enter__(self) -> Child:
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

    def tell(self, command: msgspec.Struct) -> None:
        """Send a command without waiting for its reply."""
        with contextlib.suppress(BrokenPipeError):
            self._commands.write(msgspec.json.encode(command) + b"\n")
            self._commands.flush()

    def hear(self, kind: type[R]) -> R:
        """Wait for the reply to the last command.

        Raises:
            UsageError: The child was told something impossible, such as a preset that does not exist.
            ChildDied: It died.
            ChildFailed: It failed at the command; a note, here and of wrong usage, has the child's traceback.
        """
        line = self._replies.readline()
        if not line.endswith(b"\n"):
            raise ChildDied(f"{self._name} {self._end()}", hint=self._last_words())
        reply = self._decoder.decode(line)
        if isinstance(reply, Failed):
            raised = UsageError if reply.exit_code == 2 else ChildFailed
            error = raised(reply.message, hint=reply.hint)
            if reply.traceback is not None:
                error.add_note(f"in {self._name}:\n{reply.traceback}")
            raise error
        assert isinstance(reply, kind)
        return reply

    def ask(self, command: msgspec.Struct, kind: type[R]) -> R:
        """Send a command and wait for its reply; see `hear`."""
        self.tell(command)
        return self.hear(kind)

    def _end(self) -> str:
        code = self._process.wait()
        if code < 0:
            return f"was killed by {signal.Signals(-code).name}"
        return f"ended with {code}"

    def _last_words(self) -> str | None:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else None


def serve(
    commands_type: Any, answer: Callable[[Any], msgspec.Struct], last: type[msgspec.Struct] | tuple[()] = ()
) -> None:
    """Be the child that the command line describes: answer commands until they end, or an answer is the last.

    The child is killed when its parent is gone, whatever it is doing then.

    Args:
        commands_type: Type of the commands.
        answer: Does what a command says; an error that it raises is the answer.
        last: Type of the answer after which there is nothing more to do, if any is.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SIGNAL_AT_PARENTS_DEATH, signal.SIGKILL)
    read, write, parent = (int(word) for word in sys.argv[1:4])
    if os.getppid() != parent:  # it died before it could take this process with it
        return
    os.dup2(2, 1)
    with open(read, "rb") as commands, open(write, "wb") as replies:
        for line in commands:
            reply = _answered(answer, msgspec.json.decode(line, type=commands_type))
            replies.write(msgspec.json.encode(reply, enc_hook=str) + b"\n")
            replies.flush()
            if isinstance(reply, last):
                return


def _answered(answer: Callable[[Any], msgspec.Struct], command: Any) -> msgspec.Struct:
    try:
        return answer(command)
    except BcgError as error:
        return Failed(
            message=error.message, hint=error.hint, exit_code=error.exit_code, traceback=traceback.format_exc()
        )
    except Exception as error:  # noqa: BLE001 - the last stop of this process; the parent goes on
        message = " ".join(f"{type(error).__name__}: {error}".split())[:600]
        return Failed(message=message, traceback=traceback.format_exc())
