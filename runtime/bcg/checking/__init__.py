"""Is replay equal to eager, and what is wrong when it isn't?

The package is called `checking` because the public function is `bcg.check`: a package of that name would hide it.
"""

from bcg.checking.checkup import UnfinishedCheckError, assert_graph_safe, check
from bcg.checking.compare import Tolerance
from bcg.checking.outcome import failure_of
from bcg.checking.ranks import check_ranks
from bcg.checking.verdicts import BucketVerdict, Verification
from bcg.checking.verification import verify

__all__ = [
    "BucketVerdict",
    "Tolerance",
    "UnfinishedCheckError",
    "Verification",
    "assert_graph_safe",
    "check",
    "check_ranks",
    "failure_of",
    "verify",
]
