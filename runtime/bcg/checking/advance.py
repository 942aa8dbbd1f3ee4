"""Tensors that warm-ups and captures moved on before the first replay (hazard S13)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import Tensor

from bcg.checking.plan import Trial, batch_of
from bcg.runner import GraphRunner
from bcg.state import ModelState, Snapshot, put_contents
from bcg.structure import same_bits, tensors_in

MAX_TENSORS = 32
"""Moved tensors that are looked at one by one."""


@dataclass(frozen=True)
class Advanced:
    """Tensors that the captures changed in place, by attribute path.

    Attributes:
        harmful: A forward gives other results, or leaves other values in other tensors, because of it.
        harmless: Only the tensor itself is another afterwards, such as a counter.
    """

    harmful: list[str] = field(default_factory=list)
    harmless: list[str] = field(default_factory=list)


def find_advanced(runner: GraphRunner, state: ModelState, before: Snapshot, after: Snapshot) -> Advanced:
    """Find tensors that captures changed in place, where that makes a difference to a forward.

    A tensor that is written before it is read, such as the rows of a cache, may hold anything. So every moved tensor
    is put back alone, and a forward from there compared with one from the state after the captures: results, and
    what it leaves where it writes.

    Args:
        runner: After its capture.
        state: The target's; left as it was after the captures.
        before: Saved before the captures.
        after: Saved after them.
    """
    moved = [
        path
        for path, tensor in before.tensors.items()
        if after.tensors.get(path) is tensor
        and before.contents[path].shape == after.contents[path].shape
        and not same_bits(before.contents[path], after.contents[path])
    ]
    found = Advanced()
    if not moved:
        return found
    advanced = _run_from(runner, state, after, moved)
    if not _differing(advanced, _run_from(runner, state, before, moved)):
        state.restore(after)
        return found
    for path in moved[:MAX_TENSORS]:
        differing = _differing(advanced, _run_from(runner, state, after, moved, {path: before.contents[path]}))
        if differing - {path}:
            found.harmful.append(path)
        elif differing:
            found.harmless.append(path)
    state.restore(after)
    return found


@dataclass(frozen=True)
class _Run:
    """One forward: what its tensors held before and after, and its results under the name ``""``."""

    starts: dict[str, Tensor]
    ends: dict[str, Tensor]
    outputs: list[Tensor]


def _run_from(
    runner: GraphRunner,
    state: ModelState,
    start: Snapshot,
    moved: list[str],
    instead: Mapping[str, Tensor] = MappingProxyType({}),
) -> _Run:
    """Run a forward from the state `start`, with other contents of the tensors in `instead`."""
    trial = Trial(min(runner.graphs), (min(runner.graphs),), seed=1)
    state.restore(start)
    with torch.inference_mode():
        for path, contents in instead.items():
            put_contents(start.tensors[path], contents)
        outputs = [tensor.clone() for tensor in tensors_in(runner.eager_padded(batch_of(trial, runner.target)))]
        ends = {path: start.tensors[path].clone() for path in moved}
    return _Run({path: instead.get(path, start.contents[path]) for path in moved}, ends, outputs)


def _differing(one: _Run, other: _Run) -> set[str]:
    """Return the tensors that differ where one of the runs wrote them; an empty name stands for the results."""
    differing = {path for path in one.ends if _differs_where_written(path, one, other)}
    if not all(same_bits(left, right) for left, right in zip(one.outputs, other.outputs, strict=True)):
        differing.add("")
    return differing


def _differs_where_written(path: str, one: _Run, other: _Run) -> bool:
    written = _differs(one.ends[path], one.starts[path]) | _differs(other.ends[path], other.starts[path])
    return bool((_differs(one.ends[path], other.ends[path]) & written).any())


def _differs(one: Tensor, other: Tensor) -> Tensor:
    """Tell where two tensors differ; NaN is like NaN, for it fills caches that nothing was written to."""
    return (one != other) & ~(one.isnan() & other.isnan())
