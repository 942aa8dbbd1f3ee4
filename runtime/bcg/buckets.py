"""Buckets: the token counts that are captured, and the one that a batch is padded to."""

from __future__ import annotations

import operator
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import chain

from bcg.errors import UsageError

MAX_TOKENS = 1_048_576
"""Above this a token count is taken for a typing error."""

DEFAULT_BUCKETS_HOST = (4, 8, 16, 32)
DEFAULT_BUCKETS_GPU = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)

_HINT = "give token counts separated by commas, such as --tokens 16,32,64"


def default_buckets(device_type: str, max_tokens: int | None = None) -> tuple[int, ...]:
    """Returns the buckets for a device when the user names none.

    Args:
        device_type: As in `torch.device.type`; ``"cpu"`` is the host device.
        max_tokens: The most that the model takes.

    Returns:
        Ascending token counts: few and small on the host, nine up to 4096 on a GPU; those that the model takes, or
        its own limit where it takes none of them.
    """
    buckets = DEFAULT_BUCKETS_HOST if device_type == "cpu" else DEFAULT_BUCKETS_GPU
    if max_tokens is None:
        return buckets
    return tuple(bucket for bucket in buckets if bucket <= max_tokens) or (max_tokens,)


def engine_ladder() -> tuple[int, ...]:
    """Returns the 49 token counts from 4 to 4096 that serving engines capture by default for prefill."""
    return tuple(
        chain(
            range(4, 33, 4),
            range(48, 257, 16),
            range(288, 513, 32),
            range(640, 1025, 64),
            range(1280, 4097, 256),
        )
    )


def parse_buckets(text: str) -> tuple[int, ...]:
    """Reads a list of token counts such as ``"16,32,64"``.

    Args:
        text: Token counts separated by commas, in any order.

    Returns:
        The token counts, ascending.

    Raises:
        UsageError: One of them is empty, not a whole number, below 1, given twice, or above `MAX_TOKENS`.
    """
    return check_buckets([_parse_count(part) for part in text.split(",")])


def token_counts(buckets: Iterable[int]) -> list[int]:
    """Returns what a caller gave as token counts as a list of numbers.

    Raises:
        UsageError: They are no whole numbers.
    """
    try:
        return [operator.index(count) for count in buckets]
    except TypeError as error:
        raise UsageError(f"buckets must be whole numbers in a list, got {buckets!r}", hint="such as [8, 16]") from error


def check_buckets(buckets: Sequence[int]) -> tuple[int, ...]:
    """Returns the buckets ascending, or says what is wrong with them.

    Raises:
        UsageError: There are none, or one is below 1, given twice, or above `MAX_TOKENS`.
    """
    if not buckets:
        raise UsageError("no token counts were given", hint=_HINT)
    seen: set[int] = set()
    for count in buckets:
        if count < 1:
            raise UsageError(f"a token count must be at least 1, got {count}", hint=_HINT)
        if count > MAX_TOKENS:
            raise UsageError(f"a token count must be at most {MAX_TOKENS:,}, got {count:,}", hint=_HINT)
        if count in seen:
            raise UsageError(f"token count {count} is given twice", hint="name each token count once")
        seen.add(count)
    return tuple(sorted(seen))


def pick_bucket(num_tokens: int, buckets: Sequence[int]) -> int | None:
    """Returns the smallest bucket that holds `num_tokens`, or None above the largest.

    Args:
        num_tokens: Real tokens of a batch.
        buckets: Ascending token counts.
    """
    index = bisect_left(buckets, num_tokens)
    return buckets[index] if index < len(buckets) else None


def _parse_count(part: str) -> int:
    word = part.strip()
    digits = word.removeprefix("-").removeprefix("+")
    if not (digits.isascii() and digits.isdigit()):
        raise UsageError(f"a token count must be a whole number, got {_shorten(word)!r}", hint=_HINT)
    if word.startswith("-"):
        raise UsageError(f"a token count must be at least 1, got {_shorten(word)}", hint=_HINT)
    if len(digits.lstrip("0")) > len(str(MAX_TOKENS)):
        raise UsageError(f"a token count must be at most {MAX_TOKENS:,}, got {_shorten(word)}", hint=_HINT)
    return int(word)


def _shorten(word: str) -> str:
    return word if len(word) <= 24 else f"{word[:20]}…"
