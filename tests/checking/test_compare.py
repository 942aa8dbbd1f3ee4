"""Two results compared: what counts as a match."""

from __future__ import annotations

import copy
from typing import Any

import numpy
import pytest
import torch

from bcg.checking.compare import Tolerance, are_near, compare, has_numbers
from bcg.nearness import distance, largest_ordinary


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


@pytest.mark.parametrize("fill", [torch.finfo(torch.float32).min, -1e9, 1e4])
def test_numbers_that_fill_a_place_hide_nothing(fill: float) -> None:
    """Logits of which some are masked: their huge numbers say nothing about how far the others may be off."""
    logits = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    logits[:, 3] = fill
    logits[2, 5] = 2.0
    off, near, moved = logits.clone(), logits * (1 + 1e-7), logits.clone()
    off[2, 5], moved[1, 3], near[:, 3] = 4.7, fill * (1 - 1e-6), fill
    found = compare(logits, off, Tolerance())
    assert not found.within and found.max_rel_error > 0.1
    assert not are_near(logits, off)
    assert compare(logits, near, Tolerance()).within and are_near(logits, near)
    assert compare(logits, moved, Tolerance(rtol=1e-5)).within and are_near(logits, moved)


def test_large_numbers_of_all_sizes_are_no_fill() -> None:
    values = torch.logspace(-3, 6, 500)
    assert compare(values, values + 0.5, Tolerance()).within
    assert largest_ordinary(values.double()) == pytest.approx(1e6)
    assert largest_ordinary(torch.tensor([1.0, 3.0, 1e9, 1e20]).double()) == 3.0


def test_infinities_at_the_same_places_are_near_and_others_are_not() -> None:
    masked = torch.tensor([1.0, float("-inf"), 2.0, float("nan")])
    other = torch.tensor([1.0, float("-inf"), float("nan"), float("nan")])
    assert are_near(masked, masked + 0.0)
    assert not are_near(masked, other) and not compare(masked, other, Tolerance()).within
    assert not are_near(masked, -masked)


def test_whole_numbers_are_near_only_where_they_are_equal() -> None:
    numbers = torch.arange(1000, 2000)
    assert are_near(numbers, numbers.clone())
    assert not are_near(numbers, torch.where(numbers == 1500, 1501, numbers))


def test_anything_is_infinitely_far_from_nothing() -> None:
    assert distance(torch.zeros(4), torch.ones(4)) == float("inf")
    assert distance(torch.zeros(4), torch.zeros(4)) == 0.0
