"""The GPU's memory for captures: private pools of torch's caching allocator, and the stream that fills them."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from cuda.bindings import driver
from torch import Tensor


@functools.cache
def capture_stream(index: int) -> torch.cuda.Stream:
    """Return the one stream on which everything is captured on GPU `index`.

    Free blocks of a pool belong to the stream that they were allocated on: with a stream per bucket no bucket
    could reuse another's memory.
    """
    return torch.cuda.Stream(device=index)


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
        self._ranges: list[tuple[int, int]] = []
        self._strangers: set[int] = set()
        self._keeper = torch.cuda.CUDAGraph()
        with torch.cuda.stream(capture_stream(index)), empty_graphs_allowed():
            self._keeper.capture_begin(pool=id, capture_error_mode="relaxed")  # type: ignore[arg-type]
            self._keeper.capture_end()

    def reserved_bytes(self) -> int:
        return sum(segment["total_size"] for segment in self.segments())

    def owns(self, tensor: Tensor) -> bool:
        address = tensor.data_ptr()
        if self._covers(address):
            return True
        block = _driver_block(address)
        if block in self._strangers:
            return False
        self._ranges = [(segment["address"], segment["total_size"]) for segment in self.segments()]
        if self._covers(address):
            return True
        if block is not None:
            self._strangers.add(block)
        return False

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


def _driver_block(address: int) -> int | None:
    """Return the driver's number of the memory around an address, never given twice, if it knows one.

    Far cheaper to ask for than what torch keeps of its blocks.
    """
    error, number = driver.cuPointerGetAttribute(
        driver.CUpointer_attribute.CU_POINTER_ATTRIBUTE_BUFFER_ID, driver.CUdeviceptr(address)
    )
    return None if error else int(number) or None


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
def empty_graphs_allowed() -> Iterator[None]:
    """Let captures inside the block hold nothing, without torch's warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The CUDA Graph is empty")
        yield
