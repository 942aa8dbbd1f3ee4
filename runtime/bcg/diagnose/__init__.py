"""What can't be captured or can't be trusted, found before a capture, and the breaks that help."""

from bcg.diagnose.failures import failures_explained
from bcg.diagnose.search import (
    Diagnosis,
    UncapturableError,
    break_where_found,
    break_where_needed,
    diagnose,
    load_with_breaks,
)

__all__ = [
    "Diagnosis",
    "UncapturableError",
    "break_where_found",
    "break_where_needed",
    "diagnose",
    "failures_explained",
    "load_with_breaks",
]
