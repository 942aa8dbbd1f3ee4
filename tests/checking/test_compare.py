"""Two results compared: what counts as a match."""

from __future__ import annotations

import pytest
import torch

from bcg.checking.compare import Tolerance, compare, has_numbers


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


def test_complex_numbers_match_within_what_their_parts_may_differ_by() -> None:
    ones = torch.tensor([1 + 1j, 2 - 1j])
    assert compare(ones, ones * (1 + 1e-7), Tolerance()).within
    found = compare(ones, ones + torch.tensor([0, 0.5j]), Tolerance())
    assert (found.within, found.max_abs_error, found.max_rel_error) == (False, 0.5, 0.25)
    assert has_numbers([ones]) and not has_numbers([ones * float("nan")])
