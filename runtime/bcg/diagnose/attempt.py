"""One attempt: a target captured with the breaks that it has now, and replayed with other inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bcg.checking import Verification, verify
from bcg.checking.places import modules_around
from bcg.checking.reasons import reasons
from bcg.diagnose.cards import card_of_error
from bcg.diagnose.survey import Finding
from bcg.distributed.failure import PeerLost
from bcg.errors import BcgError, CaptureError, first_line
from bcg.runner import GraphRunner
from bcg.target import Target


@dataclass(frozen=True)
class Outcome:
    """What came of an attempt.

    Attributes:
        reason: Why it isn't right; None where it is, or where replays can't tell.
        doubt: Why replays can't tell; empty where they can.
        failure: What the capture failed at, if it did.
    """

    reason: str | None
    failure: Finding | None = None
    doubt: str = ""


def attempt(target: Target, sizes: Sequence[int]) -> Outcome:
    """Capture a target at these token counts and replay it with other inputs, in this process.

    Ranks come to the same result: what fails on some of them only, or between them, ends the run.
    """
    runner = GraphRunner(target)
    ranks = target.alignment
    try:
        runner.capture(sizes)
        found = verify(runner, num_rounds=1)
        outcome = Outcome(_disagreement(found), doubt=_doubt(found))
    except CaptureError as error:
        if ranks is not None:
            if error.hazard == "S19" or isinstance(error.__cause__, PeerLost):
                raise
            ranks.meet(error.message)
        outcome = Outcome(error.message, finding_of(error, target))
    except BcgError as error:
        if ranks is not None:
            raise
        outcome = Outcome(error.message)
    finally:
        runner.reset()
    if ranks is None:
        return outcome
    answers = ranks.exchange((outcome.reason, outcome.doubt))
    reasons = [reason for reason, _ in answers if reason is not None]
    doubts = [doubt for _, doubt in answers if doubt]
    return Outcome(next(iter(reasons), None), outcome.failure, next(iter(doubts), ""))


def finding_of(failure: CaptureError, target: Target) -> Finding:
    """Describe what a capture failed at, by its card: the modules around it are what a break may help with."""
    card = card_of_error(failure)
    modules = modules_around(target.module, card.module if card is not None else "")
    return Finding(
        card.hazard if card is not None else "L1",
        card.operation if card is not None else "",
        first_line(failure),
        modules,
        card.source_line if card is not None else "",
        driver_text=card.driver_text if card is not None else "",
    )


def _disagreement(found: Verification) -> str | None:
    """Return how replays differ from eager on the same padded inputs, or None.

    Leaking padding and changed state are the model's own doing: no break was chosen for them.
    """
    for bucket in found.buckets:
        if bucket.errors:
            return bucket.errors[0]
        if bucket.moved:
            return "a tensor that a segment reads was freed or got other memory after the capture"
        if bucket.num_replays and not bucket.num_launches:
            return "no segment is left, everything runs as breaks"
        if bucket.failed:
            return f"replays of {bucket.failed[0].num_tokens} tokens differ from eager"
    return None


def _doubt(found: Verification) -> str:
    """Return why replays can't tell whether they are right, where they can't."""
    unsure = (bucket.tokens for bucket in found.buckets if bucket.verdict == "inconclusive")
    return next((reason for tokens in unsure for reason in reasons(found, tokens)), "")
