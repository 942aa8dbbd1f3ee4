"""What breaks are given is at replay what eager would give them, or the capture says that it can't be."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bcg import BreakableCUDAGraph, BreakableCUDAGraphCapture, CaptureError, eager_on_graph


def test_one_tensor_given_twice_is_one_at_replay(device: str) -> None:
    x = torch.ones(4, device=device)
    graph = BreakableCUDAGraph(device)
    told = eager_on_graph(lambda one, others: one * (2 if one is others["other"] else 3))
    with torch.inference_mode(), BreakableCUDAGraphCapture(graph):
        h = x + 1
        y = told(h, {"other": h}) + 0
        z = told(h, {"other": x + 1}) + 0
    x.fill_(3)
    graph.replay()
    assert (y.tolist(), z.tolist()) == ([8.0] * 4, [12.0] * 4)


def test_attention_of_torchs_own_takes_the_same_path_at_replay(device: str) -> None:
    """It asks whether query, key and value are one tensor."""
    attention = nn.MultiheadAttention(16, 4, batch_first=True, device=device).eval()
    attend = eager_on_graph(lambda q, k, v: attention(q, k, v, need_weights=False)[0])
    x = torch.randn(1, 8, 16, device=device)
    graph = BreakableCUDAGraph(device)
    with torch.inference_mode(), BreakableCUDAGraphCapture(graph):
        h = x + 1
        y = attend(h, h, h) + 0
    x.normal_()
    graph.replay()
    with torch.inference_mode():
        h = x + 1
        assert torch.equal(y, attend(h, h, h))


@pytest.mark.parametrize("value", ["tensor", "number"])
def test_an_object_that_segments_change_between_breaks_is_refused(device: str, value: str) -> None:
    x = torch.ones(4, device=device)
    doubled = eager_on_graph(lambda state: state.h * state.factor)
    graph = BreakableCUDAGraph(device)
    refused = pytest.raises(CaptureError, match="of the SimpleNamespace that break .*lambda.* was given is another one")
    with refused as caught, torch.inference_mode(), BreakableCUDAGraphCapture(graph):
        state = SimpleNamespace(h=x + 1, factor=2)
        y = doubled(state)
        if value == "tensor":
            state.h = y + 5
        else:
            state.factor = 3
        doubled(state)
    assert caught.value.hazard == "S9"
    assert graph.num_segments == 0


def test_an_object_that_is_changed_after_its_only_break_is_refused(device: str) -> None:
    x = torch.ones(4, device=device)
    graph = BreakableCUDAGraph(device)
    refused = pytest.raises(CaptureError, match="'h' of the SimpleNamespace")
    with refused, torch.inference_mode(), BreakableCUDAGraphCapture(graph):
        state = SimpleNamespace(h=x + 1)
        y = eager_on_graph(lambda state: state.h * 2)(state)
        state.h = y + 5


def test_an_object_that_breaks_change_and_segments_add_to_is_taken(device: str) -> None:
    x = torch.ones(4, device=device)

    @eager_on_graph
    def keep(state: SimpleNamespace, value: Tensor) -> None:
        state.kept = value * 2

    graph = BreakableCUDAGraph(device)
    with torch.inference_mode(), BreakableCUDAGraphCapture(graph):
        state = SimpleNamespace(kept=None, name="a", sizes=(int("4000"), float("nan")))
        keep(state, x + 1)
        y = eager_on_graph(lambda state: state.kept + 1)(state) + 0
        state.name, state.sizes = "".join(["a"]), (int("4000"), float("nan"))  # equal, though not the same objects
        state.result = y
    x.fill_(3)
    graph.replay()
    assert y.tolist() == [9.0] * 4


def test_a_tensor_that_is_reshaped_in_place_after_a_break_had_it_is_refused(device: str) -> None:
    x = torch.ones(2, 3, device=device)
    graph = BreakableCUDAGraph(device)
    refused = pytest.raises(CaptureError, match="^a tensor that break .*lambda.* was given was reshaped in place")
    with refused as caught, torch.inference_mode(), BreakableCUDAGraphCapture(graph):
        y = eager_on_graph(lambda t: t.cumsum(0))(x)
        y.t() + x.t_()
    assert caught.value.hazard == "S9"


def test_a_break_that_reshapes_its_argument_in_place_is_refused(device: str) -> None:
    """A replayed one would reshape what it had reshaped before."""
    x = torch.ones(2, 3, device=device)
    graph = BreakableCUDAGraph(device)
    refused = pytest.raises(CaptureError, match="reshaped in place, by it or after it")
    with refused, torch.inference_mode(), BreakableCUDAGraphCapture(graph):
        eager_on_graph(lambda t: t.t_().cumsum(0))(x + 1) + 1


def test_a_pool_tensor_may_be_reshaped_in_place_after_a_break_had_it(device: str) -> None:
    x = torch.arange(6.0, device=device).reshape(2, 3)
    graph = BreakableCUDAGraph(device)
    with torch.inference_mode(), BreakableCUDAGraphCapture(graph):
        h = x + 1
        sums = eager_on_graph(lambda t: t.cumsum(0))(h)
        y = h.t_() @ sums
    x.fill_(2)
    graph.replay()
    assert y.tolist() == [[27.0] * 3] * 3


def test_what_another_break_changes_in_an_object_is_done_again_at_replay(device: str) -> None:
    x = torch.ones(4, device=device)
    state = SimpleNamespace(count=0, seen=[])

    @eager_on_graph
    def reads(value: SimpleNamespace, t: Tensor) -> Tensor:
        return t * value.count

    @eager_on_graph
    def counts() -> None:
        state.count += 1

    graph = BreakableCUDAGraph(device)
    with torch.inference_mode(), BreakableCUDAGraphCapture(graph):
        counts()
        y = reads(state, x + 1) + 0
        counts()
        z = reads(state, x + 1) + 0
    assert (y.tolist(), z.tolist()) == ([2.0] * 4, [4.0] * 4)
    graph.replay()
    assert (y.tolist(), z.tolist()) == ([6.0] * 4, [8.0] * 4)


class Counted:
    """A plain object whose method is a break that reads nothing of what the forward counts."""

    calls = 0

    @eager_on_graph
    def double(self, t: Tensor) -> Tensor:
        return t * 2

    def __call__(self, t: Tensor) -> Tensor:
        self.calls += 1
        return self.double(t) + 1


def test_what_an_object_counts_for_itself_is_left_alone(device: str) -> None:
    x = torch.ones(4, device=device)
    counted, graph = Counted(), BreakableCUDAGraph(device)
    with torch.inference_mode(), BreakableCUDAGraphCapture(graph):
        y = counted(counted(x + 0))
    x.fill_(2)
    graph.replay()
    assert y.tolist() == [11.0] * 4


def test_an_object_that_can_be_called_is_looked_at_too(device: str) -> None:
    x = torch.ones(4, device=device)
    graph = BreakableCUDAGraph(device)
    doubled = eager_on_graph(lambda state: state.h * 2)
    refused = pytest.raises(CaptureError, match="'h' of the Counted")
    with refused, torch.inference_mode(), BreakableCUDAGraphCapture(graph):
        state = Counted()
        state.h = x + 1  # type: ignore[attr-defined]
        y = doubled(state)
        state.h = y + 5  # type: ignore[attr-defined]
        doubled(state)


@pytest.mark.parametrize("make", [iter, lambda items: map(torch.exp, items), lambda items: (item for item in items)])
def test_what_a_run_uses_up_is_refused(device: str, make: Callable[[list[Tensor]], Any]) -> None:
    x = torch.ones(4, device=device)
    total = eager_on_graph(lambda options: sum(options["items"]), name="total")
    refused = pytest.raises(CaptureError, match="^break total was given a .*, which its first run uses up")
    with refused as caught, torch.inference_mode(), BreakableCUDAGraphCapture(BreakableCUDAGraph(device)):
        total({"items": make([x + 1, x + 2])})
    assert caught.value.hazard == "S9"
    assert caught.value.hint == "give it a list or a tuple"


def test_a_deque_is_what_it_was_when_the_break_got_it(device: str) -> None:
    x = torch.ones(4, device=device)
    graph = BreakableCUDAGraph(device)
    total = eager_on_graph(lambda items: sum(items))
    with torch.inference_mode(), BreakableCUDAGraphCapture(graph):
        items = deque([x + 1, 3])
        y = total(items) + 0
        items.append(4)
        z = total(items) + 0
    x.fill_(3)
    graph.replay()
    assert (y.tolist(), z.tolist()) == ([7.0] * 4, [11.0] * 4)


class Marked(Tensor):
    """A subclass without a dispatch of its own."""


def test_a_tensor_keeps_its_class_and_attributes_for_the_break(device: str) -> None:
    x = torch.ones(4, device=device)
    graph = BreakableCUDAGraph(device)
    told = eager_on_graph(lambda h: torch.Tensor(h) * (2 if isinstance(h, Marked) else 3) * getattr(h, "scale", 1))
    with torch.inference_mode(), BreakableCUDAGraphCapture(graph):
        marked, scaled = (x + 1).as_subclass(Marked), x + 1
        scaled.scale = 5  # type: ignore[attr-defined]
        y, z = told(marked) + 0, told(scaled) + 0
    x.fill_(3)
    graph.replay()
    assert (y.tolist(), z.tolist()) == ([8.0] * 4, [60.0] * 4)


def test_a_segment_does_not_read_what_a_break_put_into_an_object(device: str) -> None:
    """A replayed break puts another tensor there."""

    @eager_on_graph
    def fill(box: SimpleNamespace, h: Tensor) -> None:
        box.value = h * 2

    with (
        pytest.raises(CaptureError, match="reads 'value', which break .*fill exchanges: a replay would read that of"),
        torch.inference_mode(),
        BreakableCUDAGraphCapture(BreakableCUDAGraph(device)),
    ):
        box = SimpleNamespace(value=None)
        fill(box, torch.ones(4, device=device))
        box.value + 1


@pytest.mark.parametrize("place", ["an object in an object", "a list in an object"])
def test_what_is_deep_in_an_object_is_looked_at_too(device: str, place: str) -> None:
    read = eager_on_graph(lambda box: (box.inner.value if place == "an object in an object" else box.value[0]) * 2)
    with (
        pytest.raises(CaptureError, match="that break <lambda> was given is another one afterwards"),
        torch.inference_mode(),
        BreakableCUDAGraphCapture(BreakableCUDAGraph(device)),
    ):
        x = torch.ones(4, device=device)
        box = SimpleNamespace(inner=SimpleNamespace(value=x + 1), value=[x + 1])
        read(box)
        box.inner.value = box.value[0] = x + 2


def test_what_an_object_in_an_object_counts_is_no_error(device: str) -> None:
    read = eager_on_graph(lambda box: box.value * 2)
    x = torch.ones(4, device=device)
    graph = BreakableCUDAGraph(device)
    with torch.inference_mode(), BreakableCUDAGraphCapture(graph):
        box = SimpleNamespace(value=x + 1, inner=SimpleNamespace(num_calls=0, log=[]))
        y = read(box) + 0
        box.inner.num_calls += 1
        box.inner.log.append("read")
    x.fill_(3)
    graph.replay()
    assert y.tolist() == [8.0] * 4
