"""Segments as CUDA graphs: recorded on one stream with `torch.cuda.CUDAGraph`, launched through cuda-python."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from cuda.bindings import driver, runtime
from torch import Tensor

from bcg.device.base import SegmentContents
from bcg.device.calls import check, graph_nodes, node_kind
from bcg.device.cuda_pool import CudaPool, capture_stream, empty_graphs_allowed
from bcg.device.feed import Feed, bind_all, can_feed
from bcg.errors import CaptureError
from bcg.hazards import HAZARDS
from bcg.ranges import stretch


@contextlib.contextmanager
def ordered_on(stream: torch.cuda.Stream) -> Iterator[None]:
    """Make `stream` current; it waits for the caller's stream, and the caller's stream waits for it after."""
    caller = torch.cuda.current_stream(stream.device)
    stream.wait_stream(caller)
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        caller.wait_stream(stream)


class CudaRecording:
    """A segment as an instantiated CUDA graph.

    It is launched through cuda-python unless it draws random numbers: then torch's own replay moves the
    generator's offset (and costs the host a few microseconds more).

    Args:
        graph: Instantiated.
        feeds: What its first nodes copy.
        first_nodes: As many of its nodes as there are feeds, or more.
        always_through_torch: Whether it may draw from other generators than the default one.
    """

    def __init__(
        self, graph: torch.cuda.CUDAGraph, feeds: Sequence[Feed], first_nodes: Sequence[Any], always_through_torch: bool
    ) -> None:
        self._graph = graph
        self._feeds = tuple(feeds)
        self._exec = runtime.cudaGraphExec_t(graph.raw_cuda_graph_exec())
        bind_all(feeds, first_nodes, graph.raw_cuda_graph(), self._exec)
        self._draws_random: bool | None = True if always_through_torch else None

    def launch(self, stream: Any) -> None:
        if self._draws_random is False:
            error = runtime.cudaGraphLaunch(self._exec, stream)[0]
            if error:
                check((error,))
        elif self._draws_random:
            self._graph.replay()
        else:
            self._draws_random = self._replay_moves_the_generator()
        for feed in self._feeds:
            feed.let_go()

    def _replay_moves_the_generator(self) -> bool:
        generator = torch.cuda.default_generators[torch.cuda.current_device()]
        before = generator.get_offset()
        self._graph.replay()
        return generator.get_offset() != before

    def contents(self) -> SegmentContents:
        counts: dict[str, int] = {}
        kernels: dict[str, int] = {}
        for node in graph_nodes(self._graph.raw_cuda_graph()):
            kind = node_kind(node)
            counts[kind] = counts.get(kind, 0) + 1
            if kind == "kernel":
                name = _kernel_name(node)
                kernels[name] = kernels.get(name, 0) + 1
        return SegmentContents(num_kernels=counts.get("kernel", 0), node_counts=counts, kernels=kernels)

    def release(self) -> None:
        self._graph.reset()


def _kernel_name(node: Any) -> str:
    parameters = check(driver.cuGraphKernelNodeGetParams(driver.CUgraphNode(int(node))))
    if int(parameters.func):
        name = check(driver.cuFuncGetName(parameters.func))
    else:
        name = check(driver.cuKernelGetName(parameters.kern))
    return str(name.decode())


class CudaRecorder:
    """Records the segments of one capture on one stream, into one pool.

    `capture_begin` and `capture_end` are called directly: re-entering `torch.cuda.graph` at every segment
    would synchronize the device and empty the allocator's cache each time.
    """

    runs_while_recording = False

    def __init__(
        self,
        index: int,
        pool: CudaPool,
        stream: torch.cuda.Stream | None,
        error_mode: str,
        generators: Sequence[torch.Generator],
    ) -> None:
        self._index = index
        self._pool = pool
        self._stream = stream or capture_stream(index)
        self._error_mode = error_mode
        self._generators = tuple(generators)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._sides: dict[int, torch.cuda.Stream] = {}
        self._feeds: list[Feed] = []

    @property
    def num_side_streams(self) -> int:
        return len(self._sides)

    @contextlib.contextmanager
    def on_stream(self) -> Iterator[None]:
        with ordered_on(self._stream), empty_graphs_allowed():
            yield

    def begin(self) -> None:
        self._note_stream()
        graph = torch.cuda.CUDAGraph(keep_graph=True)
        for generator in self._generators:
            graph.register_generator_state(generator)
        with self._current_stream():
            self._graph = graph
            graph.capture_begin(pool=self._pool.id, capture_error_mode=self._error_mode)  # type: ignore[arg-type]
            for feed in self._feeds:
                feed.record(self._stream.cuda_stream)
            for side in self._sides.values():
                side.wait_stream(self._stream)

    def execute(self, function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        if self._note_stream() and not torch.cuda.is_current_stream_capturing():
            raise CaptureError(
                f"{function} runs on a side stream that has not waited for the stream of the capture",
                hint=HAZARDS["L3"].remedy,
                hazard="L3",
            )
        return function(*args, **kwargs)

    def _current_stream(self) -> AbstractContextManager[Any]:
        """Make the capture's stream current, which it is already unless the body works on a side stream."""
        if torch._C._cuda_getCurrentRawStream(self._index) == self._stream.cuda_stream:
            return contextlib.nullcontext()
        return torch.cuda.stream(self._stream)

    def _note_stream(self) -> bool:
        """Remember a side stream on which the segment works: it is joined at the end and forked again after.

        Returns:
            Whether the stream is a new one.
        """
        raw = torch._C._cuda_getCurrentRawStream(self._index)
        if raw == self._stream.cuda_stream or raw in self._sides:
            return False
        self._sides[raw] = torch.cuda.current_stream(self._index)
        return True

    def is_intact(self) -> bool:
        error, status = runtime.cudaStreamIsCapturing(self._stream.cuda_stream)
        invalidated = runtime.cudaStreamCaptureStatus.cudaStreamCaptureStatusInvalidated
        return int(error) != 0 or status != invalidated

    def end(self) -> CudaRecording | None:
        graph = self._graph
        if graph is None:
            raise CaptureError("no segment is being recorded")
        with self._current_stream():
            for side in self._sides.values():
                self._stream.wait_stream(side)
            graph.capture_end()
        self._graph = None
        feeds, self._feeds = self._feeds, []
        first_nodes = graph_nodes(graph.raw_cuda_graph(), len(feeds) + 1)
        if len(first_nodes) == len(feeds):
            for feed in feeds:
                feed.fill()
            graph.reset()
            return None
        with stretch("instantiate"):
            graph.instantiate()
        return CudaRecording(graph, feeds, first_nodes, always_through_torch=bool(self._generators))

    def abort(self) -> None:
        graph, self._graph = self._graph, None
        self._feeds = []
        if graph is None:
            return
        with torch.cuda.stream(self._stream):
            try:
                graph.capture_end()
            except RuntimeError:
                self._end_in_place_of(graph)
        graph.reset()

    def _end_in_place_of(self, graph: torch.cuda.CUDAGraph) -> None:
        """Let `graph` end an empty capture instead of the one that the driver invalidated.

        A `capture_end` that fails leaves the allocators routing to the pool and the generators in capture mode;
        only one that succeeds undoes both.
        """
        runtime.cudaStreamBeginCapture(
            self._stream.cuda_stream, runtime.cudaStreamCaptureMode.cudaStreamCaptureModeRelaxed
        )
        with contextlib.suppress(RuntimeError):
            graph.capture_end()

    def allocate(self, size: Sequence[int], stride: Sequence[int], dtype: torch.dtype) -> Tensor:
        with self._current_stream(), torch.cuda.use_mem_pool(self._pool, self._index):  # type: ignore[arg-type]
            return torch.empty_strided(size, stride, dtype=dtype, device=f"cuda:{self._index}")

    def feed(self, boundary: Tensor, result: Tensor) -> Callable[[Tensor], Any]:
        if not can_feed(boundary):
            boundary.copy_(result)
            return boundary.copy_
        feed = Feed(boundary, result)
        self._feeds.append(feed)
        return feed
