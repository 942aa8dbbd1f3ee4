"""From a verification to a report's rows, its verdict, and what that means as an error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bcg.checking.compare import finite
from bcg.checking.ranks import rank_failure
from bcg.checking.reasons import reasons
from bcg.checking.verdicts import Verification, joined_verdict
from bcg.errors import CheckFailure
from bcg.report import Card, CheckBucket, CheckReport, Divergence, Verdict
from bcg.sweep import BucketCapture


def overall_verdict(verdicts: Sequence[Verdict], cards: Sequence[Card]) -> Verdict:
    """Join verdicts; state that moved on is a mismatch of the whole."""
    return "mismatch" if any(card.hazard == "S13" for card in cards) else joined_verdict(verdicts)


def bucket_row(verification: Verification, result: BucketCapture, divergences: Mapping[int, Divergence]) -> CheckBucket:
    """Describe what was found about a bucket, captured or not."""
    found = next((row for row in verification.buckets if row.tokens == result.tokens), None)
    if found is None:
        return CheckBucket(
            tokens=result.tokens,
            verdict="inconclusive",
            bitwise=False,
            reasons=[f"it was not captured: {result.error or result.status}"],
        )
    comparison = found.comparison
    return CheckBucket(
        tokens=result.tokens,
        verdict=found.verdict,
        bitwise=comparison.bitwise and found.num_replays > 0,
        max_abs_error=finite(comparison.max_abs_error),
        max_rel_error=finite(comparison.max_rel_error),
        num_replays=found.num_replays,
        num_launches=found.num_launches,
        reasons=list(reasons(verification, result.tokens)),
        first_divergence=divergences.get(result.tokens),
    )


def failure_of(report: CheckReport) -> CheckFailure | None:
    """Return what a report's verdict means as an error; None where everything matches."""
    if report.verdict == "match":
        return None
    if (of_ranks := rank_failure(report)) is not None:
        return of_ranks
    wrong = [bucket for bucket in report.buckets if bucket.verdict != "match"]
    all_match = not wrong and (report.prompts is None or report.prompts.verdict == "match")
    what = f"in {len(wrong)} of {len(report.buckets)} buckets" if wrong else "on the prompts"
    reason = next((reason for bucket in wrong for reason in bucket.reasons), "see the report")
    card = next(iter(report.findings), None)
    cause, hint = "", None
    if card is not None:
        where = (f" in {card.module}" if card.module else "") + (f" at {card.source_line}" if card.source_line else "")
        cause, hint = f"{card.title}{where}", card.remedy or None
    if report.verdict == "inconclusive":
        because = f"; {cause}" if cause else ""
        if report.warnings:
            hint = hint or "see the warnings of the report"
        return CheckFailure(f"the check is inconclusive {what}: {reason}{because}", hint=hint)
    if card is not None:
        reason = f"{card.hazard or 'unknown cause'}: {cause}"
    if all_match:
        what = f"all {len(report.buckets)} buckets match, but only from a state that the captures had changed"
        return CheckFailure(f"{what}: {reason}", hint=hint)
    return CheckFailure(f"replay is not eager {what}: {reason}", hint=hint)
