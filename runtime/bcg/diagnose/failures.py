"""A failed capture, explained by what a survey finds."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import msgspec

from bcg.diagnose.cards import card_of_error
from bcg.diagnose.search import UncapturableError, diagnose
from bcg.errors import BcgError, CaptureError
from bcg.report import Card
from bcg.target import Target


@contextlib.contextmanager
def failures_explained(target: Target, buckets: Sequence[int]) -> Iterator[None]:
    """Let a `CaptureError` of the block carry a diagnosis card for each cause that is found.

    Raises:
        UncapturableError: In place of the capture's own error, which is its cause.
    """
    try:
        yield
    except UncapturableError:
        raise
    except CaptureError as error:
        card = card_of_error(error)
        try:
            cards = diagnose(target, buckets)
        except (BcgError, RuntimeError):
            cards = []  # the forward itself fails: the first error says all that is known
        explained = UncapturableError(error.message, _with(card, cards), hint=error.hint)
        explained.place, explained.hazard = error.place, error.hazard or explained.hazard
        explained.driver_text = error.driver_text
        raise explained from error


def _with(card: Card | None, cards: list[Card]) -> list[Card]:
    """Put the card of the failure first; where the survey has one of the same line, that one gets the driver's text."""
    if card is None:
        return cards
    if all(card.source_line != other.source_line for other in cards):
        return [card, *cards]
    return [
        msgspec.structs.replace(other, driver_text=card.driver_text) if other.source_line == card.source_line else other
        for other in cards
    ]
