"""Axes of plots: a label is the whole number, and there are some."""

from __future__ import annotations

import itertools

import pytest

from bcg.buckets import engine_ladder
from bcg_cli.views.axes import log_axis, token_axis, unit_of


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ((7.3, 350.0), ["1", "2", "5", "10", "20", "50", "100", "200", "500", "1,000", "2,000", "5,000"]),
        ((0.4, 170.0), ["0.1", "1", "10", "100", "1,000"]),
        ((1.64, 5.18), ["1", "2", "3", "4", "5", "6", "7"]),
        ((1.71, 1.75, 1.72), ["1.7", "1.72", "1.74", "1.76", "1.78"]),
        ((11.0,), ["10", "15", "20"]),
        ((), None),
        ((0.0, 5e-324), None),
    ],
)
def test_labels_of_magnitudes(values: tuple[float, ...], labels: list[str] | None) -> None:
    assert log_axis("ms", values).get("ticktext") == labels


@pytest.mark.parametrize("values", [(1e-307, 1.0), (1.0, 1.7e308), (1.7e308,), (1e-307,)])
def test_any_number_has_labels(values: tuple[float, ...]) -> None:
    assert 1 <= len(log_axis("ms", values)["ticktext"]) <= 12


def test_token_counts_are_labelled_themselves() -> None:
    assert token_axis([2**20, 16, 1024])["ticktext"] == ["16", "1,024", "1,048,576"]
    assert len(token_axis(range(1, 100))["ticktext"]) <= 13


def test_labels_of_many_token_counts_keep_their_distance() -> None:
    shown = token_axis(engine_ladder())["tickvals"]
    assert (shown[0], shown[-1]) == (4, 4096)
    assert 8 <= len(shown) <= 13
    assert all(high / low >= 1.7 for low, high in itertools.pairwise(shown))


@pytest.mark.parametrize(
    ("sizes", "unit"),
    [((), "KiB"), ((None, 0, 700), "KiB"), ((200, 2**20 - 1), "KiB"), ((2**20,), "MiB"), ((-(2**35), 1), "GiB")],
)
def test_sizes_are_shown_in_a_unit_of_few_digits(sizes: tuple[int | None, ...], unit: str) -> None:
    assert unit_of(sizes).name == unit
    assert unit_of(sizes).values([None, 0]) == [None, 0]
