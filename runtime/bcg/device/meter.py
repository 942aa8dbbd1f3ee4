"""Reading time and memory of a device, for profiles.

On a GPU time passes between two device events; on the host device it is the clock's. The two are never mixed:
a report says which device it was measured on.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch


@dataclass(frozen=True)
class Usage:
    """Device memory in use at one moment, in bytes; only differences between two readings mean anything.

    Attributes:
        allocator_bytes: Reserved by torch's allocator, its caches emptied.
        driver_bytes: In use on the device beyond that: the context and every instantiated graph.
    """

    allocator_bytes: int
    driver_bytes: int


class Meter(Protocol):
    """What a profile reads."""

    @property
    def is_device(self) -> bool:
        """Whether marks are device events."""

    def mark(self) -> Any:
        """Note this moment in the order of the current stream's work."""

    def elapsed_ms(self, start: Any, end: Any) -> float:
        """Return the time between two marks, after `synchronize`."""

    def synchronize(self) -> None:
        """Wait until all work is done."""

    def usage(self) -> Usage:
        """Collect garbage, empty caches, and read the memory."""

    def peak_of(self) -> AbstractContextManager[list[int]]:
        """Give a list that holds, after the block, the most bytes that tensors held at once in it; none where unknown.

        Weights are part of it; what graphs keep in their pools without a tensor is not.
        """

    def free_bytes(self) -> int:
        """Return what could still be allocated; 0 where that is not known."""

    def tool_range(self) -> AbstractContextManager[None]:
        """Tell an attached profiling tool that the block is what it is after (``cudaProfilerStart``/``Stop``)."""


def available_bytes() -> int | None:
    """Return the memory that the system has left; None where it doesn't say, as only Linux does."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    kibibytes = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    return None if kibibytes is None else int(kibibytes) * 1024


class HostMeter:
    """The host device: the clock, and the memory that the system has left."""

    is_device = False

    def mark(self) -> float:
        return time.perf_counter()

    def elapsed_ms(self, start: float, end: float) -> float:
        return (end - start) * 1e3

    def synchronize(self) -> None:
        return None

    def usage(self) -> Usage:
        gc.collect()
        return Usage(0, 0)

    @contextlib.contextmanager
    def peak_of(self) -> Iterator[list[int]]:
        yield []

    def free_bytes(self) -> int:
        return available_bytes() or 0

    def tool_range(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext()


class CudaMeter:
    """One GPU: events, the caching allocator, and the driver's own count."""

    is_device = True

    def __init__(self, index: int) -> None:
        self._index = index

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._index))
        return event

    def elapsed_ms(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        return float(start.elapsed_time(end))

    def synchronize(self) -> None:
        torch.cuda.synchronize(self._index)

    def usage(self) -> Usage:
        gc.collect()
        self.synchronize()
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(self._index)
        reserved = torch.cuda.memory_reserved(self._index)
        return Usage(reserved, total - free - reserved)

    @contextlib.contextmanager
    def peak_of(self) -> Iterator[list[int]]:
        torch.cuda.reset_peak_memory_stats(self._index)
        peak: list[int] = []
        yield peak
        self.synchronize()
        peak.append(torch.cuda.max_memory_allocated(self._index))

    def free_bytes(self) -> int:
        return int(torch.cuda.mem_get_info(self._index)[0])

    @contextlib.contextmanager
    def tool_range(self) -> Iterator[None]:
        torch.cuda.cudart().cudaProfilerStart()
        try:
            yield
        finally:
            self.synchronize()
            torch.cuda.cudart().cudaProfilerStop()


def find_meter(device: torch.device) -> Meter:
    """Return the meter of a device."""
    if device.type == "cpu":
        return HostMeter()
    return CudaMeter(torch.cuda.current_device() if device.index is None else device.index)
