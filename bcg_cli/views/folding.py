"""Folding the map of a bucket: equal layers are shown once.

A model's steps repeat with its layers, or with a block of several layers (``mamba mamba attention …``).
Two steps are equal up to a shift when only the layer numbers in their module paths differ, all by as much.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bcg.report import MapRow, SegmentRow

MAX_PERIOD = 128
"""Longest block of steps that is looked for."""

MIN_SAVED = 2
"""A fold that would save fewer steps is not worth its line."""


@dataclass(frozen=True)
class Step:
    """One step of the map.

    Attributes:
        key: Its name in the map, such as ``segment:3``.
        label: What else must be equal for two steps to be equal, such as a break's name.
        modules: Module paths, in execution order.
    """

    key: str
    label: str
    modules: tuple[str, ...]


@dataclass(frozen=True)
class Fold:
    """A run of steps that repeats the steps shown before it.

    Attributes:
        path: Path of the list of layers, such as ``layers``.
        layers: First and last layer number folded away.
        like: First and last layer number of the block that they equal.
        num_steps: How many steps are folded away.
    """

    path: str
    layers: tuple[int, int]
    like: tuple[int, int]
    num_steps: int

    def __str__(self) -> str:
        return f"{self.path}.{_span(*self.layers)}: as {self.path}.{_span(*self.like)}"


@dataclass(frozen=True)
class _Shape:
    """A step with its layer numbers taken out."""

    text: str
    numbers: tuple[int, ...]


@dataclass(frozen=True)
class _Run:
    """`repeats` blocks of `period` steps, each block's layers `shift` above the one before."""

    period: int = 1
    repeats: int = 1
    shift: int = 0

    @property
    def num_steps(self) -> int:
        return self.period * self.repeats

    @property
    def num_saved(self) -> int:
        return self.period * (self.repeats - 1)


def step_of(key: str, row: MapRow) -> Step:
    """Returns the step that a row of a report describes."""
    if isinstance(row, SegmentRow):
        return Step(key, f"{row.num_operations} {row.num_kernels}", tuple(row.modules))
    return Step(key, f"{row.name} {row.source}", (row.module,))


def fold_map(steps: Sequence[Step]) -> list[Step | Fold]:
    """Returns the steps with repeated layers folded.

    Args:
        steps: The steps of one bucket in execution order.

    Returns:
        Every step in order, except that a block which repeats is followed by one `Fold` for its repetitions.
    """
    runs = _longest_runs([_shape_of(step) for step in steps])
    folded: list[Step | Fold] = []
    position = 0
    while position < len(steps):
        run = runs[position]
        overlapped = runs[position + 1 : position + run.num_steps]
        if run.num_saved < MIN_SAVED or any(other.num_saved > run.num_saved for other in overlapped):
            folded.append(steps[position])
            position += 1
            continue
        folded.extend(steps[position : position + run.period])
        folded.append(_fold(steps[position : position + run.period], run))
        position += run.num_steps
    return folded


def _longest_runs(shapes: Sequence[_Shape]) -> list[_Run]:
    """Returns, for every step, the run starting there that saves most; the shortest period wins a tie."""
    best = [_Run()] * len(shapes)
    for period in range(1, min(MAX_PERIOD, len(shapes) // 2) + 1):
        for start, (shift, length) in enumerate(_extents(shapes, period)):
            run = _Run(period, 1 + length // period, shift)
            if shift > 0 and run.num_saved > best[start].num_saved:
                best[start] = run
    return best


def _extents(shapes: Sequence[_Shape], period: int) -> list[tuple[int, int]]:
    """Returns, for every step, its shift after `period` steps and how many steps from it on have that shift.

    A step without layer numbers fits any shift; the shift of a stretch of such steps alone is 0.
    """
    extents: list[tuple[int, int]] = []
    shift, length, num_any = 0, 0, 0
    for index in reversed(range(len(shapes) - period)):
        own = _shift_of(shapes[index], shapes[index + period])
        if own is None:
            length, num_any = length + 1, num_any + 1
        elif own == 0:
            shift, length, num_any = 0, 0, 0
        else:
            length = 1 + (length if own == shift else num_any)
            shift, num_any = own, 0
        extents.append((shift, length))
    return extents[::-1]


def _shift_of(one: _Shape, other: _Shape) -> int | None:
    """Returns the shift from one step to another: None if any fits, 0 if none does."""
    if one.text != other.text:
        return 0
    if not one.numbers:
        return None
    shift = other.numbers[0] - one.numbers[0]
    return shift if all(b - a == shift for a, b in zip(one.numbers, other.numbers, strict=True)) else 0


def _shape_of(step: Step) -> _Shape:
    kind = step.key.partition(":")[0]
    texts, numbers = [kind, step.label], []
    for module in step.modules:
        prefix, number, rest = _split_layer(module)
        texts += [prefix, rest]
        if number is not None:
            numbers.append(number)
    return _Shape("\0".join(texts), tuple(numbers))


def _split_layer(module: str) -> tuple[str, int | None, str]:
    """Splits ``layers.3.mlp.experts.5`` into ``layers``, ``3``, ``mlp.experts.5``."""
    parts = module.split(".")
    for index, part in enumerate(parts):
        if part.isdecimal():
            return ".".join(parts[:index]), int(part), ".".join(parts[index + 1 :])
    return module, None, ""


def _fold(block: Sequence[Step], run: _Run) -> Fold:
    places = [_split_layer(module) for step in block for module in step.modules]
    path = next(prefix for prefix, number, _ in places if number is not None)
    first = min(number for prefix, number, _ in places if prefix == path and number is not None)
    return Fold(
        path=path,
        layers=(first + run.shift, first + run.shift * run.repeats - 1),
        like=(first, first + run.shift - 1),
        num_steps=run.num_saved,
    )


def _span(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}–{last}"
