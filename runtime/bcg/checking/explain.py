"""Why replay and eager differ: what a verification found, turned into cards."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bcg.cards import make_card
from bcg.checking.advance import find_advanced
from bcg.checking.cards import (
    constants_card,
    launch_cards,
    leak_card,
    moved_card,
    one_a_line,
    operation_card,
    padded_state_card,
)
from bcg.checking.compare import Tolerance
from bcg.checking.leaks import Leak, LeakSearch
from bcg.checking.locate import Location, locate
from bcg.checking.parting import find_nan, find_parting
from bcg.checking.places import module_line
from bcg.checking.plan import Trial
from bcg.checking.state_cards import advanced_card, pool_cards, state_cards
from bcg.checking.suspects import gather, suspect
from bcg.checking.upkeep import Upkeep, find_upkeep
from bcg.checking.verdicts import Verification, worst_trial
from bcg.checking.warnings import advanced_warning
from bcg.errors import BcgError
from bcg.inputs import MASK
from bcg.report import Card, Divergence, ReportWarning
from bcg.runner import GraphRunner
from bcg.state import ModelState, Snapshot


@dataclass(frozen=True)
class Explanation:
    """What is wrong, and where replay and eager part, by bucket."""

    cards: list[Card] = field(default_factory=list)
    divergences: dict[int, Divergence] = field(default_factory=dict)
    warnings: list[ReportWarning] = field(default_factory=list)


def explain(
    runner: GraphRunner,
    verification: Verification,
    state: ModelState,
    before: Snapshot,
    after: Snapshot,
    tolerance: Tolerance,
    *,
    locates: bool,
    on_step: Callable[[str], None],
) -> Explanation:
    """Name what is wrong: state first, then the cause of other results, then padding.

    Args:
        runner: Whose replays were compared.
        verification: What was found.
        state: The target's.
        before: Saved before the capture.
        after: Saved after it.
        tolerance: As of the verification.
        locates: Capture again to find the first divergence and its cause.
        on_step: Told what happens next.
    """
    return _Explainer(runner, state, tolerance, locates, on_step).run(verification, before, after)


class _Explainer:
    """One run of `explain`."""

    def __init__(
        self,
        runner: GraphRunner,
        state: ModelState,
        tolerance: Tolerance,
        locates: bool,
        on_step: Callable[[str], None],
    ) -> None:
        self._runner = runner
        self._root = runner.target.module
        self._state = state
        self._tolerance = tolerance
        self._locates = locates
        self._on_step = on_step
        self._found = Explanation()

    def run(self, verification: Verification, before: Snapshot, after: Snapshot) -> Explanation:
        root, pool, cards = self._root, self._runner.pool, self._found.cards
        assert pool is not None
        is_sharded = self._runner.target.alignment is not None  # its ranks must run the same forwards
        upkeep = Upkeep() if is_sharded else find_upkeep(self._runner, verification, self._state, after)
        of_state = state_cards(root, verification, after, pool, upkeep)
        advanced = find_advanced(self._runner, self._state, before, after)
        cards += one_a_line(
            [
                *dict.fromkeys([*of_state, *pool_cards(root, verification, upkeep)]),
                *(advanced_card(root, path) for path in advanced.harmful),
            ]
        )
        self._found.warnings.extend(advanced_warning(path) for path in advanced.harmless)
        told = {(card.hazard, card.module) for card in cards if card.hazard in ("S8", "S12")}
        results = self._explain_results(verification, state_is_told=any(card.hazard == "S12" for card in cards))
        cards += [card for card in results if (card.hazard, card.module) not in told]
        padded = {path: trial for bucket in verification.buckets for path, trial in bucket.padded_state.items()}
        if not cards:  # state that replays leave otherwise shows so too
            cards += [padded_state_card(root, path, trial) for path, trial in padded.items()]
        cards += launch_cards(root, verification)
        return self._found

    def _explain_results(self, verification: Verification, *, state_is_told: bool) -> list[Card]:
        moved = next((found for bucket in verification.buckets for found in bucket.moved.values()), None)
        if moved is not None:
            return [moved_card(self._root, self._state, *moved)]
        for bucket in verification.buckets:
            if bucket.errors:
                module, line = bucket.place.module or "", bucket.place.source or ""
                return [make_card(bucket.hazard or "", bucket.errors[0], module=module, source_line=line)]
        failed = worst_trial([trial for bucket in verification.buckets for trial in bucket.failed])
        if failed is not None:
            return self._explain_mismatch(failed, state_is_told)
        for by_size in (False, True):
            trials = [
                trial for bucket in verification.buckets for trial in (bucket.resized if by_size else bucket.leaks)
            ]
            if (leak := worst_trial(trials)) is not None:
                return [self._explain_leak(leak, by_size, len(trials))]
        if any(bucket.constants for bucket in verification.buckets):
            return [constants_card(self._root)]
        return self._explain_doubt(verification)

    def _explain_mismatch(self, trial: Trial, state_is_told: bool) -> list[Card]:
        if not self._locates:
            return [make_card("", f"replay differs from eager in the bucket of {trial.tokens}")]
        self._on_step(f"locating, {trial.tokens} tokens")
        base = self._state.save()
        buckets: Sequence[int] = list(self._runner.graphs)
        try:
            location = locate(self._runner.target, trial, buckets, self._state, base, self._tolerance)
            evidence = gather(self._runner, trial, self._state, base)
        except BcgError as error:
            self._state.restore(base)
            title = f"replay differs from eager, and it could not be located: {error.message}"
            return [make_card("", title)]
        if location.divergence is not None:
            self._found.divergences[trial.tokens] = location.divergence
        card = None if state_is_told and evidence.follows_state else suspect(evidence)
        if card is None and state_is_told:
            return []
        return [card or self._unexplained(trial, location)]

    def _unexplained(self, trial: Trial, location: Location) -> Card:
        if location.divergence is None:
            return make_card(
                "", f"replay differs from eager in the bucket of {trial.tokens}, but no more once captured again"
            )
        module = location.culprit
        title = "the first module that gives something else in replay; nothing frozen was found in it"
        return make_card("", title, module=module, source_line=module_line(self._root, module))

    def _explain_doubt(self, verification: Verification) -> list[Card]:
        """Say what makes eager differ from itself, or give NaN."""
        unsteady = worst_trial([trial for bucket in verification.buckets for trial in bucket.unsteady])
        empty = worst_trial([trial for bucket in verification.buckets for trial in bucket.without_numbers])
        trial = unsteady or empty
        if trial is None or not self._locates:
            return []
        self._on_step(f"eager, {trial.num_tokens} tokens")
        find = find_nan if unsteady is None else find_parting
        found = find(self._runner, trial, self._state, self._state.save())
        if found is None:
            return []
        return [operation_card(self._root, found.hazard, found.title, found.operation, remedy=found.remedy)]

    def _explain_leak(self, trial: Trial, by_size: bool, num_trials: int) -> Card:
        leak = Leak()
        if self._locates:
            self._on_step(f"locating, {trial.tokens} tokens")
            search = LeakSearch(self._runner, trial, self._state, self._state.save(), self._tolerance, by_size=by_size)
            leak = search.find()
        return leak_card(self._root, trial, leak, by_size, num_trials, could_mask=self._could_mask())

    def _could_mask(self) -> bool:
        """Tell whether the forward would take a mask that its inputs don't have."""
        given = {spec.name for spec in self._runner.target.input_specs}
        return MASK in inspect.signature(self._root.forward).parameters and MASK not in given
