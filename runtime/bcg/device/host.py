"""The host device: records a segment as the ATen operations that ran, and replays them onto the same memory.

It keeps the rules of a CUDA graph on a machine that has none: addresses are fixed, Python does not run at
replay, and tensors made inside a segment live in a graph pool whose blocks are reused as soon as the last
reference to them is gone. So what would dangle on a GPU is overwritten here too.

One thing differs: an operator of a library's own (``torch.library``) is one operation here, and its implementation
runs at each replay, also where it is Python. A GPU keeps what it launched.
"""

from __future__ import annotations

import contextlib
import ctypes
import platform
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from bcg.device.asking import pretend_capturing
from bcg.device.base import CHURN_SIZES, POISON_BYTE, Pool, SegmentContents
from bcg.dispatch import DispatchMode, uncompiled
from bcg.errors import CaptureError, UsageError
from bcg.structure import is_wrapped, map_tensors, storage_bytes, storage_key, tensors_in, unowned_alias, view_as_in

ALIGNMENT = 64
"""Bytes to which a block's size is rounded up."""
MAX_CHURN = 2**17
"""Larger blocks go back to the system when they are freed: nobody gets them again, poisoned or not."""


class HostPool:
    """A graph pool in host memory.

    Storages taken from it are views of blocks that the pool owns. When the last tensor over a storage is gone,
    its block is free again and the next storage that fits takes it, as in the private pool of a CUDA graph. That may
    happen on any thread: a collective's own lets go of the tensors that it worked on.
    """

    def __init__(self) -> None:
        self._blocks: dict[int, Tensor] = {}
        self._free: set[int] = set()
        self._owners: dict[int, weakref.ref[ctypes.Array[ctypes.c_char]]] = {}

    @property
    def id(self) -> int:
        return id(self)

    def reserved_bytes(self) -> int:
        return sum(block.numel() for block in self._blocks.values())

    def owns(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self._blocks

    def free_blocks(self) -> list[Tensor]:
        """The blocks that no tensor uses now, as uint8 tensors; a check may fill them with poison."""
        return [self._blocks[address] for address in self._free.copy()]

    def take(self, num_bytes: int) -> torch.UntypedStorage:
        """Return a storage of `num_bytes` over the smallest free block that holds it, or over a new one."""
        if num_bytes == 0:
            return torch.UntypedStorage(0, device="cpu")
        size = -(-num_bytes // ALIGNMENT) * ALIGNMENT
        address = min(
            (address for address in self._free.copy() if self._blocks[address].numel() >= size),
            key=lambda address: self._blocks[address].numel(),
            default=None,
        )
        if address is None:
            with torch.inference_mode(False):
                block = torch.empty(size, dtype=torch.uint8, device="cpu")
            address = block.data_ptr()
            self._blocks[address] = block
        self._free.discard(address)
        memory = (ctypes.c_char * num_bytes).from_address(address)
        memory.block = self._blocks[address]  # type: ignore[attr-defined]  # what was handed out outlives the pool
        self._owners[address] = weakref.ref(memory, self._give_back(address))
        return torch.frombuffer(memory, dtype=torch.uint8).untyped_storage()

    def _give_back(self, address: int) -> Callable[[object], None]:
        free = self._free
        return lambda _: free.add(address)


@dataclass(frozen=True)
class HostCall:
    """One recorded operation: what to call, on what, and the pool memory that its results are written to."""

    function: Callable[..., Any]
    args: Any
    kwargs: Any
    writes: tuple[tuple[int, Tensor], ...]

    def run(self) -> None:
        result = self.function(*self.args, **self.kwargs)
        if self.writes:
            results = tensors_in(result)
            for index, memory in self.writes:
                memory.copy_(storage_bytes(results[index]))


class HostRecording:
    """A segment as the list of its calls."""

    def __init__(self, calls: list[HostCall]) -> None:
        self._calls = calls
        self._default_dtype = torch.get_default_dtype()

    def launch(self, stream: Any) -> None:
        default_dtype = torch.get_default_dtype()
        torch.set_default_dtype(self._default_dtype)  # a kernel was chosen at capture, an operation chooses again
        try:
            for call in self._calls:
                call.run()
        finally:
            torch.set_default_dtype(default_dtype)

    def contents(self) -> SegmentContents:
        names: dict[str, int] = {}
        for call in self._calls:
            name = str(call.function)
            names[name] = names.get(name, 0) + 1
        return SegmentContents(num_kernels=len(self._calls), node_counts={"operation": len(self._calls)}, kernels=names)

    def release(self) -> None:
        self._calls = []


class HostRecorder:
    """Records the segments of one capture as calls."""

    runs_while_recording = True

    def __init__(self, pool: HostPool) -> None:
        self._pool = pool
        self._calls: list[HostCall] = []

    def on_stream(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    @property
    def num_side_streams(self) -> int:
        return 0

    def begin(self) -> None:
        self._calls = []
        pretend_capturing(True)

    def is_intact(self) -> bool:
        return True

    def end(self) -> HostRecording | None:
        pretend_capturing(False)
        calls, self._calls = self._calls, []
        return HostRecording(calls) if calls else None

    def abort(self) -> None:
        pretend_capturing(False)
        self._calls = []

    def allocate(self, size: Sequence[int], stride: Sequence[int], dtype: torch.dtype) -> Tensor:
        span = 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if 0 not in size else 0
        storage = self._pool.take(span * dtype.itemsize)
        return torch.empty(0, dtype=dtype, device="cpu").set_(storage, 0, size, stride)

    def feed(self, boundary: Tensor, result: Tensor) -> Callable[[Tensor], Any]:
        boundary.copy_(result)
        return boundary.copy_

    def execute(self, function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        given = {storage_key(t): t.untyped_storage().data_ptr() for t in tensors_in((args, kwargs))}
        frozen_args, frozen_kwargs = map_tensors(self._freeze, (tuple(args), kwargs))
        result = function(*args, **kwargs)
        self._refuse_moved_storage(function, args, kwargs, given)
        homes: dict[int, torch.UntypedStorage] = {}
        writes: list[tuple[int, Tensor]] = []
        outputs = tensors_in(result)
        for index, tensor in enumerate(outputs):
            key = storage_key(tensor)
            if key in given or key in homes:
                continue
            homes[key] = self._pool.take(tensor.untyped_storage().nbytes())
            memory = torch.empty(0, dtype=torch.uint8, device="cpu").set_(homes[key])
            memory.copy_(storage_bytes(tensor))
            writes.append((index, unowned_alias(memory)))
        only_views = bool(outputs) and not writes and not _may_write(function)
        if not only_views:
            self._calls.append(HostCall(function, frozen_args, frozen_kwargs, tuple(writes)))
        if not homes:
            return result
        return map_tensors(lambda tensor: _rehome(tensor, homes.get(storage_key(tensor))), result)

    def _freeze(self, tensor: Tensor) -> Tensor:
        """Keep how `tensor` looks at its memory now: the body may reshape it in place.

        Pool memory is held by the pool, so its tensors are not; everything else is held by the call.
        """
        return unowned_alias(tensor) if self._pool.owns(tensor) else tensor.detach()

    @staticmethod
    def _refuse_moved_storage(
        function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], given: dict[int, int]
    ) -> None:
        for tensor in tensors_in((args, kwargs)):
            if given.get(storage_key(tensor)) != tensor.untyped_storage().data_ptr():
                raise CaptureError(
                    f"{function} gave a tensor other memory inside a segment; a graph replays on fixed addresses",
                    hint="allocate the tensor with its final shape before it is written",
                )


def _may_write(function: Any) -> bool:
    schema = getattr(function, "_schema", None)
    return schema is None or (schema.is_mutable and torch.Tag.inplace_view not in function.tags)


def _rehome(tensor: Tensor, storage: torch.UntypedStorage | None) -> Tensor:
    if storage is None:
        return tensor
    return view_as_in(storage, tensor)


class HostDevice:
    """The CPU as a device to record segments on."""

    @property
    def torch_device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def needs_tape(self) -> bool:
        return True

    def as_recorded(self) -> AbstractContextManager[Any]:
        return uncompiled

    @property
    def records_collectives(self) -> bool:
        return False

    @property
    def splits_blocks(self) -> bool:
        return False

    def new_pool(self, arenas: Sequence[int] = ()) -> HostPool:
        return HostPool()

    def as_pool(self, pool: Any) -> HostPool:
        if not isinstance(pool, HostPool):
            raise UsageError(f"the host device records into a HostPool, not into {pool!r}")
        return pool

    def recorder(self, pool: Pool, stream: Any, error_mode: str, generators: Sequence[torch.Generator]) -> HostRecorder:
        return HostRecorder(self.as_pool(pool))

    def capture_stream(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    def side_stream(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    def current_stream(self) -> None:
        return None

    def order_after(self, stream: Any) -> None:
        return None

    @property
    def can_be_lost(self) -> bool:
        return False

    def is_lost(self) -> bool:
        return False

    def listen(self) -> Callable[[], str]:
        return str

    def synchronize(self) -> None:
        return None

    def empty_cache(self) -> None:
        return None

    def driver_bytes(self) -> int:
        return 0

    def poison(self, pool: Pool) -> None:
        with torch.inference_mode():
            for block in self.as_pool(pool).free_blocks():
                block.fill_(POISON_BYTE)
        churn = [torch.full((size,), POISON_BYTE, dtype=torch.uint8) for size in CHURN_SIZES if size <= MAX_CHURN]
        churn.clear()

    def peak_bytes(self, function: Callable[[], Any]) -> tuple[int, Any]:
        with _LiveBytes() as live:
            result = function()
        return live.peak, result

    def describe(self) -> dict[str, str | None]:
        return {"device": f"host ({platform.machine()} CPU)", "driver": None, "cuda": None}


class _LiveBytes(DispatchMode):
    """Follows the storages that operations allocate, and the most bytes of them alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def run(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = {storage_key(tensor) for tensor in tensors_in((args, kwargs))}
        result = function(*args, **kwargs)
        for tensor in tensors_in(result):
            key = storage_key(tensor)
            if key not in given and key not in self._alive and not is_wrapped([type(tensor)]):
                storage = tensor.untyped_storage()
                self._alive[key] = (StorageWeakRef(storage), storage.nbytes())
        self._alive = {key: entry for key, entry in self._alive.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(num_bytes for _, num_bytes in self._alive.values()))
        return result
