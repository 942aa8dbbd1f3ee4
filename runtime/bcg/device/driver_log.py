"""What the driver of a GPU says about errors in its own words, beside their codes.

Since CUDA 12.9 the driver logs why a call failed (CUDA programming guide, "Error Log Management"). Its text is had
through `cuLogsDumpToMemory` where the driver has that call, elsewhere through the file that CUDA_LOG_FILE names. That
variable is read when the driver's library is loaded (seen with driver 580), so whoever wants the file calls
`keep_log` before anything else touches the GPU.
"""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

VARIABLE = "CUDA_LOG_FILE"
MAX_CHARACTERS = 600
"""Of the text that is told."""

_BUFFER_BYTES = 25_600
"""All that the driver keeps."""


class DriverLog(Protocol):
    """A place where the driver's log can be read."""

    def mark(self) -> Any:
        """Note this moment."""

    def since(self, mark: Any) -> str:
        """Return what was logged since a moment."""


@dataclass(frozen=True)
class LogFile:
    """A file that the driver writes to."""

    path: Path

    def mark(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0

    def since(self, mark: int) -> str:
        if not self.path.is_file():
            return ""
        with self.path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            start = mark if mark <= size else 0
            file.seek(max(start, size - _BUFFER_BYTES))
            return file.read().decode(errors="replace")


class LogBuffer:
    """The driver's own buffer."""

    def mark(self) -> Any:
        result = _call("cuLogsCurrent", 0)
        return None if result is None else result[1]

    def since(self, mark: Any) -> str:
        buffer = bytearray(_BUFFER_BYTES + 1)
        result = _call("cuLogsDumpToMemory", mark, buffer, len(buffer), 0)
        if result is None or int(result[0]) != 0:
            return ""
        return buffer[: result[2]].decode(errors="replace")


@dataclass
class _Process:
    """What `keep_log` did in this process."""

    file: LogFile | None = None


_process = _Process()


def keep_log() -> None:
    """Let the driver of this process log to a temporary file without a name: nothing is left, however the process ends.

    Does nothing where there is no driver, where it was loaded before, or where the user set CUDA_LOG_FILE. The variable
    is set for the loading alone: child processes don't write to the same file.
    """
    if VARIABLE in os.environ or _is_driver_loaded():
        return
    descriptor, name = tempfile.mkstemp(prefix="bcg-driver-", suffix=".log")
    Path(name).unlink()
    path = Path(f"/proc/self/fd/{descriptor}")
    os.environ[VARIABLE] = str(path)
    try:
        answer = _call("cuInit", 0)
    finally:
        del os.environ[VARIABLE]
    if answer is not None and int(answer[0]) == 0:
        _process.file = LogFile(path)
    else:
        os.close(descriptor)


def listen() -> Callable[[], str]:
    """Return a function that tells the last lines that the driver has logged since now; none where it has no log."""
    log = _find_log()
    if log is None:
        return str
    mark = log.mark()
    return lambda: last_lines(log.since(mark))


def last_lines(text: str) -> str:
    """Return the last lines of a log, as many as are told, without control characters."""
    kept: list[str] = []
    room = MAX_CHARACTERS
    for line in reversed(text.splitlines()):
        shown = "".join(letter if letter.isprintable() else " " for letter in line).strip()
        if not shown:
            continue
        if len(shown) > room:
            kept += [] if kept else [shown[: room - 1] + "…"]
            break
        kept.append(shown)
        room -= len(shown) + 1
    return "\n".join(reversed(kept))


def _find_log() -> DriverLog | None:
    if _has_buffer():
        return LogBuffer()
    if _process.file is not None:
        return _process.file
    users = Path(os.environ.get(VARIABLE, ""))
    return LogFile(users) if users.is_file() else None


@functools.cache
def _has_buffer() -> bool:
    """Tell whether the driver has the calls, which only calling shows; it must be initialized."""
    current = _call("cuLogsCurrent", 0)
    if current is None or int(current[0]) != 0:
        return False
    dumped = _call("cuLogsDumpToMemory", current[1], bytearray(_BUFFER_BYTES + 1), _BUFFER_BYTES + 1, 0)
    return dumped is not None and int(dumped[0]) == 0


def _is_driver_loaded() -> bool:
    """Tell whether something in this process has loaded the driver's library already."""
    maps = Path("/proc/self/maps")
    return maps.is_file() and "libcuda.so" in maps.read_text(errors="replace")


def _call(name: str, *arguments: Any) -> tuple[Any, ...] | None:
    """Call the driver; return its answer, the error first, or None where there is no driver or no such call."""
    try:
        from cuda.bindings import driver

        answer: tuple[Any, ...] = getattr(driver, name)(*arguments)
    except (ImportError, AttributeError, RuntimeError):
        return None
    return answer
