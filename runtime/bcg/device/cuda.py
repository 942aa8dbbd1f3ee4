"""The GPU: pools, recorders and streams of one, what it holds and what it says.

With its helpers in this folder the only file that touches the CUDA graph interface.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from cuda.bindings import driver, runtime

from bcg.device import driver_log
from bcg.device.base import CHURN_SIZES, POISON_BYTE, Pool
from bcg.device.calls import check
from bcg.device.cuda_pool import CudaPool, capture_stream
from bcg.device.cuda_recorder import CudaRecorder, ordered_on
from bcg.errors import UsageError


@functools.cache
def _side_stream(index: int) -> torch.cuda.Stream:
    """Return the one further stream of GPU `index`: libraries keep a workspace for every stream that they meet."""
    return torch.cuda.Stream(device=index)


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

    def as_recorded(self) -> AbstractContextManager[Any]:
        return contextlib.nullcontext()

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
        return ordered_on(capture_stream(self._index))

    def side_stream(self) -> AbstractContextManager[None]:
        return ordered_on(_side_stream(self._index))

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

    def driver_bytes(self) -> int:
        free, total = torch.cuda.mem_get_info(self._index)
        return total - free - self._allocator("reserved_bytes", "current")

    def _allocator(self, what: str, when: str) -> int:
        """Ask the caching allocator for one of its counts; torch's function for it sorts a hundred others first."""
        count: int = torch.cuda.memory_stats_as_nested_dict(self._index)[what]["all"][when]
        return count

    def poison(self, pool: Pool) -> None:
        self.synchronize()
        for address, size in self.as_pool(pool).free_blocks():
            storage = torch._C._construct_storage_from_data_pointer(address, self.torch_device, size)
            torch.empty(0, dtype=torch.uint8, device=self.torch_device).set_(storage).fill_(POISON_BYTE)
        churn = [torch.full((size,), POISON_BYTE, dtype=torch.uint8, device=self.torch_device) for size in CHURN_SIZES]
        churn.clear()

    def peak_bytes(self, function: Callable[[], Any]) -> tuple[int, Any]:
        torch.cuda.reset_peak_memory_stats(self._index)
        before = self._allocator("allocated_bytes", "current")
        result = function()
        return self._allocator("allocated_bytes", "peak") - before, result

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
