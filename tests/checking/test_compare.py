"""Two results compared: what counts as a match."""

from __future__ import annotations

import pytest
import torch

from bcg.checking.compare import Tolerance, compare


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_integers_match_by_their_bits_alone(dtype: torch.dtype) -> None:
    ones, others = torch.tensor([1, 0]).to(dtype), torch.tensor([1, 1]).to(dtype)
    assert compare(ones, ones.clone(), Tolerance()).bitwise
    found = compare(ones, others, Tolerance())
    assert (found.bitwise, found.within, found.max_abs_error) == (False, False, 1.0)


def test_integers_that_are_too_large_for_a_double_still_differ() -> None:
    large = torch.tensor([2**60, 5])
    found = compare(large, large + torch.tensor([1, 0]), Tolerance())
    assert (found.within, found.max_abs_error) == (False, 1.0)
    assert compare(large, large + 1, Tolerance(atol=1.0)).within
    assert not compare(large, large + 2, Tolerance(atol=1.0)).within
