"""Where replay and eager part: the first module in execution order that gives something else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from bcg.checking.compare import Comparison, Tolerance, are_near, compare
from bcg.checking.outputs import Event, EventKey, keeping_outputs
from bcg.checking.places import module_line
from bcg.checking.plan import Trial, batch_of, poisoned_padding
from bcg.device import find_device
from bcg.errors import CaptureError
from bcg.report import Divergence
from bcg.runner import GraphRunner
from bcg.state import ModelState, Snapshot
from bcg.target import Target


@dataclass(frozen=True)
class Location:
    """Where replay and eager part.

    Attributes:
        divergence: The first module that gives something else; None where nothing differs any more.
        culprit: Path of the module whose own code is to blame.
    """

    divergence: Divergence | None = None
    culprit: str = ""


def locate(
    target: Target, trial: Trial, buckets: Sequence[int], state: ModelState, base: Snapshot, tolerance: Tolerance
) -> Location:
    """Capture the trial's bucket again, keeping every module's output, and find the first that differs from eager.

    If the mismatch is gone with this bucket alone, all `buckets` are captured: then it takes another bucket's
    capture to show.

    Raises:
        CaptureError: The capture fails with the outputs kept.
    """
    location = _capture_again(target, trial, (trial.tokens,), state, base, tolerance)
    if location.divergence is None and len(buckets) > 1:
        location = _capture_again(target, trial, buckets, state, base, tolerance)
    return location


def _capture_again(
    target: Target, trial: Trial, buckets: Sequence[int], state: ModelState, base: Snapshot, tolerance: Tolerance
) -> Location:
    batch, padding = batch_of(trial, target), poisoned_padding(trial, target)
    runner = GraphRunner(target, num_warmups=1)
    recorded: list[Event] = []
    pending = sorted(buckets, reverse=True)
    state.restore(base)
    with keeping_outputs(target.module) as events:

        def take(_captured: object) -> None:
            tokens = pending.pop(0)
            if tokens == trial.tokens:
                recorded.extend(events)

        runner.capture(buckets, on_bucket=take)
        if trial.tokens not in runner.graphs:
            raise CaptureError(f"the bucket of {trial.tokens} tokens has no memory for every module's output")
        state.restore(base)
        runner.eager_padded(batch, padding)
        eager = {event.key: event for event in events}
    if next(runner.graphs[trial.tokens].moved_externals(), None) is not None:
        return Location()
    state.restore(base)
    assert runner.pool is not None
    find_device(target.device).poison(runner.pool)
    runner.replay(batch, padding)
    state.restore(base)
    for event in recorded:
        other = eager.get(event.key)
        if other is None:
            continue
        comparison = compare(other.tensors, event.tensors, tolerance)
        if not comparison.within:
            return Location(_divergence(target.module, event.key, comparison), _culprit(event))
    return Location()


def _culprit(event: Event) -> str:
    return event.parent if event.key.part == "input" else event.key.module


def _divergence(root: nn.Module, key: EventKey, comparison: Comparison) -> Divergence:
    error = comparison.max_rel_error
    return Divergence(
        module=key.module,
        part=key.part,
        call=key.call,
        max_rel_error=error if error < float("inf") else None,
        source_line=module_line(root, key.module),
    )


def locate_leak(
    runner: GraphRunner, trial: Trial, state: ModelState, base: Snapshot, tolerance: Tolerance
) -> str | None:
    """Return the path of the first module in which padding changes real rows; None if none shows it.

    Rows are found by comparing shapes with those of the batch alone. Poison against zeros as padding runs the same
    kernels and so is exact; a leak that doesn't depend on the padding's values shows against the batch alone.
    """
    target = runner.target
    batch, padding = batch_of(trial, target), poisoned_padding(trial, target)
    root = target.module
    runs: list[dict[EventKey, Event]] = []
    forwards: list[Callable[[], Any]] = [
        lambda: runner.eager(batch),
        lambda: runner.eager_padded(batch, padding),
        lambda: runner.eager_padded(batch),
    ]
    for run in forwards:
        state.restore(base)
        with keeping_outputs(root) as events:
            run()
        runs.append({event.key: event for event in events})
    state.restore(base)
    alone, poisoned, zeroed = runs
    for key, event in poisoned.items():
        if key in alone and key in zeroed:
            rows = [_real_rows(event.tensors, alone[key].tensors), _real_rows(zeroed[key].tensors, alone[key].tensors)]
            if not compare(rows[1], rows[0], tolerance).within:
                return _culprit(event)
    for key, event in poisoned.items():
        if key in alone and not are_near(list(alone[key].tensors), _real_rows(event.tensors, alone[key].tensors)):
            return _culprit(event)
    return None


def _real_rows(padded: Sequence[Tensor], alone: Sequence[Tensor]) -> list[Any]:
    cut = []
    for tensor, like in zip(padded, alone, strict=False):
        if tensor.dim() != like.dim():
            continue
        rows = tensor
        for dim, size in enumerate(like.shape):
            if rows.shape[dim] > size:
                rows = rows.narrow(dim, 0, size)
        cut.append(rows)
    return cut
