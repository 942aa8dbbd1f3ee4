"""Axes of plots, with labels that can be read by themselves."""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bcg.sizes import GIB, KIB, MIB

_FEW = 4
_MANY = 12


@dataclass(frozen=True)
class Unit:
    """A unit of bytes."""

    name: str
    num_bytes: int

    def values(self, sizes: Sequence[int | None]) -> list[float | None]:
        """Returns bytes in this unit."""
        return [None if size is None else size / self.num_bytes for size in sizes]


_UNITS = (Unit("KiB", KIB), Unit("MiB", MIB), Unit("GiB", GIB))


def unit_of(sizes: Iterable[int | None]) -> Unit:
    """Returns the unit in which the largest of these sizes has few digits before the point: KiB, MiB or GiB."""
    largest = max((abs(size) for size in sizes if size is not None), default=0)
    return next((unit for unit in _UNITS if largest < 1024 * unit.num_bytes), _UNITS[-1])


def axis(title: str, **more: Any) -> dict[str, Any]:
    """Returns an axis; `more` is plotly's."""
    return {"title": {"text": title, "standoff": 8}, **more}


def categories(title: str) -> dict[str, Any]:
    """Returns an axis of names."""
    return axis(title, type="category")


def token_axis(counts: Collection[int]) -> dict[str, Any]:
    """Returns a logarithmic axis on which the token counts themselves are labelled."""
    return _labelled("tokens", _spaced(sorted(counts))) | {"tickangle": 0}


def log_axis(title: str, values: Sequence[float]) -> dict[str, Any]:
    """Returns a logarithmic axis for these values; plotly's own labels between powers of ten are bare digits."""
    positive = [value for value in values if value >= sys.float_info.min]
    if not positive:
        return axis(title, type="log")
    low, high = min(positive), max(positive)
    ticks = _round_ticks(low, high) if high < 5 * low else _ticks_of_decades(low, high)
    shown = [tick for tick in ticks if 0 < tick < math.inf]
    return _labelled(title, shown if len(shown) <= _MANY else _spaced(shown))


def _labelled(title: str, ticks: Sequence[float]) -> dict[str, Any]:
    return axis(title, type="log", tickvals=ticks, ticktext=[f"{tick:,.9g}" for tick in ticks])


def _spaced(ticks: Sequence[float]) -> list[float]:
    """Leave out what would be written over another label; both ends stay."""
    least = math.log(ticks[-1] / ticks[0]) / _MANY if ticks else 0.0
    shown: list[float] = []
    for tick in ticks[:-1]:
        if not shown or (math.log(tick / shown[-1]) >= least and math.log(ticks[-1] / tick) >= least):
            shown.append(tick)
    return [*shown, *ticks[-1:]]


def _ticks_of_decades(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if len(powers) <= _FEW else (1,)
    return [float(f"{step}e{power}") for power in powers for step in steps]


def _round_ticks(low: float, high: float) -> list[float]:
    distance = (high - low or high) / _FEW
    power = math.floor(math.log10(distance))
    step = next(step for step in (float(f"{size}e{power}") for size in (1, 2, 5, 10)) if step >= distance)
    return [step * number for number in range(math.floor(low / step), math.ceil(high / step) + 2)]
