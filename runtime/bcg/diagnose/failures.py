"""A failed capture, explained by what a survey finds."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from bcg.diagnose.cards import card_of_error
from bcg.diagnose.search import UncapturableError, diagnose
from bcg.errors import BcgError, CaptureError
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
        if card is not None and all(card.source_line != other.source_line for other in cards):
            cards.insert(0, card)
        explained = UncapturableError(error.message, cards, hint=error.hint)
        explained.place, explained.hazard = error.place, error.hazard or explained.hazard
        raise explained from error
