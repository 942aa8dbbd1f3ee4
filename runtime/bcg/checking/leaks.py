"""Where real rows first depend on padding: on what it holds, or only on how many rows there are."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from bcg.checking.compare import Tolerance, are_near, compare
from bcg.checking.outputs import Event, EventKey, culprit_of, keeping_outputs
from bcg.checking.plan import Trial, batch_of, poisoned_padding
from bcg.checking.results import Step, keep_results
from bcg.runner import GraphRunner
from bcg.segment_tape import Operation
from bcg.state import ModelState, Snapshot


@dataclass(frozen=True)
class Leak:
    """Where padding shows first.

    Attributes:
        module: Path of the module whose own code is to blame; None where no module's output shows it.
        operation: The first operation in it that gives other real rows, or that the batch alone does not run.
        branches: Whether the batch alone runs another operation there.
    """

    module: str | None = None
    operation: Operation | None = None
    branches: bool = False


class LeakSearch:
    """Compares a batch beside poisoned padding with the same beside zeros, or alone.

    Rows are found by comparing shapes with those of the batch alone. Poison against zeros as padding runs the same
    kernels and so is exact.

    Args:
        runner: After its capture.
        trial: A batch of which real rows depend on padding.
        state: The target's; restored before every run.
        base: What it is restored to.
        tolerance: Of real rows beside other padding.
        by_size: Real rows depend on the number of rows alone.
    """

    def __init__(
        self,
        runner: GraphRunner,
        trial: Trial,
        state: ModelState,
        base: Snapshot,
        tolerance: Tolerance,
        *,
        by_size: bool,
    ) -> None:
        batch, padding = batch_of(trial, runner.target), poisoned_padding(trial, runner.target)
        self._target = runner.target
        self._state = state
        self._base = base
        self._tolerance = tolerance
        self._by_size = by_size
        self._forwards: list[Callable[[], Any]] = [
            lambda: runner.eager(batch),
            lambda: runner.eager_padded(batch, padding),
            lambda: runner.eager(batch) if by_size else runner.eager_padded(batch),
        ]

    def find(self) -> Leak:
        """Return the first module in which real rows differ, and the first operation in it."""
        module = self._module()
        found = Leak(module) if module is None else self._operation(module)
        self._state.restore(self._base)
        return found

    def _module(self) -> str | None:
        alone, padded, other = (self._outputs(forward) for forward in self._forwards)
        for key, event in padded.items():
            if key in alone and key in other:
                like = alone[key].tensors
                if self._differ(other[key].tensors, event.tensors, like):
                    return culprit_of(event)
        return None

    def _outputs(self, forward: Callable[[], Any]) -> dict[EventKey, Event]:
        self._state.restore(self._base)
        with keeping_outputs(self._target.module) as events:
            forward()
        return {event.key: event for event in events}

    def _operation(self, module: str) -> Leak:
        for alone, padded, other in itertools.zip_longest(
            *(self._steps(forward, module) for forward in self._forwards)
        ):
            if not (alone and padded and other) or alone.operation != padded.operation:
                step = padded or alone
                return Leak(module, step.operation, branches=True) if self._by_size and step else Leak(module)
            if self._differ(other.results, padded.results, alone.results):
                return Leak(module, padded.operation)
        return Leak(module)

    def _steps(self, forward: Callable[[], Any], module: str) -> list[Step]:
        self._state.restore(self._base)
        return keep_results(forward, self._target.device, within=module).steps

    def _differ(self, other: Sequence[Tensor], padded: Sequence[Tensor], alone: Sequence[Tensor]) -> bool:
        ones, others = _real_rows(other, alone), _real_rows(padded, alone)
        return not (are_near(ones, others) if self._by_size else compare(ones, others, self._tolerance).within)


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
