"""Why a bucket is no match, in words."""

from __future__ import annotations

import math
from collections.abc import Iterator

from bcg.cards import counted
from bcg.checking.plan import Trial
from bcg.checking.verdicts import Verification

_MAX_ERRORS = 3


def reasons(verification: Verification, tokens: int) -> Iterator[str]:
    """Say in a line each why a bucket is no match."""
    bucket = next(bucket for bucket in verification.buckets if bucket.tokens == tokens)
    yield from list(dict.fromkeys(bucket.errors))[:_MAX_ERRORS]
    if bucket.failed and not bucket.errors:
        trial = bucket.failed[0]
        yield f"replay differs from eager, first with requests of {_lengths(trial.request_lengths)} tokens"
    if bucket.moved:
        yield "it was not replayed: a tensor that the graph reads was freed or got other memory"
    if bucket.leaks:
        yield f"padding reaches real rows in a batch of {_tokens(bucket.leaks[0])}"
    if bucket.resized:
        yield f"in a batch of {_tokens(bucket.resized[0])} real rows depend on how many rows there are"
    if bucket.constants:
        rows = _tokens(bucket.constants[0])
        yield f"in a batch of {rows} the result has something else beside its tensors than a replay returns"
    for change in bucket.state_changes[:3]:
        yield f"replay leaves {change.path} otherwise than eager"
    for path in list(bucket.padded_state)[:3]:
        yield f"padding changes {path}, and a later forward gives something else"
    for path in bucket.kept_outputs[:3]:
        yield f"{path} keeps an output that the next replay overwrites"
    if bucket.verdict == "inconclusive" and not bucket.num_launches:
        yield "no segment was launched"
    for trial in bucket.without_numbers[:1]:
        yield f"eager itself gives nothing but NaN at {_tokens(trial)}"
    if bucket.unsteady:
        trial, distance = max(bucket.unsteady.items(), key=lambda item: item[1])
        yield (
            f"eager differs from itself by {_part(verification.spread.largest)}, replay from eager by "
            f"{_part(distance)} at {_tokens(trial)}"
        )
    yield from dict.fromkeys(bucket.doubts)


def _part(error: float) -> str:
    return f"{error:.1e} of the scale" if math.isfinite(error) else "NaN or infinity"


def _tokens(trial: Trial) -> str:
    return counted(trial.num_tokens, "token")


def _lengths(lengths: tuple[int, ...]) -> str:
    return "+".join(str(length) for length in lengths)
