"""Where replay and eager part: the first module in execution order that gives something else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from bcg.checking.compare import Comparison, Tolerance, compare, finite
from bcg.checking.outputs import Event, EventKey, culprit_of, keeping_outputs
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
            return Location(_divergence(target.module, event.key, comparison), culprit_of(event))
    return Location()


def _divergence(root: nn.Module, key: EventKey, comparison: Comparison) -> Divergence:
    return Divergence(
        module=key.module,
        part=key.part,
        call=key.call,
        max_rel_error=finite(comparison.max_rel_error),
        source_line=module_line(root, key.module),
    )
