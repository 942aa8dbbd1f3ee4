"""How far eager is from itself: a replay that is as near to eager proves nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from bcg.checking.compare import Comparison

_NUM_DOUBTS = 4


@dataclass
class Spread:
    """Largest relative differences between two eager runs of one batch; 0 where they agree bitwise.

    Attributes:
        largest: Infinite where one run had NaN and the other had not.
        largest_finite: Of the others: a value that is NaN now and then explains no other one that is merely off.
    """

    largest: float = 0.0
    largest_finite: float = 0.0

    def widen(self, comparison: Comparison) -> None:
        """Take in two more eager runs."""
        self.largest = max(self.largest, comparison.max_rel_error)
        if math.isfinite(comparison.max_rel_error):
            self.largest_finite = max(self.largest_finite, comparison.max_rel_error)

    def explains(self, difference: Comparison, run_again: Callable[[], Comparison]) -> bool:
        """Tell whether eager differs from itself about as much; in doubt it is run a few times more.

        Args:
            difference: Of a result from eager.
            run_again: Runs the same batch eagerly once more, and compares it with eager's first run.
        """
        for _ in range(_NUM_DOUBTS):
            self.widen(run_again())
        return self.covers(difference)

    def covers(self, difference: Comparison) -> bool:
        """Tell whether eager was seen to differ from itself about as much."""
        distance = difference.max_rel_error
        return self.largest > 0 and distance <= 4 * (self.largest_finite if math.isfinite(distance) else self.largest)
