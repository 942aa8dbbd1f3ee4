"""Two results compared: what counts as a match."""

from __future__ import annotations

import copy
from typing import Any

import numpy
import pytest
import torch

from bcg.checking.compare import Tolerance, are_near, compare, has_numbers


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


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1.5, 2.0),
        (3, 4),
        ("layer3", "layer4"),
        (True, 1.5),
        (torch.Size([3, 4]), torch.Size([4, 4])),
        (numpy.arange(3), numpy.arange(4)),
        ({"a": 1}, {"b": 1}),
        ([1], [1, 2]),
        (None, 0),
    ],
)
def test_what_stands_beside_the_tensors_counts(one: Any, other: Any) -> None:
    tensor = torch.ones(2)
    for compared in (lambda a, b: compare(a, b, Tolerance(rtol=1.0)).within, are_near):
        assert compared((tensor, one), (tensor, copy.deepcopy(one)))
        assert not compared((tensor, one), (tensor, other))


def test_numbers_that_are_nan_and_objects_that_nobody_looks_into_are_the_same() -> None:
    tensor, nan = torch.ones(2), float("nan")
    assert compare((tensor, nan, object()), (tensor, float("nan"), object()), Tolerance()).bitwise
    assert compare({"y": tensor}, {"y": tensor}, Tolerance()).bitwise


def test_another_dtype_is_not_near() -> None:
    assert not are_near(torch.ones(2), torch.ones(2, dtype=torch.float16))
