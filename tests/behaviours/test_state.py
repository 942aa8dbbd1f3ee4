"""Behaviours 22 to 26: one capture at a time and thread, and nothing left behind by a failure."""

from __future__ import annotations

import contextlib
import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

from bcg import (
    BreakableCUDAGraph,
    BreakableCUDAGraphCapture,
    CaptureError,
    HostReadError,
    ReplayError,
    current_capture,
    eager_on_graph,
)


def assert_fit_for_capture(device: str) -> None:
    """Capture, break and replay something, draw random numbers, and allocate: all must work."""
    double = eager_on_graph(lambda t: t * 2)
    x = torch.ones(4, device=device)
    torch.rand(4, device=device)
    graph = BreakableCUDAGraph(device)
    with BreakableCUDAGraphCapture(graph):
        y = double(x + 1) + 0
    x.fill_(4)
    graph.replay()
    assert y.tolist() == [10.0] * 4


def test_22_the_current_capture(device: str) -> None:
    graph = BreakableCUDAGraph(device)
    assert current_capture() is None
    with BreakableCUDAGraphCapture(graph) as capture:
        assert current_capture() is capture
        torch.ones(4, device=device)
    assert current_capture() is None


@pytest.mark.parametrize("where", ["body", "break"])
def test_22_none_is_current_after_an_exception(device: str, where: str) -> None:
    def fail() -> None:
        raise ZeroDivisionError("planted")

    graph = BreakableCUDAGraph(device)
    with pytest.raises(ZeroDivisionError), BreakableCUDAGraphCapture(graph):
        torch.ones(4, device=device)
        (eager_on_graph(fail) if where == "break" else fail)()
    assert current_capture() is None
    assert gc.isenabled()
    assert_fit_for_capture(device)


def test_23_the_active_capture_is_per_thread(device: str) -> None:
    seen: list[object] = []
    graph = BreakableCUDAGraph(device)
    with BreakableCUDAGraphCapture(graph):
        torch.ones(4, device=device)
        thread = threading.Thread(target=lambda: seen.append(current_capture()))
        thread.start()
        thread.join()
    assert seen == [None]


def test_24_a_capture_inside_a_capture_is_refused(device: str) -> None:
    x = torch.zeros(4, device=device)
    outer = BreakableCUDAGraph(device)
    with BreakableCUDAGraphCapture(outer):
        y = x + 1
        with (
            pytest.raises(
                CaptureError, match="^a capture is already active on this thread: a nested capture at .*test_state.py:"
            ) as caught,
            BreakableCUDAGraphCapture(BreakableCUDAGraph(device)),
        ):
            pass
        y = y + 1
    assert caught.value.hazard == "L14"
    x.fill_(3)
    outer.replay()
    assert y.tolist() == [5.0] * 4
    assert outer.num_segments == 1


def test_a_capture_that_an_eager_break_makes_has_its_breaks(device: str) -> None:
    x = torch.ones(4, device=device)
    graph = BreakableCUDAGraph(device)
    results = []

    @eager_on_graph
    def capture_when_first_called() -> None:
        with BreakableCUDAGraphCapture(graph):
            results.append(eager_on_graph(lambda t: t * t.sum().item())(x + 1) + 0)

    capture_when_first_called()
    assert (graph.num_segments, graph.num_breaks) == (2, 1)
    x.fill_(2)
    graph.replay()
    assert results[0].tolist() == [36.0] * 4


def test_24_a_captured_graph_is_not_captured_over(device: str) -> None:
    graph = BreakableCUDAGraph(device)
    with BreakableCUDAGraphCapture(graph):
        torch.ones(4, device=device)
    with pytest.raises(CaptureError, match="^the graph was captured before$"), BreakableCUDAGraphCapture(graph):
        pass
    graph.reset()
    with BreakableCUDAGraphCapture(graph):
        torch.ones(4, device=device)
    assert graph.num_segments == 1


