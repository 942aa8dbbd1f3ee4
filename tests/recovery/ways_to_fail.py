"""Ways to fail: in the body of a capture, in its breaks, and at replay.

Each takes an empty graph, the pool to capture into and an input, and fails with one of the errors it is listed with.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from bcg import (
    BreakableCUDAGraph,
    BreakableCUDAGraphCapture,
    CaptureError,
    HostReadError,
    ReplayError,
    UsageError,
    break_graph,
    eager_on_graph,
)
from tests.behaviours.test_state import HOST_READS

Fail = Callable[[BreakableCUDAGraph, Any, Tensor], None]
Way = tuple[Fail, tuple[type[BaseException], ...]]


class OwnError(Exception):
    pass


def _raise(error: BaseException) -> Any:
    raise error


def in_segment(body: Callable[[Tensor], object]) -> Fail:
    """Fail in the first segment."""

    def fail(graph: BreakableCUDAGraph, pool: Any, x: Tensor) -> None:
        with torch.no_grad(), BreakableCUDAGraphCapture(graph, pool):
            body(x + torch.rand_like(x))
            x + 1

    return fail


def in_later_segment(body: Callable[[Tensor], object]) -> Fail:
    """Fail in the segment after a break."""

    def fail(graph: BreakableCUDAGraph, pool: Any, x: Tensor) -> None:
        with torch.no_grad(), BreakableCUDAGraphCapture(graph, pool):
            y = eager_on_graph(lambda t: t * 2)(x + 1)
            body(y + 0)
            y + 1

    return fail


def in_break(function: Callable[[Tensor], object]) -> Fail:
    """Fail in a break, or because of what it returns, while capturing."""

    def fail(graph: BreakableCUDAGraph, pool: Any, x: Tensor) -> None:
        with torch.no_grad(), BreakableCUDAGraphCapture(graph, pool):
            eager_on_graph(function)(x + 1)

    return fail


def in_nested_break(function: Callable[[Tensor], object]) -> Fail:
    """Fail in a break that a break calls."""
    return in_break(lambda t: eager_on_graph(function)(t))


def at_replay(function: Callable[[Tensor, bool], object]) -> Fail:
    """Capture well, and fail in the second run of a break."""

    def fail(graph: BreakableCUDAGraph, pool: Any, x: Tensor) -> None:
        runs = iter([False, True])
        with torch.no_grad(), BreakableCUDAGraphCapture(graph, pool):
            eager_on_graph(lambda t: function(t, next(runs)))(x + 1)
            x + 2
        try:
            graph.replay()
        finally:
            graph.reset()

    return fail


def swallowed(body: Callable[[Tensor], object]) -> Callable[[Tensor], None]:
    """Catch what `body` raises, as if nothing had happened."""

    def catches(t: Tensor) -> None:
        with suppress(Exception):
            body(t)

    return catches


def _capture_twice(graph: BreakableCUDAGraph, pool: Any, x: Tensor) -> None:
    try:
        for _ in range(2):
            with BreakableCUDAGraphCapture(graph, pool):
                x + 1
    finally:
        graph.reset()


def _replay_nothing(graph: BreakableCUDAGraph, pool: Any, x: Tensor) -> None:
    graph.replay()


def _wrong_pool(graph: BreakableCUDAGraph, pool: Any, x: Tensor) -> None:
    with BreakableCUDAGraphCapture(graph, pool="a pool"):
        x + 1


def _replay_inside_a_replay(graph: BreakableCUDAGraph, pool: Any, x: Tensor) -> None:
    at_replay(lambda t, again: graph.replay() if again else None)(graph, pool, x)


def _replay_inside_a_capture(graph: BreakableCUDAGraph, pool: Any, x: Tensor) -> None:
    with BreakableCUDAGraphCapture(graph, pool):
        x + 1
        graph.replay()


def _nested_capture(x: Tensor) -> None:
    with BreakableCUDAGraphCapture(BreakableCUDAGraph(x.device)):
        x + 1


def _out_of_memory(t: Tensor) -> None:
    raise torch.OutOfMemoryError("planted: out of memory")


WAYS: dict[str, Way] = {
    "body": (in_segment(lambda t: _raise(OwnError())), (OwnError,)),
    "body after a break": (in_later_segment(lambda t: _raise(OwnError())), (OwnError,)),
    "body after an empty break": (in_segment(lambda t: (break_graph(), _raise(OwnError()))), (OwnError,)),
    "break": (in_break(lambda t: _raise(OwnError())), (OwnError,)),
    "nested break": (in_nested_break(lambda t: _raise(OwnError())), (OwnError,)),
    "break at replay": (at_replay(lambda t, again: _raise(OwnError()) if again else t), (OwnError,)),
    "other shape at replay": (at_replay(lambda t, again: t[: 1 if again else 2] * 2), (ReplayError,)),
    "other dtype at replay": (at_replay(lambda t, again: t.double() if again else t * 2), (ReplayError,)),
    "other structure at replay": (at_replay(lambda t, again: [t * 2] if again else (t * 2,)), (ReplayError,)),
    "other number at replay": (at_replay(lambda t, again: int(again)), (ReplayError,)),
    "other tensor at replay": (at_replay(lambda t, again: t * 2 if again else t), (ReplayError,)),
    "Ctrl-C at replay": (
        at_replay(lambda t, again: _raise(KeyboardInterrupt()) if again else t),
        (KeyboardInterrupt,),
    ),
    "Ctrl-C in the body": (in_later_segment(lambda t: _raise(KeyboardInterrupt())), (KeyboardInterrupt,)),
    "Ctrl-C in a break": (in_break(lambda t: _raise(KeyboardInterrupt())), (KeyboardInterrupt,)),
    "exit in the body": (in_segment(lambda t: _raise(SystemExit(3))), (SystemExit,)),
    "unknown structure": (in_break(lambda t: deque([t])), (CaptureError,)),
    "nested capture": (in_segment(_nested_capture), (CaptureError,)),
    "nested capture, swallowed": (
        in_segment(lambda t: (swallowed(_nested_capture)(t), _raise(OwnError()))),
        (OwnError,),
    ),
    "nested capture in a break": (in_break(_nested_capture), (CaptureError,)),
    "host read, swallowed": (in_segment(swallowed(lambda t: t.sum().item())), (CaptureError,)),
    "break, swallowed": (
        in_segment(swallowed(eager_on_graph(lambda t: _raise(OwnError())))),
        (CaptureError,),
    ),
    "out of memory, as a module says it": (in_segment(_out_of_memory), (torch.OutOfMemoryError,)),
    "out of memory in a break": (in_break(_out_of_memory), (torch.OutOfMemoryError,)),
    "out of memory": (in_later_segment(lambda t: torch.empty(2**50, device=t.device)), (RuntimeError,)),
    "wrong shapes": (in_segment(lambda t: t @ torch.zeros(3, 3, device=t.device)), (RuntimeError,)),
    "wrong shapes in a break": (in_break(lambda t: t @ torch.zeros(3, 3, device=t.device)), (RuntimeError,)),
    "captured before": (_capture_twice, (CaptureError,)),
    "replay of nothing": (_replay_nothing, (ReplayError,)),
    "replay inside a replay": (_replay_inside_a_replay, (ReplayError,)),
    "replay inside a capture": (_replay_inside_a_capture, (ReplayError,)),
    "wrong pool": (_wrong_pool, (UsageError,)),
    **{f"host read: {name}": (in_segment(read), (HostReadError,)) for name, read in HOST_READS.items()},
    **{f"late host read: {name}": (in_later_segment(read), (HostReadError,)) for name, read in HOST_READS.items()},
}


def _on_the_legacy_stream(t: Tensor) -> None:
    with torch.cuda.stream(torch.cuda.default_stream()):
        t + 1


def _on_an_unforked_stream(t: Tensor) -> None:
    with torch.cuda.stream(torch.cuda.Stream()):
        t + 1
        torch.cuda.current_stream().synchronize()


DRIVER_WAYS: dict[str, Way] = {
    name: (where(body), (RuntimeError, CaptureError))
    for name, where, body in (
        ("synchronize", in_segment, lambda t: torch.cuda.synchronize()),
        ("synchronize after a break", in_later_segment, lambda t: torch.cuda.synchronize()),
        ("query", in_segment, lambda t: torch.cuda.current_stream().query()),
        ("legacy stream", in_segment, _on_the_legacy_stream),
        ("unforked stream", in_segment, _on_an_unforked_stream),
        ("seed", in_segment, lambda t: torch.cuda.seed()),
        ("unknown generator", in_segment, lambda t: t.normal_(generator=torch.Generator(t.device))),
    )
}
