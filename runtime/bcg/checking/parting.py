"""Where two eager runs of one batch part, or where their first NaN is: why nothing can be told of a replay."""

from __future__ import annotations

from dataclasses import dataclass

from bcg.checking.compare import Comparison, Tolerance, compare
from bcg.checking.plan import Trial, batch_of, poisoned_padding
from bcg.checking.results import ResultTape, Step, keep_results
from bcg.runner import GraphRunner
from bcg.segment_tape import Operation
from bcg.state import ModelState, Snapshot

_NUM_RUNS = 5
_SEED_IT = "seed what it draws from, or draw from torch's default generator, which is put back between runs"
_KEEP_IT = "keep it as an attribute of the module, where it is found and put back between runs"
_CHOOSE_KERNEL = "call torch.use_deterministic_algorithms(True), or give a wider --rtol"
_SAME_INPUTS = "let the forward depend on its inputs and on the state of its modules alone, not on clocks or entropy"
_MAKE_NUMBERS = "let make_inputs make inputs for which the eager forward gives numbers"


@dataclass(frozen=True)
class Parting:
    """Where eager stops telling anything.

    Attributes:
        hazard: Row of the catalogue; empty where there is none.
        operation: The first operation that differs, or gives NaN, breaks included.
        title: What it does.
        remedy: What to do.
    """

    hazard: str
    operation: Operation
    title: str
    remedy: str


def find_parting(runner: GraphRunner, trial: Trial, state: ModelState, base: Snapshot) -> Parting | None:
    """Run a batch eagerly a few times from the same state, and return where the first two runs that differ part.

    Args:
        runner: After its capture.
        trial: The batch.
        state: The target's; left as it was.
        base: What it is restored to before every run.
    """
    tapes = [_run(runner, trial, state, base)]
    for _ in range(_NUM_RUNS - 1):
        tapes.append(_run(runner, trial, state, base))
        for one, other in zip(tapes[-2].steps, tapes[-1].steps, strict=False):
            if (found := _difference(one, other, tapes[-2])) is not None:
                return found
        tapes[-2].steps.clear()
    return None


def find_nan(runner: GraphRunner, trial: Trial, state: ModelState, base: Snapshot) -> Parting | None:
    """Return the first operation of an eager run that gives NaN."""
    for step in _run(runner, trial, state, base).steps:
        if any(bool(result.isnan().any()) for result in step.results):
            return Parting(
                "", step.operation, f"the first NaN of eager is made by {step.operation.name}", _MAKE_NUMBERS
            )
    return None


def _difference(one: Step, other: Step, before: ResultTape) -> Parting | None:
    if one.operation != other.operation:
        return _at(one, "", f"is run in one, {other.operation.name} in the other", _SAME_INPUTS)
    if repr(one.numbers) != repr(other.numbers):
        pairs = zip(one.numbers, other.numbers, strict=False)
        left, right = next(pair for pair in pairs if repr(pair[0]) != repr(pair[1]))
        return _at(one, "S16", f"gets {left!r} in one and {right!r} in the other", _SAME_INPUTS)
    comparison = compare(one.results, other.results, Tolerance(rtol=0.0))
    if comparison.bitwise:
        return None
    if any(before.has_made(key) for key in other.outside):
        return _at(one, "S12", f"reads a tensor that the run before left{_by(comparison)}", _KEEP_IT)
    if one.outside != other.outside:
        return _at(one, "S16", f"reads a tensor that is made anew, outside torch{_by(comparison)}", _SAME_INPUTS)
    if one.is_random:
        return _at(one, "S16", f"draws other numbers each time{_by(comparison)}", _SEED_IT)
    return _at(one, "", f"gives other results for the same arguments{_by(comparison)}", _CHOOSE_KERNEL)


def _at(step: Step, hazard: str, what: str, remedy: str) -> Parting:
    return Parting(hazard, step.operation, f"two eager runs of one batch part: {step.operation.name} {what}", remedy)


def _by(comparison: Comparison) -> str:
    return f", apart by {comparison.max_rel_error:.1e} of the scale"


def _run(runner: GraphRunner, trial: Trial, state: ModelState, base: Snapshot) -> ResultTape:
    batch, padding = batch_of(trial, runner.target), poisoned_padding(trial, runner.target)
    state.restore(base)
    tape = keep_results(lambda: runner.eager_padded(batch, padding), runner.target.device)
    state.restore(base)
    return tape
