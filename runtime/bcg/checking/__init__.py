"""Is replay equal to eager, and what is wrong when it isn't?

The package is called `checking` because the public function is `bcg.check`: a package of that name would hide it.
"""

from bcg.checking.check import assert_graph_safe, check
from bcg.checking.compare import Tolerance
from bcg.checking.verify import BucketVerdict, Verification, verify

__all__ = ["BucketVerdict", "Tolerance", "Verification", "assert_graph_safe", "check", "verify"]
