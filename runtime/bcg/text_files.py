"""Text files that the user names: read whole, or refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from bcg.errors import UsageError
from bcg.sizes import MIB

MAX_BYTES = 256 * MIB
"""A larger file is refused unread."""


def read_text(path: Path, noun: str, verb: Literal["is", "are"], *, hint: str) -> str:
    """Read a file of UTF-8 text.

    Args:
        path: Where it is.
        noun: What errors call it.
        verb: What goes with the noun.
        hint: What the file should hold.

    Raises:
        UsageError: It can't be read, is too large, or is no text.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UsageError(f"{noun} {path} {verb} larger than {MAX_BYTES:,} bytes", hint=hint)
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{noun} {path} {verb} no text: {error.reason}", hint=hint) from error
    except OSError as error:
        raise UsageError(f"cannot read {noun} {path}: {error.strerror}", hint="check the path") from error