@pytest.mark.parametrize("where", ["body", "break"])
def test_25_an_exception_keeps_its_type_and_message(device: str, where: str) -> None:
    class OwnError(Exception):
        pass

    def fail() -> None:
        raise OwnError("planted message")

    with (
        pytest.raises(OwnError, match="^planted message") as caught,
        BreakableCUDAGraphCapture(BreakableCUDAGraph(device)),
    ):
        torch.ones(4, device=device)
        (eager_on_graph(fail) if where == "break" else fail)()
    notes = " ".join(caught.value.__notes__)
    assert "segment 0" in notes if where == "body" else "in break" in notes


def test_26_after_a_failure_the_same_object_captures_again(device: str) -> None:
    x = torch.zeros(4, device=device)
    graph = BreakableCUDAGraph(device)
    for _ in range(3):
        with pytest.raises(RuntimeError, match="planted"), BreakableCUDAGraphCapture(graph):
            x + 1
            raise RuntimeError("planted")
        assert graph.steps == ()
    with BreakableCUDAGraphCapture(graph):
        y = x + 1
    x.fill_(1)
    graph.replay()
    assert y.tolist() == [2.0] * 4


HOST_READS: dict[str, Callable[[Tensor], object]] = {
    "item": lambda t: t.sum().item(),
    "tolist": lambda t: t.tolist(),
    "cpu": lambda t: t.cpu(),
    "to": lambda t: t.to("cpu"),
    "numpy": lambda t: t.cpu().numpy() if t.is_cuda else t.numpy(),
    "bool": lambda t: bool(t.sum() > 0),
    "int": lambda t: int(t[0]),
    "float": lambda t: float(t[0]),
    "index": lambda t: [1, 2, 3][t[0].long()],
    "in": lambda t: 1.0 in t,
    "print": lambda t: str(t),
    "format": lambda t: f"{t[0]:.2f}",
    "mask": lambda t: t[t > 0],
    "nonzero": lambda t: t.nonzero(),
    "where": lambda t: torch.where(t > 0),
    "nonzero as a tuple": lambda t: t.nonzero(as_tuple=True),
    "narrow": lambda t: t.narrow(0, t[0].long(), 1),
    "nested, of a list": lambda t: torch.nested.nested_tensor([t, t[:2]]),
    "split": lambda t: t.tensor_split(t[:1].long()),
    "packed": lambda t: torch.ops.aten._pack_padded_sequence(t.reshape(1, 4, 1), t[:1].long(), True),
    "scale": lambda t: torch._choose_qparams_per_tensor(t),
    "values as data": lambda t: torch.tensor([t[0], t[1]]),
    "masked_select": lambda t: t.masked_select(t > 0),
    "unique": lambda t: t.unique(),
    "repeat_interleave": lambda t: t.repeat_interleave(t.long()),
    "equal": lambda t: torch.equal(t, t + 1),
    "nested": lambda t: torch._nested_tensor_from_mask(t.reshape(1, 2, 2), t.reshape(1, 2, 2)[..., 0] > 0),
    "nested, left-aligned": lambda t: torch._nested_tensor_from_mask_left_aligned(
        t.reshape(1, 2, 2), t.reshape(1, 2, 2)[..., 0] > 0
    ),
    "from Python data": lambda t: torch.tensor([1.0, 2.0], device=t.device),
    "as an array": lambda t: torch.asarray([1.0, 2.0], device=t.device),
    "like another": lambda t: t.new_tensor([1.0, 2.0]),
    "values as named data": lambda t: torch.tensor(data=[t[0], t[1]]),
    "named data": lambda t: t.new_tensor(data=[1.0, 2.0]),
    "a list as index": lambda t: t[[0, 1]],
}


def test_memory_that_another_library_reads_is_a_host_read() -> None:
    x = torch.ones(4)
    with pytest.raises(HostReadError, match="__dlpack__"), BreakableCUDAGraphCapture(BreakableCUDAGraph("cpu")):
        numpy.from_dlpack(x + 1)


