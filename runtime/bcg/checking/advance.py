"""Tensors that warm-ups and captures moved on before the first replay (hazard S13)."""

from __future__ import annotations

import torch

from bcg.checking.compare import same_bits
from bcg.checking.plan import Trial, batch_of
from bcg.checking.state import ModelState, Snapshot
from bcg.runner import GraphRunner
from bcg.structure import tensors_in


def advanced_tensors(runner: GraphRunner, state: ModelState, before: Snapshot, after: Snapshot) -> list[str]:
    """Return the paths of tensors that captures changed in place, where that makes a difference to a forward.

    A tensor that is written before it is read, such as the rows of a cache, may hold anything: it counts only if
    a forward from the old contents and one from the new give other results, or leave other values where they write.

    Args:
        runner: After its capture.
        state: The target's.
        before: Saved before the capture.
        after: Saved after it.
    """
    moved = [
        path
        for path, tensor in before.tensors.items()
        if after.tensors.get(path) is tensor and not same_bits(before.contents[path], after.contents[path])
    ]
    if not moved:
        return []
    trial = Trial(min(runner.graphs), (min(runner.graphs),), seed=1)
    batch = batch_of(trial, runner.target)
    ends, results = [], []
    for start in (before, after):
        state.restore(after)
        with torch.inference_mode():
            for path in moved:
                before.tensors[path].copy_(start.contents[path])
        results.append([tensor.clone() for tensor in tensors_in(runner.eager_padded(batch))])
        ends.append({path: before.tensors[path].clone() for path in moved})
    state.restore(after)
    same = all(same_bits(one, other) for one, other in zip(*results, strict=True))
    return [
        path
        for path in moved
        if not same or _differs_where_written(before.contents[path], after.contents[path], ends[0][path], ends[1][path])
    ]


def _differs_where_written(
    old: torch.Tensor, new: torch.Tensor, from_old: torch.Tensor, from_new: torch.Tensor
) -> bool:
    written = (from_old != old) | (from_new != new)
    return bool(((from_old != from_new) & written).any())
