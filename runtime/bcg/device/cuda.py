"""The GPU: records a segment with `torch.cuda.CUDAGraph`.

With its helpers `feed.py` and `calls.py` the only file that touches the CUDA graph interface.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from cuda.bindings import driver, runtime
from torch import Tensor

from bcg.device import driver_log
from bcg.device.base import CHURN_SIZES, POISON_BYTE, MemoryReading, Pool, SegmentContents
from bcg.device.calls import check, graph_nodes, node_kind
from bcg.device.feed import Feed, bind_all, can_feed
from bcg.errors import CaptureError, UsageError
from bcg.hazards import HAZARDS
from bcg.ranges import stretch


@functools.cache
def capture_stream(index: int) -> torch.cuda.Stream:
    """Return the one stream on which everything is captured on GPU `index`.

    Free blocks of a pool belong to the stream that they were allocated on: with a stream per bucket no bucket
    could reuse another's memory.
    """
    return torch.cuda.Stream(device=index)


@functools.cache
def _side_stream(index: int) -> torch.cuda.Stream:
    """Return the one further stream of GPU `index`: libraries keep a workspace for every stream that they meet."""
    return torch.cuda.Stream(device=index)


@contextlib.contextmanager
def _ordered_on(stream: torch.cuda.Stream) -> Iterator[None]:
    """Make `stream` current; it waits for the caller's stream, and the caller's stream waits for it after."""
    caller = torch.cuda.current_stream(stream.device)
    stream.wait_stream(caller)
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        caller.wait_stream(stream)


class CudaPool:
    """A private pool of torch's caching allocator, known by its id.

    It holds an empty captured graph: the allocator counts the graphs of a pool, and a pool whose last graph is
    gone can't be used again (torch 2.11 fails an internal assertion), be it after a failure or because the first
    segment was empty.

    Args:
        index: The GPU.
        id: What `torch.cuda.graph_pool_handle` returned.
    """

    def __init__(self, index: int, id: tuple[int, int]) -> None:
        self.id = id
        self._index = index
        self._ranges: list[tuple[int, int]] = []
        self._num_allocations: int | None = None
        self._keeper = torch.cuda.CUDAGraph()
        with torch.cuda.stream(capture_stream(index)), _empty_graphs_allowed():
            self._keeper.capture_begin(pool=id, capture_error_mode="relaxed")  # type: ignore[arg-type]
            self._keeper.capture_end()

    def reserved_bytes(self) -> int:
        return sum(segment["total_size"] for segment in self.segments())

    def owns(self, tensor: Tensor) -> bool:
        address = tensor.data_ptr()
        if not self._covers(address) and self._may_have_grown():
            self._ranges = [(segment["address"], segment["total_size"]) for segment in self.segments()]
        return self._covers(address)

    def _may_have_grown(self) -> bool:
        """Whether torch took memory from the driver since the last time; far cheaper to ask than a snapshot."""
        num_allocations = torch.cuda.memory_stats_as_nested_dict(self._index).get("num_device_alloc")
        grew = num_allocations is None or num_allocations != self._num_allocations
        self._num_allocations = num_allocations
        return grew

    def _covers(self, address: int) -> bool:
        return any(start <= address < start + size for start, size in self._ranges)

    def free_blocks(self) -> list[tuple[int, int]]:
        """Address and size of the blocks that no tensor uses now."""
        free = []
        for segment in self.segments():
            address = segment["address"]
            for block in segment["blocks"]:
                if block["state"] == "inactive":
                    free.append((address, block["size"]))
                address += block["size"]
        return free

    def segments(self) -> list[dict[str, Any]]:
        """The allocator's description of the pool's segments and blocks."""
        return _snapshot(self.id)


def _snapshot(pool_id: tuple[int, int]) -> list[dict[str, Any]]:
    """Describe the segments of a pool, and keep the numbers of its id alive where torch takes references to them.

    `torch.cuda.memory_snapshot` gives back references that it never took (pytorch pull request 196366): harmless for
    small numbers, which Python keeps for ever, and a corrupted heap from the 257th pool of a process on.
    """
    for number in pool_id:
        for _ in range(_references_taken_by_a_snapshot()):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(number))
    segments: list[dict[str, Any]] = torch.cuda.memory_snapshot(pool_id)
    return segments


@functools.cache
def _references_taken_by_a_snapshot() -> int:
    """Count the references to each number of a pool's id that one snapshot of it takes away."""
    number = int(f"{2**60}")
    spare = [number] * 8  # what is taken must not be the last
    before = sys.getrefcount(number)
    torch.cuda.memory_snapshot((number, 0))
    taken = max(0, before - sys.getrefcount(number))
    for _ in range(taken):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(number))
    spare.clear()
    return taken


@contextlib.contextmanager
def _empty_graphs_allowed() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The CUDA Graph is empty")
        yield


