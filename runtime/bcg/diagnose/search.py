"""Automatic breaks: the smallest ones that help, each shown to be right by replays with other inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bcg.device import find_device
from bcg.diagnose.attempt import Outcome, attempt, finding_of
from bcg.diagnose.cards import cards_of, row_of
from bcg.diagnose.elsewhere import Elsewhere
from bcg.diagnose.passes import runnable, survey_all
from bcg.diagnose.remedies import Remedies, Remedy, remedies_for
from bcg.diagnose.survey import Finding
from bcg.errors import CaptureError
from bcg.report import AutomaticBreak, Card
from bcg.runner import GraphRunner
from bcg.target import Target

_SIZES = ("pin", "operation", "function", "module")
MAX_ROUNDS = 200
"""Surveys before the search is given up: far more than any model needed."""


class UncapturableError(CaptureError):
    """A forward can't be captured as it is, and no break below the root helps.

    Attributes:
        cards: What was found, one card a cause.
    """

    def __init__(self, message: str, cards: Sequence[Card], *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint, hazard=cards[0].hazard if cards else None)
        self.cards = list(cards)


@dataclass(frozen=True)
class Diagnosis:
    """What the passes before a capture found.

    Attributes:
        automatic_breaks: Breaks and pins that are in effect now, each with its reason.
        cards: What is no obstacle but may make a replay wrong.
        num_trials: Captures that were tried and replayed.
        doubt: Why their replays could not show that the breaks are right; empty where they did.
    """

    automatic_breaks: list[AutomaticBreak] = field(default_factory=list)
    cards: list[Card] = field(default_factory=list)
    num_trials: int = 0
    doubt: str = ""


def diagnose(target: Target, buckets: Sequence[int]) -> list[Card]:
    """Survey a target at its smallest and largest bucket; change nothing.

    Returns:
        A card for everything that can't be captured or would be frozen.
    """
    findings, cards = survey_all(target, runnable(target, _ends(buckets)))
    return cards_of(findings) + cards


def break_where_needed(
    target: Target,
    buckets: Sequence[int],
    on_step: Callable[[str], None] = lambda _: None,
    *,
    always_try: bool = False,
    failure: CaptureError | None = None,
) -> Diagnosis:
    """Find what can't be captured, and put breaks around it, the smallest that replay right.

    A survey of the eager forward finds the places; each gets its smallest remedy (a pin, a break the size of an
    operation, a function, a module, a parent module). The target is then captured at its smallest and largest bucket
    and replayed with other inputs, in a child process where that could cost this one its device; if it fails, the
    places get their next size. Breaks are left in effect on the target.

    Args:
        target: What is to be captured.
        buckets: Token counts that will be captured.
        on_step: Told what happens next.
        always_try: Capture and replay even where the survey finds nothing.
        failure: Why a capture failed, if one did: where it names a module, that counts as found.

    Raises:
        UncapturableError: No break below the root helps.
    """
    sizes = runnable(target, _ends(buckets))
    with Elsewhere(target) as elsewhere:
        search = _Search(target, elsewhere)
        if failure is not None:
            search.add([finding_of(failure, target)])
        for _ in range(MAX_ROUNDS):
            on_step("looking for what can't be captured")
            findings, cards = survey_all(target, sizes)
            if search.add(findings):
                continue
            if not sizes:
                return Diagnosis(cards=cards)
            if not search.remedies.chosen and not always_try:
                if search.rehearse(sizes[0]):
                    return Diagnosis(cards=cards)
                continue
            on_step("trying automatic breaks")
            outcome = search.trial(sizes)
            if outcome.reason is None:
                return Diagnosis(search.rows(outcome.doubt), cards, search.num_trials, outcome.doubt)
            search.escalate(outcome.reason)
        raise search.given_up("the search for automatic breaks does not end")


def break_where_found(target: Target, look: Callable[[], Sequence[Finding]], doubt: str) -> list[AutomaticBreak]:
    """Put breaks around what `look` finds, the smallest with which it finds nothing any more; try none of them.

    Args:
        target: Gets the breaks.
        look: Follows the forward, with the breaks that it has now.
        doubt: Why nothing is tried.

    Raises:
        UncapturableError: No break below the root helps.
    """
    search = _Search(target, Elsewhere(target))
    for _ in range(MAX_ROUNDS):
        if not search.add(look()):
            return search.rows(doubt)
    raise search.given_up("the search for automatic breaks does not end")


def load_with_breaks(
    load: Callable[[bool], Target],
    buckets_for: Callable[[Target], Sequence[int]],
    attention_break: bool,
    fewest_breaks: bool,
    on_step: Callable[[str], None] = lambda _: None,
) -> tuple[Target, Diagnosis]:
    """Load a target and put breaks where it needs them.

    Args:
        load: Makes the target, with or without the attention break.
        buckets_for: Token counts that will be captured.
        attention_break: Whether attention is a break.
        fewest_breaks: Leave the attention break out where captures without it replay right and keep requests apart.
        on_step: Told what happens next.

    Raises:
        UncapturableError: No break below the root helps.
    """
    if fewest_breaks and attention_break:
        found = _without_attention_break(load(False), buckets_for, on_step)
        if found is not None:
            return found
    target = load(attention_break)
    return target, break_where_needed(target, buckets_for(target), on_step)


def _without_attention_break(
    target: Target, buckets_for: Callable[[Target], Sequence[int]], on_step: Callable[[str], None]
) -> tuple[Target, Diagnosis] | None:
    if not target.packs_requests:
        return None
    try:
        found = break_where_needed(target, buckets_for(target), on_step, always_try=True)
    except UncapturableError:
        return None
    return None if found.doubt else (target, found)


def _ends(buckets: Sequence[int]) -> list[int]:
    return sorted({min(buckets), max(buckets)})


class _Search:
    """The state of one search: for each site its remedies, and which of them is tried now.

    Args:
        target: Gets the remedies.
        elsewhere: Where they are tried, if that can be.
    """

    def __init__(self, target: Target, elsewhere: Elsewhere) -> None:
        self.remedies = Remedies(target)
        self.num_trials = 0
        self._failure: Finding | None = None
        self._target = target
        self._elsewhere = elsewhere
        self._findings: dict[tuple[str, str, str], Finding] = {}
        self._levels: dict[tuple[str, str, str], int] = {}
        self._causes: dict[tuple[str, str, str], Finding] = {}

    def add(self, findings: Sequence[Finding]) -> bool:
        """Give new findings their first remedy, and those that were not helped their next; tell if any was there."""
        in_effect = set(self.remedies.chosen)
        for finding in findings:
            self._causes.setdefault(finding.site, finding)
            if self._is_covered(finding, in_effect):
                continue
            if finding.site in self._findings:
                self._levels[finding.site] += 1
            else:
                helpless = [remedy in in_effect for remedy in remedies_for(finding)]
                self._findings[finding.site], self._levels[finding.site] = finding, helpless.count(True)
            self._check(finding.site)
            self._choose()
        return bool(findings)

    def _is_covered(self, finding: Finding, in_effect: set[Remedy]) -> bool:
        """Whether a remedy that an earlier finding of the same survey got also helps with this one."""
        if finding.site in self._findings:
            return False
        new = set(self.remedies.chosen) - in_effect
        return any(remedy in new for remedy in remedies_for(finding))

    def _check(self, site: tuple[str, str, str]) -> None:
        if self._levels[site] >= len(remedies_for(self._findings[site])):
            raise self.given_up("only the root module is around it", self._findings[site])

    def _remedy(self, site: tuple[str, str, str]) -> Remedy:
        return remedies_for(self._findings[site])[self._levels[site]]

    def _choose(self) -> None:
        self.remedies.choose(list(dict.fromkeys(self._remedy(site) for site in self._findings)))

    def rehearse(self, tokens: int) -> bool:
        """Capture the smallest bucket where only a capture shows what can't be: return whether it can, or must do.

        A kernel wrapper that synchronizes is such a thing; the recorder of the host sees all that it would refuse.
        It stays in this process: without remedies it does nothing that the capture proper would not do anyway.
        """
        if find_device(self._target.device).needs_tape or self._target.alignment is not None:
            return True
        runner = GraphRunner(self._target)
        try:
            runner.capture([tokens])
        except CaptureError as error:
            finding = finding_of(error, self._target)
            if not finding.modules:
                return True  # the capture proper will fail in the same way, and be explained
            self.add([finding])
            return False
        finally:
            runner.reset()
        return True

    def trial(self, sizes: Sequence[int]) -> Outcome:
        """Capture and replay with other inputs."""
        self.num_trials += 1
        outcome = self._elsewhere.attempt(self.remedies.chosen, sizes) or attempt(self._target, sizes)
        self._failure = outcome.failure
        return outcome

    def escalate(self, reason: str) -> None:
        """Give the site that a failed capture names its next remedy, or the sites with the smallest ones theirs."""
        failure, self._failure = self._failure, None
        if failure is not None and failure.modules:
            self.add([failure])
            return
        open_sites = [
            site for site, finding in self._findings.items() if self._levels[site] + 1 < len(remedies_for(finding))
        ]
        if not open_sites:
            raise self.given_up(reason)
        smallest = min(_SIZES.index(self._remedy(site).size) for site in open_sites)
        for site in open_sites:
            if _SIZES.index(self._remedy(site).size) == smallest:
                self._levels[site] += 1
        self._choose()

    def given_up(self, reason: str, finding: Finding | None = None) -> UncapturableError:
        findings = [finding] if finding is not None else list(self._findings.values())
        first = f": {findings[0].operation} at {findings[0].source}: {findings[0].reason}" if findings else ""
        return UncapturableError(
            f"{self._target.name} can't be captured{first}, and no automatic break helps: {reason}",
            cards_of(findings),
            hint="change the code as the card says, or name a larger --break",
        )

    def rows(self, doubt: str = "") -> list[AutomaticBreak]:
        """Describe the remedies that are in effect and not inside another one, each with all that it helps with."""
        helped: dict[Remedy, list[Finding]] = {}
        for finding in self._causes.values():
            around = [remedy for remedy in remedies_for(finding) if remedy in self.remedies.chosen]
            if around:
                helped.setdefault(around[-1], []).append(finding)
        return [row_of(remedy, findings, self._target, doubt) for remedy, findings in helped.items()]
