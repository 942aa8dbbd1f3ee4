from __future__ import annotations

import threading

import pytest
import torch

from bcg.context import ForwardContext, check_fits, current_forward_context, forward_context
from bcg.errors import ReplayError


def test_numbers_of_a_packed_batch() -> None:
    context = ForwardContext((3, 1, 5))
    assert context.num_tokens == 9
    assert context.max_length == 5
    assert context.offsets() == (0, 3, 4, 9)


def test_cu_seqlens_are_made_once_per_context() -> None:
    context = ForwardContext((3, 1, 5))
    first = context.cu_seqlens("cpu")
    assert first.dtype == torch.int32
    assert first.tolist() == [0, 3, 4, 9]
    assert context.cu_seqlens(torch.device("cpu")) is first
    assert ForwardContext((3, 1, 5)).cu_seqlens("cpu") is not first


@pytest.mark.parametrize("lengths", [(), (3, 0), (-1,)])
def test_empty_requests_are_refused(lengths: tuple[int, ...]) -> None:
    with pytest.raises(ReplayError, match="^a forward context needs requests of at least one token"):
        ForwardContext(lengths)


def test_context_is_there_inside_the_block_only_and_after_an_error() -> None:
    outer, inner = ForwardContext((1,)), ForwardContext((2,))
    with forward_context(outer):
        with pytest.raises(KeyError), forward_context(inner):
            assert current_forward_context() is inner
            raise KeyError
        assert current_forward_context() is outer
    assert current_forward_context() is None


def test_context_is_per_thread() -> None:
    seen = []
    with forward_context(ForwardContext((1,))):
        thread = threading.Thread(target=lambda: seen.append(current_forward_context()))
        thread.start()
        thread.join()
    assert seen == [None]


def test_extras_are_an_open_record() -> None:
    context = ForwardContext((4,), extras={"block_table": "mine"})
    assert context.extras["block_table"] == "mine"


def test_context_larger_than_the_rows_is_refused() -> None:
    check_fits(ForwardContext((4, 4)), 8)
    with pytest.raises(ReplayError, match="^the forward context describes 9 tokens in 2 requests, .* only 8 rows"):
        check_fits(ForwardContext((4, 5)), 8)
