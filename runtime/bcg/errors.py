"""The errors that bcg's users meet.

::

    BcgError                  exit 1   it could not be done
    ├── UsageError            exit 2   the command line or the arguments are wrong
    ├── ModelError            exit 1   the model could not be found, built or called
    ├── CaptureError          exit 1   a capture failed; says segment, break, operation, module, line
    │   └── HostReadError     exit 1   … because the host read a device value (hazard L1)
    ├── ReplayError           exit 1   a captured graph can't be replayed with what was given
    ├── ReportError           exit 1   a report file can't be read or written
    └── CheckFailure          exit 3   a check or a gate failed

The message is one sentence: what, where, expected, got. The hint says what to do next.
"""

from __future__ import annotations

from dataclasses import dataclass


class BcgError(Exception):
    """Base of all errors that bcg raises on purpose.

    Args:
        message: One line: what went wrong, where, what was expected and what was found.
        hint: One line: what to do next.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(BcgError):
    """The command line, or an argument of the library, is wrong."""

    exit_code = 2


class ModelError(BcgError):
    """The model could not be found, built, or called with its inputs."""


@dataclass(frozen=True)
class Place:
    """Where in a captured forward something happened.

    Attributes:
        operation: The operation's name, such as ``aten._local_scalar_dense``.
        module: The path of the module whose forward was running, such as ``layers.3.mlp``.
        source: ``file:line`` of the innermost line that is neither torch's nor bcg's.
    """

    operation: str | None = None
    module: str | None = None
    source: str | None = None

    def __str__(self) -> str:
        parts = [
            self.operation,
            f"in module {self.module!r}" if self.module else None,
            f"at {self.source}" if self.source else None,
        ]
        return " ".join(part for part in parts if part) or "an unknown place"


class CaptureError(BcgError):
    """A capture failed and was undone.

    Args:
        message: One line, see `BcgError`.
        hint: What to do next.
        place: Operation, module and source line, where they are known.
        hazard: The row of the hazard catalogue, such as ``L1``.
        driver_text: What the device's driver said meanwhile, a few lines.
    """

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        place: Place | None = None,
        hazard: str | None = None,
        driver_text: str = "",
    ) -> None:
        super().__init__(message, hint=hint)
        self.place = place
        self.hazard = hazard
        self.driver_text = driver_text


class HostReadError(CaptureError):
    """The host read a value of the device inside a segment (hazard L1)."""


class ReplayError(BcgError):
    """A captured graph can't be replayed with what was given.

    Args:
        message: One line, see `BcgError`.
        hint: What to do next.
        hazard: The row of the hazard catalogue, such as ``S17``.
        place: Module and source line of the break at which it failed.
    """

    def __init__(
        self, message: str, *, hint: str | None = None, hazard: str | None = None, place: Place | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.hazard = hazard
        self.place = place


class ReportError(BcgError):
    """A report file can't be read or written."""


class CheckFailure(BcgError):
    """A check or a gate failed."""

    exit_code = 3


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, with the second one where the first only announces it."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    if not lines:
        return "no message"
    return f"{lines[0]} {lines[1]}" if lines[0].endswith(":") and len(lines) > 1 else lines[0]