class CudaRecording:
    """A segment as an instantiated CUDA graph.

    It is launched through cuda-python unless it draws random numbers: then torch's own replay moves the
    generator's offset (and costs the host a few microseconds more).

    Args:
        graph: Instantiated.
        num_nodes: Of the graph.
        feeds: What its first nodes copy.
        always_through_torch: Whether it may draw from other generators than the default one.
    """

    def __init__(
        self, graph: torch.cuda.CUDAGraph, num_nodes: int, feeds: Sequence[Feed], always_through_torch: bool
    ) -> None:
        self._graph = graph
        self._num_nodes = num_nodes
        self._feeds = tuple(feeds)
        self._exec = runtime.cudaGraphExec_t(graph.raw_cuda_graph_exec())
        bind_all(feeds, graph.raw_cuda_graph(), self._exec, num_nodes)
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
        for node in graph_nodes(self._graph.raw_cuda_graph(), self._num_nodes):
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

    def on_stream(self) -> AbstractContextManager[None]:
        return _ordered_on(self._stream)

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
        with self._current_stream(), _empty_graphs_allowed():
            for side in self._sides.values():
                self._stream.wait_stream(side)
            graph.capture_end()
        self._graph = None
        feeds, self._feeds = self._feeds, []
        num_nodes = check(runtime.cudaGraphGetNodes(runtime.cudaGraph_t(graph.raw_cuda_graph()), 0))[1]
        if num_nodes == len(feeds):
            for feed in feeds:
                feed.let_go()
            graph.reset()
            return None
        with stretch("instantiate"):
            graph.instantiate()
        return CudaRecording(graph, num_nodes, feeds, always_through_torch=bool(self._generators))

    def abort(self) -> None:
        graph, self._graph = self._graph, None
        self._feeds = []
        if graph is None:
            return
        with torch.cuda.stream(self._stream), _empty_graphs_allowed():
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
            return boundary.copy_
        feed = Feed(boundary, result)
        self._feeds.append(feed)
        return feed


class CudaDevice:
    """One GPU as a device to record segments on."""

    def __init__(self, index: int) -> None:
        self._index = index

    @property
    def torch_device(self) -> torch.device:
        return torch.device("cuda", self._index)

    @property
    def needs_tape(self) -> bool:
        return False

    @property
    def records_collectives(self) -> bool:
        return True

    @property
    def splits_blocks(self) -> bool:
        return True

    def new_pool(self, arenas: Sequence[int] = ()) -> CudaPool:
        pool = self.as_pool(torch.cuda.graph_pool_handle())
        with torch.cuda.stream(capture_stream(self._index)), torch.cuda.use_mem_pool(pool, self._index):  # type: ignore[arg-type]
            for block in [torch.empty(size, dtype=torch.uint8, device=self.torch_device) for size in arenas]:
                del block
        return pool

    def as_pool(self, pool: Any) -> CudaPool:
        """Accept a `CudaPool`, or what `torch.cuda.graph_pool_handle` or `torch.cuda.CUDAGraph.pool` returns."""
        if isinstance(pool, CudaPool):
            return pool
        if not isinstance(pool, tuple) or len(pool) != 2:
            raise UsageError(
                f"a GPU records into a graph pool, not into {pool!r}", hint="pass torch.cuda.graph_pool_handle()"
            )
        return CudaPool(self._index, (int(pool[0]), int(pool[1])))

    def recorder(self, pool: Pool, stream: Any, error_mode: str, generators: Sequence[torch.Generator]) -> CudaRecorder:
        return CudaRecorder(self._index, self.as_pool(pool), stream, error_mode, generators)

    def capture_stream(self) -> AbstractContextManager[None]:
        return _ordered_on(capture_stream(self._index))

    def side_stream(self) -> AbstractContextManager[None]:
        return _ordered_on(_side_stream(self._index))

    def current_stream(self) -> Any:
        return _stream_handle(torch._C._cuda_getCurrentRawStream(self._index))

    def order_after(self, stream: Any) -> None:
        other = torch.cuda.ExternalStream(int(stream), device=self._index)
        torch.cuda.current_stream(self._index).wait_stream(other)

    @property
    def can_be_lost(self) -> bool:
        return True

    def is_lost(self) -> bool:
        try:
            torch.cuda.synchronize(self._index)
        except RuntimeError:
            return True
        return False

    def listen(self) -> Callable[[], str]:
        return driver_log.listen()

    def synchronize(self) -> None:
        torch.cuda.synchronize(self._index)

    def empty_cache(self) -> None:
        with torch.cuda.device(self._index):
            torch.cuda.empty_cache()

    def memory(self, pool: Pool) -> MemoryReading:
        free, total = torch.cuda.mem_get_info(self._index)
        return MemoryReading(
            pool_bytes=pool.reserved_bytes(),
            driver_bytes=total - free - torch.cuda.memory_reserved(self._index),
        )

    def poison(self, pool: Pool) -> None:
        self.synchronize()
        for address, size in self.as_pool(pool).free_blocks():
            storage = torch._C._construct_storage_from_data_pointer(address, self.torch_device, size)
            torch.empty(0, dtype=torch.uint8, device=self.torch_device).set_(storage).fill_(POISON_BYTE)
        churn = [torch.full((size,), POISON_BYTE, dtype=torch.uint8, device=self.torch_device) for size in CHURN_SIZES]
        churn.clear()

    def peak_bytes(self, function: Callable[[], Any]) -> tuple[int, Any]:
        torch.cuda.reset_peak_memory_stats(self._index)
        before = torch.cuda.memory_allocated(self._index)
        result = function()
        return torch.cuda.max_memory_allocated(self._index) - before, result

    def describe(self) -> dict[str, str | None]:
        return {
            "device": torch.cuda.get_device_name(self._index),
            "driver": _driver_version(),
            "cuda": torch.version.cuda,
        }


@functools.lru_cache(maxsize=64)
def _stream_handle(raw: int) -> Any:
    return runtime.cudaStream_t(raw)


def _driver_version() -> str:
    """Return the driver's version, or where the system does not tell it that of the CUDA that it supports."""
    told = Path("/proc/driver/nvidia/version")
    found = re.search(r"\b\d{3,}\.\d+(\.\d+)?\b", told.read_text()) if told.is_file() else None
    if found is not None:
        return found[0]
    version = check(driver.cuDriverGetVersion())
    return f"CUDA {version // 1000}.{version % 1000 // 10}"