@pytest.mark.parametrize("grad_mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("read", HOST_READS)
def test_a_host_read_inside_a_segment_is_refused_with_its_place(device: str, read: str, grad_mode: Any) -> None:
    class Reader(torch.nn.Module):
        def forward(self, t: Tensor) -> Tensor:
            HOST_READS[read](t)
            return t

    model = torch.nn.Sequential(torch.nn.ReLU(), Reader())
    x = torch.ones(4, device=device)
    with pytest.raises(HostReadError, match="^the host reads a device value inside a segment: ") as caught:
        with grad_mode(), BreakableCUDAGraphCapture(BreakableCUDAGraph(device)):
            model(x)
    place = caught.value.place
    assert place is not None
    assert place.module == "1"
    assert place.source is not None and "test_state.py:" in place.source
    assert caught.value.hazard == "L1"
    assert caught.value.hint is not None and "--break" in caught.value.hint
    assert_fit_for_capture(device)


def test_the_host_may_read_in_a_break(device: str) -> None:
    total = eager_on_graph(lambda t: t * t.sum().item())
    x = torch.ones(4, device=device)
    graph = BreakableCUDAGraph(device)
    with BreakableCUDAGraphCapture(graph):
        y = total(x + 0) + 0
    x.fill_(2)
    graph.replay()
    assert y.tolist() == [16.0] * 4


def test_filling_by_a_mask_is_no_host_read(device: str) -> None:
    x = torch.tensor([1.0, -1.0, 2.0, -2.0], device=device)
    graph = BreakableCUDAGraph(device)
    with BreakableCUDAGraphCapture(graph):
        y = x.clone()
        y[y < 0] = 0.0
    x.neg_()
    graph.replay()
    assert y.tolist() == [0.0, 1.0, 0.0, 2.0]


def test_a_host_read_that_the_body_swallows_still_fails_the_capture(device: str) -> None:
    x = torch.ones(4, device=device)
    graph = BreakableCUDAGraph(device)
    with pytest.raises(CaptureError, match="^the body went on after an error"), BreakableCUDAGraphCapture(graph):
        try:
            scale = x.sum().item()
        except HostReadError:
            scale = 1.0
        x * scale
    assert graph.steps == ()
    assert_fit_for_capture(device)


def test_an_exception_in_a_break_at_replay_keeps_its_type_and_leaves_the_graph_usable(device: str) -> None:
    fails = iter([False, True, False])

    @eager_on_graph
    def sometimes(t: Tensor) -> Tensor:
        if next(fails):
            raise KeyError("planted")
        return t * 2

    x = torch.ones(4, device=device)
    graph = BreakableCUDAGraph(device)
    with BreakableCUDAGraphCapture(graph):
        y = sometimes(x + 0) + 0
    with pytest.raises(KeyError, match="planted") as caught:
        graph.replay()
    assert "break 0 (sometimes)" in caught.value.__notes__[0]
    assert graph.num_replays == 0
    x.fill_(3)
    graph.replay()
    assert y.tolist() == [6.0] * 4


def test_overlapping_replays_in_one_pool_are_refused(device: str) -> None:
    x = torch.ones(4, device=device)
    inner = BreakableCUDAGraph(device)
    with BreakableCUDAGraphCapture(inner):
        x + 1
    replays = iter([False, True])
    outer = BreakableCUDAGraph(device)
    with BreakableCUDAGraphCapture(outer, pool=inner.pool):
        eager_on_graph(lambda: inner.replay() if next(replays) else None)()
        x + 2
    with pytest.raises(ReplayError, match="^a graph of the same pool is being captured or replayed"):
        outer.replay()


def test_a_replay_inside_a_capture_of_the_same_pool_is_refused(device: str) -> None:
    x = torch.ones(4, device=device)
    one, other = BreakableCUDAGraph(device), BreakableCUDAGraph(device)
    with BreakableCUDAGraphCapture(one):
        y = x + 1
    refused = pytest.raises(ReplayError, match="^a graph of the same pool is being captured or replayed")
    with refused as caught, BreakableCUDAGraphCapture(other, pool=one.pool):
        x + 2
        eager_on_graph(one.replay)()
    assert caught.value.hazard == "S17"
    x.fill_(3)
    one.replay()
    assert y.tolist() == [4.0] * 4


@pytest.mark.parametrize("fails", [False, True])
def test_a_capture_that_has_ended_keeps_neither_module_nor_pool(device: str, fails: bool) -> None:
    """By counting references alone: weights must not wait for a collection."""
    gc.disable()
    try:
        module, x = torch.nn.Linear(4, 4).to(device), torch.ones(2, 4, device=device)
        graph = BreakableCUDAGraph(device)
        pool = graph.device.new_pool()
        kept = [weakref.ref(module), weakref.ref(pool)]
        with contextlib.suppress(KeyError), torch.inference_mode(), BreakableCUDAGraphCapture(graph, pool=pool):
            module(x)
            if fails:
                raise KeyError("planted")
        del module, graph, pool
        assert [reference() for reference in kept] == [None, None]
    finally:
        gc.enable()


def test_a_result_outlives_its_graph(device: str) -> None:
    x = torch.ones(1000, device=device)
    graph = BreakableCUDAGraph(device)
    with torch.inference_mode(), BreakableCUDAGraphCapture(graph):
        y = eager_on_graph(lambda t: t * 2)(x + 1) + 1
    del graph
    churn = [torch.full((1000,), 7.0, device=device) for _ in range(64)]
    assert y.tolist() == [5.0] * 1000
    assert len(churn) == 64


def test_a_replay_in_inference_mode_and_out_of_it(device: str) -> None:
    x = torch.ones(4, device=device)
    graph = BreakableCUDAGraph(device)
    with torch.inference_mode(), BreakableCUDAGraphCapture(graph):
        y = eager_on_graph(lambda t: t * 2)(x + 0) + 0
    x.fill_(2)
    graph.replay()
    assert y.tolist() == [4.0] * 4
    x.fill_(3)
    with torch.inference_mode():
        graph.replay()
    assert y.tolist() == [6.0] * 4


@pytest.mark.gpu
@pytest.mark.parametrize(
    "fail",
    [
        lambda: torch.cuda.synchronize(),
        lambda: torch.cuda.current_stream().query(),
        lambda: torch.empty(2**50, device="cuda"),
    ],
    ids=["synchronize", "query", "out of memory"],
)
def test_after_a_failure_in_the_driver_everything_works_again(fail: Callable[[], object]) -> None:
    x = torch.ones(4, device="cuda")
    graph = BreakableCUDAGraph("cuda")
    stream = torch.cuda.current_stream()
    for _ in range(2):
        with pytest.raises((RuntimeError, CaptureError)), BreakableCUDAGraphCapture(graph):
            x + torch.rand_like(x)
            fail()
            x + 1
        assert torch.cuda.current_stream() == stream
        assert_fit_for_capture("cuda")
        torch.cuda.empty_cache()
    with BreakableCUDAGraphCapture(graph):
        y = x + 1
    graph.replay()
    assert y.tolist() == [2.0] * 4


def test_an_error_in_a_modules_forward_is_told_with_the_modules_path(device: str) -> None:
    class Fails(torch.nn.Module):
        def forward(self, t: Tensor) -> Tensor:
            raise ZeroDivisionError("planted")

    model = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Sequential(Fails()))
    x = torch.ones(4, device=device)
    with pytest.raises(ZeroDivisionError) as caught, BreakableCUDAGraphCapture(BreakableCUDAGraph(device)):
        model(x)
    assert caught.value.__notes__ == ["in segment 0 (module '1.0') of the capture"]


def test_a_caught_error_does_not_name_the_module_of_the_next_one(device: str) -> None:
    class Fails(torch.nn.Module):
        def forward(self, t: Tensor) -> Tensor:
            raise ZeroDivisionError("planted")

    class Tries(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Fails(), Fails()

        def forward(self, t: Tensor) -> Tensor:
            try:
                return self.first(t)
            except ZeroDivisionError:
                pass
            return self.second(t)

    x = torch.ones(4, device=device)
    with pytest.raises(ZeroDivisionError) as caught, BreakableCUDAGraphCapture(BreakableCUDAGraph(device)):
        Tries()(x)
    assert caught.value.__notes__ == ["in segment 0 (module 'second') of the capture"]
