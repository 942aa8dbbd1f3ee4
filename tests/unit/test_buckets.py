"""Reading, checking and picking of buckets."""

from __future__ import annotations

import pytest

from bcg.buckets import (
    MAX_TOKENS,
    check_buckets,
    default_buckets,
    engine_ladder,
    parse_buckets,
    pick_bucket,
)
from bcg.errors import UsageError


def test_buckets_come_back_ascending() -> None:
    assert parse_buckets("64,16, 32") == (16, 32, 64)
    assert parse_buckets("+7") == (7,)
    assert parse_buckets(str(MAX_TOKENS)) == (MAX_TOKENS,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0", "^a token count must be at least 1, got 0$"),
        ("16,-4", "^a token count must be at least 1, got -4$"),
        ("-" + "9" * 400, "^a token count must be at least 1, got -9+…$"),
        ("sixteen", "^a token count must be a whole number, got 'sixteen'$"),
        ("16.0", "^a token count must be a whole number, got '16.0'$"),
        ("1e3", "^a token count must be a whole number, got '1e3'$"),
        ("٣", "^a token count must be a whole number, got '٣'$"),
        ("", "^a token count must be a whole number, got ''$"),
        ("16,,32", "^a token count must be a whole number, got ''$"),
        ("16,32,16", "^token count 16 is given twice$"),
        ("16,016", "^token count 16 is given twice$"),
        ("1048577", "^a token count must be at most 1,048,576, got 1,048,577$"),
        ("9" * 5000, "^a token count must be at most 1,048,576, got 9{20}…$"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        parse_buckets(text)
    assert caught.value.hint


def test_no_bucket_at_all() -> None:
    with pytest.raises(UsageError, match="^no token counts were given$"):
        check_buckets([])


@pytest.mark.parametrize(("num_tokens", "bucket"), [(1, 16), (15, 16), (16, 16), (17, 32), (64, 64), (65, None)])
def test_a_batch_goes_to_the_smallest_bucket_that_holds_it(num_tokens: int, bucket: int | None) -> None:
    assert pick_bucket(num_tokens, (16, 32, 64)) == bucket


def test_no_buckets_hold_nothing() -> None:
    assert pick_bucket(1, ()) is None


def test_default_buckets() -> None:
    assert len(default_buckets("cuda")) == 9
    assert default_buckets("cuda")[-1] == 4096
    assert max(default_buckets("cpu")) <= 64
    for device_type in ("cuda", "cpu"):
        assert check_buckets(default_buckets(device_type)) == default_buckets(device_type)


def test_the_engines_ladder_reaches_its_own_maximum() -> None:
    ladder = engine_ladder()
    assert len(ladder) == 49
    assert (ladder[0], ladder[-1]) == (4, 4096)
    assert check_buckets(ladder) == ladder


def test_default_buckets_keep_within_what_the_model_takes() -> None:
    assert default_buckets("cuda", 512) == (16, 32, 64, 128, 256, 512)
    assert default_buckets("cpu", 3) == (3,)
    assert default_buckets("cpu", 10**6) == default_buckets("cpu")


def test_leading_zeros_count_for_nothing() -> None:
    assert parse_buckets("000000000016") == (16,)
