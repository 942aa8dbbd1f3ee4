"""What random programs found, each as small as it gets."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bcg import BreakableCUDAGraph, BreakableCUDAGraphCapture, eager_on_graph
from bcg.device.host import HostPool


def test_a_capture_writes_in_place_once(device: str) -> None:
    """The host device ran what it recorded, and then replayed it: a cache was written twice at capture."""
    state = torch.ones(4, device=device)
    seen: list[list[float]] = []

    @eager_on_graph
    def look(t: Tensor) -> None:
        seen.append(t.tolist())

    graph = BreakableCUDAGraph(device)
    with BreakableCUDAGraphCapture(graph):
        state.mul_(2)
        look(state)
        state.mul_(3)
    assert seen == [[2.0] * 4]
    assert state.tolist() == [6.0] * 4
    graph.replay()
    assert state.tolist() == [36.0] * 4


def test_a_capture_draws_random_numbers_once() -> None:
    """As above: the host's generator had moved twice as far as in eager."""
    torch.manual_seed(3)
    expected = [torch.rand(4).tolist() for _ in range(3)]
    torch.manual_seed(3)
    graph = BreakableCUDAGraph("cpu")
    with BreakableCUDAGraphCapture(graph):
        drawn = torch.rand(4)
    assert drawn.tolist() == expected[0]
    for numbers in expected[1:]:
        graph.replay()
        assert drawn.tolist() == numbers


def test_free_blocks_can_be_poisoned_after_a_capture_in_inference_mode() -> None:
    """They were inference tensors, which nobody may write outside inference mode."""
    graph = BreakableCUDAGraph("cpu")
    with torch.inference_mode(), BreakableCUDAGraphCapture(graph):
        torch.ones(4) + 1
    assert isinstance(graph.pool, HostPool)
    blocks = graph.pool.free_blocks()
    assert blocks
    for block in blocks:
        block.fill_(255)


@pytest.mark.parametrize("look", [lambda pool: pool.take(64), HostPool.free_blocks], ids=["take", "free_blocks"])
def test_blocks_may_be_given_back_while_free_ones_are_looked_at(look: Callable[[HostPool], object]) -> None:
    """A collective's thread may let go of a tensor at any time: a set changed during iteration; two ranks failed."""
    pool = HostPool()
    held = [pool.take(64) for _ in range(3)]
    held.pop()

    class ReleasedMeanwhile(dict[int, Tensor]):
        def __getitem__(self, address: int) -> Tensor:
            held.clear()
            return super().__getitem__(address)

    pool._blocks = ReleasedMeanwhile(pool._blocks)
    assert look(pool)
    assert held == []


def test_one_operation_may_take_several_parts_of_one_tensor(device: str) -> None:
    """The host device took the second part for the first one, moved to other memory."""
    x = torch.arange(4.0, device=device)
    graph = BreakableCUDAGraph(device)
    with BreakableCUDAGraphCapture(graph):
        y = torch.cat([x[2:], x[:2], x[:0]])
    assert y.tolist() == [2.0, 3.0, 0.0, 1.0]
    x.add_(1)
    graph.replay()
    assert y.tolist() == [3.0, 4.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("reshape", "restore"),
    [
        (lambda t: t.t_(), lambda t: t.t()),
        (lambda t: t.unsqueeze_(0), lambda t: t[0]),
        (lambda t: t.unsqueeze_(2).squeeze_(2), lambda t: t),
    ],
    ids=["t_", "unsqueeze_", "squeeze_"],
)
@pytest.mark.parametrize("is_external", [True, False])
def test_a_tensor_is_reshaped_in_place_once(
    device: str, reshape: Callable[[Tensor], Tensor], restore: Callable[[Tensor], Tensor], is_external: bool
) -> None:
    """Found by hand: the host device turned a tensor again at every replay, and read it as the body had left it."""
    base = torch.arange(6.0, device=device).view(2, 3)
    x = base.view(2, 3)
    graph = BreakableCUDAGraph(device)
    with torch.inference_mode(), BreakableCUDAGraphCapture(graph):
        turned = x if is_external else x + 0
        before = turned.sum(0)
        after = restore(reshape(turned)).sum(0)
    shape = turned.shape
    for _ in range(3):
        base.add_(1)
        graph.replay()
    assert before.tolist() == after.tolist() == base.sum(0).tolist()
    assert turned.shape == shape
