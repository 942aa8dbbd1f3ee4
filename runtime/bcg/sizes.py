"""Sizes in bytes: their units, and sizes as the user writes them."""

from __future__ import annotations

import math

from bcg.errors import UsageError

KIB, MIB, GIB = 2**10, 2**20, 2**30

_UNITS = {"": 1, "B": 1, "KIB": KIB, "MIB": MIB, "GIB": GIB, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def parse_bytes(text: str) -> int:
    """Read a size such as ``2GiB``, ``500MB`` or ``1073741824``.

    Raises:
        UsageError: It is no positive size.
    """
    word = text.strip()
    number = word.rstrip("BbIiKkMmGg ")
    factor = _UNITS.get(word[len(number) :].strip().upper())
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if factor is None or not 0 < value * factor < 2**63:
        raise UsageError(f"{text[:40]!r} is no size in bytes", hint="such as 2GiB, 500MB or 1073741824")
    return int(value * factor)


def format_size(num_bytes: int) -> str:
    """Return bytes with a unit of their own, such as ``1.19 GiB``."""
    value, unit = float(num_bytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:,.0f} B" if unit == "B" else f"{value:,.2f} {unit}"
