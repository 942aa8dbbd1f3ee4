"""`verify`: replays a runner's buckets with other inputs than the capture's, and compares with eager."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bcg.checking.compare import (
    APART,
    Comparison,
    Tolerance,
    are_alike,
    are_near,
    compare,
    has_numbers,
    is_far_in_a_column,
)
from bcg.checking.plan import Trial, batch_of, plan_trials, poisoned_padding, shuffled_rounds, without_whole_numbers
from bcg.checking.verdicts import BucketVerdict, LostDeviceError, Verification
from bcg.checking.writes import written_outside
from bcg.device import find_device
from bcg.errors import BcgError, ModelError, Place, ReplayError, first_line
from bcg.inputs import Batch
from bcg.runner import GraphRunner
from bcg.state import (
    Change,
    ModelState,
    Snapshot,
    changes,
    have_drawn,
    host_generators,
    moved_otherwise,
    restore_generators,
)
from bcg.structure import map_tensors, storage_key
from bcg.whereabouts import users_line

_NUM_DRAWS = 4
CHECK_SEED = 1000
"""Seed of values, splits and order; the inputs of captures have another."""


@dataclass
class Reference:
    """What eager made of a trial.

    Attributes:
        output: On the padded inputs, cut to the real rows.
        after: The state afterwards; None where forwards change none.
        generators: Where it left the random generators of the host.
    """

    batch: Batch
    padding: dict[str, torch.Tensor] | None
    output: Any
    after: Snapshot | None
    generators: dict[str, Any]


def verify(
    runner: GraphRunner,
    *,
    num_rounds: int = 2,
    tolerance: Tolerance | None = None,
    seed: int = CHECK_SEED,
    on_step: Callable[[str], None] = lambda _: None,
) -> Verification:
    """Replay every captured bucket with other values, sizes and request splits, and compare with eager.

    Sizes are b, b-1 and one above the bucket below; padding is poisoned; memory that nobody uses is filled with NaN
    before every replay; the order is shuffled over all buckets in every round. State that the forward changes in
    place is restored before every run, and left as it was found.

    Args:
        runner: After its `capture`.
        num_rounds: How often every trial is replayed.
        tolerance: What counts as a match where bits differ; by default that of the dtype.
        seed: Of values, splits and order.
        on_step: Told what happens next.

    Raises:
        ReplayError: Nothing was captured.
        ModelError: The eager forward failed.
        LostDeviceError: A replay took the device from this process.
    """
    if not runner.graphs:
        raise ReplayError("no bucket was captured", hint="call capture() with the token counts to serve")
    with find_device(runner.target.device).as_recorded():
        return _Verifier(runner, tolerance or Tolerance(), seed, on_step).run(num_rounds)


class _Verifier:
    """One run of `verify`."""

    def __init__(self, runner: GraphRunner, tolerance: Tolerance, seed: int, on_step: Callable[[str], None]) -> None:
        self._runner = runner
        self._tolerance = tolerance
        self._seed = seed
        self._on_step = on_step
        self._device = find_device(runner.target.device)
        self._state = ModelState(runner.target.module, written_outside(runner))
        self._base = self._state.save()
        self._changes_state = False
        self._verdicts = {tokens: BucketVerdict(tokens) for tokens in sorted(runner.graphs)}
        self._references: dict[Trial, Reference] = {}
        self._full_outputs: dict[Trial, Any] = {}
        self._owned: dict[int, bool] = {}
        views = runner.input_views(max(runner.graphs)).values()
        self._static = {storage_key(view) for view in views}
        self._found = Verification(list(self._verdicts.values()))

    def run(self, num_rounds: int) -> Verification:
        trials = plan_trials(list(self._verdicts), packs_requests=self._runner.target.packs_requests, seed=self._seed)
        try:
            self._compare_all(trials, num_rounds)
        except Exception as error:
            if not self._device.is_lost():
                self._state.restore(self._base)
                raise
            for verdict in self._verdicts.values():
                verdict.doubts.append(f"the check could not be ended: {first_line(error)}")
            raise LostDeviceError(first_line(error), self._found) from error
        self._state.restore(self._base)
        return self._found

    def _compare_all(self, trials: Sequence[Trial], num_rounds: int) -> None:
        started = time.perf_counter()
        self._find_state(trials)
        for trial in trials:
            self._on_step(f"eager, {trial.num_tokens} tokens")
            self._run_eager(trial)
        self._device.synchronize()
        eager_done = time.perf_counter()
        self._found.eager_ms = (eager_done - started) * 1e3
        for number, trial in shuffled_rounds(trials, num_rounds, self._seed):
            self._on_step(f"replaying {trial.num_tokens} tokens")
            self._replay(trial, on_side_stream=number % 2 == 1)
        self._device.synchronize()
        self._found.replay_ms = (time.perf_counter() - eager_done) * 1e3

    def _find_state(self, trials: Sequence[Trial]) -> None:
        """Run a full batch of every bucket to see whether forwards change state: where not, none is saved again."""
        for trial in trials:
            if trial.num_padding == 0:
                self._put_back()
                self._on_step(f"eager, {trial.num_tokens} tokens")
                self._full_outputs[trial] = self._eager(trial, batch_of(trial, self._runner.target), None)
                self._changes_state = self._changes_state or bool(changes(self._base, self._state.save()))

    def _put_back(self) -> None:
        """Bring state and random generators back to where they were before the first run."""
        if self._changes_state:
            self._state.restore(self._base)
        else:
            restore_generators(self._base)

    def _run_eager(self, trial: Trial) -> None:
        runner, verdict = self._runner, self._verdicts[trial.tokens]
        batch, padding = batch_of(trial, runner.target), poisoned_padding(trial, runner.target)
        self._put_back()
        output = self._eager(trial, batch, padding)
        generators = host_generators(self._base)
        after = self._state.save() if self._changes_state else None
        self._references[trial] = Reference(batch, padding, output, after, generators)
        if not has_numbers(output):
            verdict.without_numbers.append(trial)
        self._put_back()
        if padding is None:
            again = compare(output, self._full_outputs.pop(trial), self._tolerance)
            self._found.spread.widen(again)
            if not again.within:
                verdict.unsteady[trial] = 0.0
        else:
            self._look_for_leaks(trial, batch, padding, output)

    def _eager(self, trial: Trial, batch: Batch, padding: dict[str, torch.Tensor] | None) -> Any:
        try:
            return _kept(self._runner.eager_padded(batch, padding))
        except Exception as error:
            if isinstance(error, BcgError) or self._device.is_lost():
                raise
            beside = " beside zeros as padding" if padding is None and trial.num_padding else ""
            raise ModelError(
                f"the eager forward of {self._runner.target.name} fails for {trial.num_tokens} tokens in the bucket of "
                f"{trial.tokens}{beside}: {type(error).__name__}: {first_line(error)}",
                hint="it must run eagerly with any values before its replay can be compared; see --traceback",
            ) from error

    def _look_for_leaks(self, trial: Trial, batch: Batch, padding: dict[str, torch.Tensor], output: Any) -> None:
        """Compare real rows beside poisoned padding with the batch alone, and in doubt with zeros as padding.

        Poison in whole numbers alone proves nothing: no replay has it.

        A forward that draws random numbers draws others for another number of rows: there padding is all that is told
        apart, unless the numbers make no difference.
        """
        verdict = self._verdicts[trial.tokens]
        try:
            alone = _kept(self._runner.eager(batch))
        except Exception as error:
            if self._device.is_lost():
                raise
            self._found.fails_alone[trial.num_tokens] = f"{type(error).__name__}: {first_line(error)}"
            return
        has_drawn = have_drawn(self._base)
        if not has_drawn:
            self._look_at_state(trial, batch)
        draws = has_drawn and not self._draws_for_nothing(batch, alone)
        if not draws and self._is_same(alone, trial, output):
            self._put_back()  # poison need not be what the model knows padding by, and zeros are what replays have
            beside_zeros = self._eager(trial, batch, None)
            is_near = compare(alone, beside_zeros, self._tolerance).within
            if not is_near and not self._is_same(beside_zeros, trial, output):
                verdict.leaks.append(trial)
            return
        self._put_back()
        if not draws:
            beside_zeros = self._eager(trial, batch, without_whole_numbers(padding))
            if compare(alone, beside_zeros, self._tolerance).within:
                return
            self._put_back()
        if not self._is_same(self._eager(trial, batch, None), trial, output):
            verdict.leaks.append(trial)
        elif not draws and not are_alike(alone, output):
            verdict.constants.append(trial)
        elif not draws and not are_near(alone, output):
            verdict.resized.append(trial)

    def _look_at_state(self, trial: Trial, batch: Batch) -> None:
        """Note state that the batch alone has just left otherwise than beside zeros, if a later forward shows it.

        The later one has one row, and the largest bucket is left out: together they need no more room than that.
        """
        runner = self._runner
        if not self._changes_state or runner.target.alignment is not None or trial.tokens == max(self._verdicts):
            return
        later, alone = batch_of(Trial(trial.tokens, (1,), trial.seed), runner.target), self._state.save()
        try:
            after_alone = _kept(runner.eager(later))
            self._put_back()
            self._eager(trial, batch, None)
            found = [change.path for change in changes(alone, self._state.save()) if not self._is_near(change)]
            apart = compare(after_alone, runner.eager(later), self._tolerance)
        except Exception:
            if self._device.is_lost():
                raise
            return
        if found and not (apart.within or self._found.spread.covers(apart)):
            self._verdicts[trial.tokens].padded_state.update(dict.fromkeys(found, trial))

    def _is_near(self, change: Change) -> bool:
        return change.is_tensor and compare(change.before, change.after, self._tolerance).within

    def _draws_for_nothing(self, batch: Batch, output: Any) -> bool:
        """Tell whether a forward gives the same with the random numbers that come next, and after those.

        Of ranks, which must run as many forwards each, it is not asked.
        """
        if self._runner.target.alignment is not None:
            return False

        def drawn_anew() -> Any:
            self._state.restore(self._base, generators=False)
            return self._runner.eager(batch)

        return all(compare(output, drawn_anew(), self._tolerance).bitwise for _ in range(_NUM_DRAWS))

    def _is_same(self, expected: Any, trial: Trial, output: Any) -> bool:
        comparison = compare(expected, output, self._tolerance)
        return comparison.within or self._is_within_spread(comparison, trial, output)

    def _replay(self, trial: Trial, *, on_side_stream: bool) -> None:
        runner, verdict, reference = self._runner, self._verdicts[trial.tokens], self._references[trial]
        graph = runner.graphs[trial.tokens]
        if not graph.steps:
            verdict.is_empty = True
            return
        num_before = graph.num_replays
        self._put_back()
        moved = next(graph.moved_externals(), None)
        if moved is not None:  # a replay would read garbage, or end the process
            verdict.moved[trial] = moved
            verdict.comparison = verdict.comparison.joined(APART)
            return
        assert runner.pool is not None
        self._device.poison(runner.pool)
        stream = self._device.side_stream() if on_side_stream else contextlib.nullcontext()
        try:
            with stream:
                output = runner.replay(reference.batch, reference.padding)
            self._device.synchronize()
        except Exception as error:
            if self._device.is_lost():
                raise
            verdict.failed.append(trial)
            if not verdict.errors:
                verdict.hazard = getattr(error, "hazard", None)
                verdict.place = getattr(error, "place", None) or Place(source=users_line(error))
            verdict.errors.append(first_line(error))
            verdict.comparison = verdict.comparison.joined(APART)
            return
        verdict.num_replays += graph.num_replays - num_before
        verdict.num_launches += (graph.num_replays - num_before) * graph.num_segments
        comparison = compare(reference.output, output, self._tolerance)
        self._found.undrawn.update(dict.fromkeys(moved_otherwise(reference.generators, host_generators(self._base))))
        if reference.after is not None:
            after = self._state.save()
            self._compare_state(verdict, reference.after, after)
            self._find_kept_outputs(verdict, after)
        self._judge(trial, verdict, comparison, output)

    def _judge(self, trial: Trial, verdict: BucketVerdict, comparison: Comparison, output: Any) -> None:
        expected = self._references[trial].output
        is_doubtful = comparison.within and not comparison.bitwise and self._tolerance == Tolerance()
        if is_doubtful and is_far_in_a_column(expected, output):
            comparison = dataclasses.replace(comparison, within=False)
        verdict.comparison = verdict.comparison.joined(comparison)
        if comparison.within:
            return
        if self._is_within_spread(comparison, trial, expected):
            verdict.unsteady[trial] = max(verdict.unsteady.get(trial, 0.0), comparison.max_rel_error)
            return
        verdict.failed.append(trial)

    def _find_kept_outputs(self, verdict: BucketVerdict, after: Snapshot) -> None:
        pool = self._runner.pool
        assert pool is not None
        for path, tensor in after.tensors.items():
            is_here = tensor.device.type == self._runner.target.device.type
            if not is_here or path in verdict.kept_outputs:
                continue
            address = tensor.data_ptr()
            if address not in self._owned:
                self._owned[address] = pool.owns(tensor) or storage_key(tensor) in self._static
            if self._owned[address]:
                verdict.kept_outputs.append(path)

    def _is_within_spread(self, comparison: Comparison, trial: Trial, eager: Any) -> bool:
        batch, padding = batch_of(trial, self._runner.target), poisoned_padding(trial, self._runner.target)

        def run_again() -> Comparison:
            self._put_back()
            return compare(eager, self._runner.eager_padded(batch, padding), self._tolerance)

        return self._found.spread.explains(comparison, run_again)

    def _compare_state(self, verdict: BucketVerdict, eager: Snapshot, replayed: Snapshot) -> None:
        known = {change.path for change in verdict.state_changes}
        for change in changes(eager, replayed):
            if change.path not in known and not self._is_near(change):
                verdict.state_changes.append(change)


def _kept(output: Any) -> Any:
    return map_tensors(torch.clone, output)
