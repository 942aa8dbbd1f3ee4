"""Sizes as the user writes them."""

from __future__ import annotations

import pytest

from bcg.errors import UsageError
from bcg.sizes import parse_bytes


@pytest.mark.parametrize(
    ("text", "size"), [("2GiB", 2 * 2**30), ("500 MB", 500 * 10**6), ("1073741824", 2**30), ("0.5gib", 2**29)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "0", "-1GiB", "nan", "inf", "1e400", "2 XiB", "2GiBB"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match="is no size in bytes$"):
        parse_bytes(text)


def test_a_kilobyte_is_a_thousand_bytes() -> None:
    assert (parse_bytes("2KB"), parse_bytes("2KiB")) == (2000, 2048)
