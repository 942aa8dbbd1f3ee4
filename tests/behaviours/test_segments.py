"""Behaviours 1 to 7: segments and breaks replay in program order, on whatever the inputs hold now."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._dynamo import eval_frame

from bcg import (
    BreakableCUDAGraph,
    BreakableCUDAGraphCapture,
    CaptureError,
    HostReadError,
    ReplayError,
    break_graph,
    eager_on_graph,
)


def static(device: str, value: float = 0.0) -> torch.Tensor:
    return torch.full((4,), value, device=device)


def test_1_without_a_break_there_is_one_segment(device: str) -> None:
    x = static(device)
    graph = BreakableCUDAGraph(device)
    with BreakableCUDAGraphCapture(graph):
        y = x + 1
    x.fill_(5)
    graph.replay()
    assert y.tolist() == [6.0] * 4
    assert (graph.num_segments, graph.num_breaks, graph.num_replays) == (1, 0, 1)


def test_2_one_break_makes_two_segments(device: str) -> None:
    double = eager_on_graph(lambda t: t * 2)
    x = static(device)
    graph = BreakableCUDAGraph(device)
    with BreakableCUDAGraphCapture(graph):
        y = double(x + 1) + 3
    x.fill_(10)
    graph.replay()
    assert y.tolist() == [25.0] * 4
    assert (graph.num_segments, graph.num_breaks) == (2, 1)


def test_3_two_breaks_interleave_and_run_once_at_capture(device: str) -> None:
    order: list[str] = []

    @eager_on_graph
    def first(t: torch.Tensor) -> torch.Tensor:
        order.append("first")
        return t * 2

    @eager_on_graph
    def second(t: torch.Tensor) -> torch.Tensor:
        order.append("second")
        return t - 1

    x = static(device)
    graph = BreakableCUDAGraph(device)
    with BreakableCUDAGraphCapture(graph):
        y = second(first(x + 1) + 3) + 2
    assert order == ["first", "second"]
    x.fill_(5)
    graph.replay()
    assert y.tolist() == [16.0] * 4
    assert (graph.num_segments, graph.num_breaks) == (3, 2)
    assert [type(step).__name__ for step in graph.steps] == ["Segment", "Break", "Segment", "Break", "Segment"]
    assert order == ["first", "second"] * 2


def test_4_each_replay_reads_its_own_inputs(device: str) -> None:
    triple = eager_on_graph(lambda t: t * 3)
    x = static(device, 7)
    graph = BreakableCUDAGraph(device)
    with BreakableCUDAGraphCapture(graph):
        y = triple(x + 0) + 3
    results = []
    for value in (0, 10):
        x.fill_(value)
        graph.replay()
        results.append(y.clone().tolist())
    assert results == [[3.0] * 4, [33.0] * 4]


def test_5_an_explicit_empty_break(device: str) -> None:
    x = static(device)
    graph = BreakableCUDAGraph(device)
    with BreakableCUDAGraphCapture(graph):
        y = x + 1
        break_graph()
        y = y + 2
    x.fill_(10)
    graph.replay()
    assert y.tolist() == [13.0] * 4
    assert (graph.num_segments, graph.num_breaks) == (2, 1)


def test_6_breaks_replay_in_program_order(device: str) -> None:
    order: list[str] = []

    def note(name: str) -> None:
        eager_on_graph(lambda: order.append(name))()

    x = static(device)
    graph = BreakableCUDAGraph(device)
    with BreakableCUDAGraphCapture(graph):
        for name in "ABC":
            note(name)
            x.add_(1)
    order.clear()
    graph.replay()
    assert order == ["A", "B", "C"]


@pytest.mark.parametrize(
    ("program", "num_segments", "num_breaks"),
    [("bs", 1, 1), ("sb", 1, 1), ("sbbs", 2, 2), ("bb", 0, 2), ("bsb", 1, 2)],
)
def test_7_breaks_at_the_edges_and_in_a_row(device: str, program: str, num_segments: int, num_breaks: int) -> None:
    @eager_on_graph
    def double(t: torch.Tensor) -> torch.Tensor:
        return t * 2

    def run(t: torch.Tensor) -> torch.Tensor:
        for kind in program:
            t = double(t) if kind == "b" else t + 3
        return t

    x = static(device, 1)
    graph = BreakableCUDAGraph(device)
    with BreakableCUDAGraphCapture(graph):
        y = run(x)
    x.fill_(5)
    graph.replay()
    assert torch.equal(y, run(static(device, 5)))
    assert (graph.num_segments, graph.num_breaks) == (num_segments, num_breaks)


def test_an_empty_graph_cannot_be_replayed(device: str) -> None:
    with pytest.raises(ReplayError, match="^replay of an empty graph$"):
        BreakableCUDAGraph(device).replay()


def test_a_segment_can_be_looked_into(device: str) -> None:
    x = static(device)
    graph = BreakableCUDAGraph(device)
    with BreakableCUDAGraphCapture(graph):
        _ = (x + 1) * 2
    (segment,) = graph.segments
    contents = segment.contents()
    assert contents.num_kernels == 2
    assert sum(contents.kernels.values()) == 2
    assert contents.node_counts == ({"operation": 2} if device == "cpu" else {"kernel": 2})
    assert [operation.name for operation in segment.tape.operations] == ["aten.add.Tensor", "aten.mul.Tensor"]
    assert segment.tape.operations[0].file.endswith("test_segments.py")
    assert [tensor.data_ptr() for tensor in segment.tape.externals.values()] == [x.data_ptr()]


def test_a_random_segment_draws_anew_at_every_replay(device: str) -> None:
    x = static(device)
    graph = BreakableCUDAGraph(device)
    with BreakableCUDAGraphCapture(graph):
        y = x + torch.rand_like(x)
    draws = []
    for _ in range(3):
        graph.replay()
        draws.append(tuple(y.tolist()))
    assert len(set(draws)) == 3


def test_a_registered_generator_advances(device: str) -> None:
    generator = torch.Generator(device).manual_seed(3)
    graph = BreakableCUDAGraph(device)
    graph.register_generator(generator)
    with BreakableCUDAGraphCapture(graph):
        y = torch.rand(4, device=device, generator=generator)
    generator.manual_seed(3)
    draws = []
    for _ in range(2):
        graph.replay()
        draws.append(y.clone())
    eager = torch.Generator(device).manual_seed(3)
    expected = [torch.rand(4, device=device, generator=eager) for _ in range(2)]
    assert all(torch.equal(drawn, wanted) for drawn, wanted in zip(draws, expected, strict=True))


def test_a_python_function_over_values_is_found() -> None:
    """It reads and writes the memory of a CPU tensor past the dispatcher."""
    x = torch.ones(4)
    graph = BreakableCUDAGraph("cpu")
    with pytest.raises(HostReadError, match=r"Tensor.apply_ at .*: apply_\(\) calls a Python function"):
        with BreakableCUDAGraphCapture(graph):
            (x + 0).apply_(lambda value: value * 10)


def test_a_default_device_in_the_body_changes_nothing() -> None:
    x = torch.ones(4)
    graph = BreakableCUDAGraph("cpu")
    with torch.inference_mode(), BreakableCUDAGraphCapture(graph), torch.device("meta"):
        y = eager_on_graph(lambda t: t * 2)(x + 1) + 1
    x.fill_(3)
    graph.replay()
    assert y.tolist() == [9.0] * 4


def test_captured_graphs_are_neither_copied_nor_pickled(device: str) -> None:
    graph = BreakableCUDAGraph(device)
    with torch.inference_mode(), BreakableCUDAGraphCapture(graph):
        torch.ones(4, device=device) + 1
    for duplicate in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match=r"^a captured graph lives where it was captured, and can't be copied"):
            duplicate(graph)  # type: ignore[operator]


def test_a_replay_inside_a_capture_is_refused_and_one_in_a_break_runs(device: str) -> None:
    x = torch.ones(4, device=device)
    inner, outer = BreakableCUDAGraph(device), BreakableCUDAGraph(device)
    with torch.inference_mode(), BreakableCUDAGraphCapture(inner):
        y = x + 1
    with (
        pytest.raises(CaptureError, match="^a graph is replayed inside a capture"),
        torch.inference_mode(),
        BreakableCUDAGraphCapture(outer),
    ):
        inner.replay()
    with torch.inference_mode(), BreakableCUDAGraphCapture(outer):
        eager_on_graph(inner.replay)()
        z = y * 2
    x.fill_(3)
    outer.replay()
    assert z.tolist() == [8.0] * 4


@pytest.mark.parametrize("where", ["before the capture", "in a break"])
def test_a_weight_that_autocast_had_cast_is_cast_again(device: str, where: str) -> None:
    """Weights may be changed in place; the cache of autocast keeps what they were."""
    linear = torch.nn.Linear(4, 4, device=device)
    x = torch.ones(2, 4, device=device)
    called = eager_on_graph(lambda h: linear(h))
    graph = BreakableCUDAGraph(device)
    with torch.autocast(device, torch.bfloat16):
        linear(x)
        with BreakableCUDAGraphCapture(graph):
            y = linear(called(x).float() if where == "in a break" else x)
    with torch.no_grad():
        linear.weight.mul_(2)
    graph.replay()
    with torch.autocast(device, torch.bfloat16):
        assert torch.equal(y, linear(linear(x).float() if where == "in a break" else x))


def test_captures_on_two_threads_leave_the_compiler_as_it_was() -> None:
    entered, left = [threading.Event(), threading.Event()], threading.Event()

    def capture(begins: threading.Event, waits_for: threading.Event) -> None:
        with torch.no_grad(), BreakableCUDAGraphCapture(BreakableCUDAGraph("cpu")):
            begins.set()
            waits_for.wait(30)

    first = threading.Thread(target=capture, args=(entered[0], entered[1]))
    second = threading.Thread(target=capture, args=(entered[1], left))
    first.start()
    entered[0].wait(30)
    second.start()
    first.join()
    left.set()
    second.join()
    assert eval_frame._stance.stance == "default"


@pytest.mark.parametrize("make", [lambda x: x.new([x[0], 1.0]), lambda x: x.new([2.0, 1.0])])
def test_a_tensor_made_of_data_by_the_old_constructor_needs_the_host(make: Callable[[Tensor], Tensor]) -> None:
    with (
        pytest.raises(HostReadError),
        torch.inference_mode(),
        BreakableCUDAGraphCapture(BreakableCUDAGraph("cpu")),
    ):
        make(torch.ones(4))


def test_the_host_device_replays_under_the_default_dtype_of_the_capture() -> None:
    graph, x = BreakableCUDAGraph("cpu"), torch.ones(4)
    with torch.inference_mode(), BreakableCUDAGraphCapture(graph):
        y = torch.full((4,), 0.5) + x
    torch.set_default_dtype(torch.float64)
    try:
        graph.replay()
    finally:
        torch.set_default_dtype(torch.float32)
    assert y.tolist() == [1.5] * 4


def test_a_reset_lets_go_of_known_externals() -> None:
    """Until then they are held, whether a tape found them or not."""
    table = torch.ones(4)
    graph = BreakableCUDAGraph("cpu")
    with BreakableCUDAGraphCapture(graph, known_externals=[table]):
        torch.ones(4) + 1
    alive = weakref.ref(table)
    del table
    gc.collect()
    assert alive() is not None
    graph.reset()
    gc.collect()
    assert alive() is None


def test_a_collection_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with BreakableCUDAGraphCapture(BreakableCUDAGraph("cpu")):
            torch.ones(4) + 1
        assert not gc.isenabled()
    finally:
        gc.enable()
