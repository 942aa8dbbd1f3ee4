"""What a device must be able to do for segments to be recorded and replayed on it.

A `Device` is a place to record: it makes graph pools and recorders and reads memory. A `Recorder` lives for
one capture and moves through these states, driven by `bcg.capture`:

    entered ── begin ──▶ recording ── end ──▶ entered ── begin ──▶ … ── left
                            │
                          abort ──▶ entered

`Recording` is one finished segment. Nothing above this folder knows which device it runs on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

POISON_BYTE = 0xFF
"""Every floating-point type of this byte is NaN."""

CHURN_SIZES = tuple(2**exponent for exponent in range(9, 22) for _ in range(4))
"""Bytes of the blocks that are taken from the normal allocator, filled with poison and given back."""


@dataclass(frozen=True)
class SegmentContents:
    """What one recorded segment is made of.

    Attributes:
        num_kernels: Kernels on a GPU; operations on the host device.
        node_counts: Number of graph nodes by kind (``kernel``, ``memcpy``, ``memset``, …).
        kernels: How often each kernel (operation on the host device) occurs, by name, in order of first use.
    """

    num_kernels: int
    node_counts: dict[str, int]
    kernels: dict[str, int]


class Pool(Protocol):
    """Memory that outlives captures: every segment of every bucket takes its tensors from it."""

    @property
    def id(self) -> Any:
        """What identifies the pool to the device's own interface."""

    def reserved_bytes(self) -> int:
        """Bytes that the pool holds, in use or not."""

    def owns(self, tensor: Tensor) -> bool:
        """Tell whether the memory of `tensor` belongs to the pool."""


class Recording(Protocol):
    """One recorded segment; owns its graph until `release`."""

    def launch(self, stream: Any) -> None:
        """Run the segment once on `stream`, which `Device.current_stream` returned."""

    def contents(self) -> SegmentContents:
        """Look into the segment."""

    def release(self) -> None:
        """Free the graph. The recording can't be launched any more."""


class Recorder(Protocol):
    """Records the segments of one capture, one after another, into one pool.

    Attributes:
        runs_while_recording: Whether operations have their effect while they are recorded. Where they have none,
            the capture launches each segment once it was recorded.
    """

    runs_while_recording: bool

    def on_stream(self) -> AbstractContextManager[None]:
        """Make the stream of the capture current, ordered after and before the caller's."""

    def begin(self) -> None:
        """Start recording a segment."""

    def execute(self, function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Run one ATen operation of the segment that is being recorded and return its result."""

    def is_intact(self) -> bool:
        """Tell whether the recording of the segment still goes on: the driver ends it silently at some errors."""

    def end(self) -> Recording | None:
        """Finish the segment; `None` when nothing was recorded in it."""

    @property
    def num_side_streams(self) -> int:
        """Streams beside the capture's own on which operations were seen so far."""

    def abort(self) -> None:
        """Drop the segment that is being recorded, if one is, and leave the device fit for the next capture."""

    def allocate(self, size: Sequence[int], stride: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Allocate a boundary in the pool, outside any segment."""

    def feed(self, boundary: Tensor, result: Tensor) -> Callable[[Tensor], Any]:
        """Bring the first result of a break into `boundary`, and return what does it with later ones.

        Each is there in time for the next step. Called between two segments. Later results have the shape and dtype
        of `boundary`.

        Args:
            boundary: Allocated here, without owning its memory.
            result: What the break returned at capture.
        """


class Device(Protocol):
    """A place where segments are recorded and replayed."""

    @property
    def torch_device(self) -> torch.device:
        """The device of the tensors that a graph works on."""

    @property
    def needs_tape(self) -> bool:
        """Whether segments are recorded through the operations that the tape sees."""

    def as_recorded(self) -> AbstractContextManager[Any]:
        """Let forwards and breaks inside the block run as segments do: where these hold operations, uncompiled."""

    @property
    def records_collectives(self) -> bool:
        """Whether a segment can hold collectives of torch.distributed; elsewhere each is a break."""

    @property
    def splits_blocks(self) -> bool:
        """Whether a pool serves several tensors from one large block, so that its layout can be planned."""

    def new_pool(self, arenas: Sequence[int] = ()) -> Pool:
        """Make a graph pool that begins with free blocks of these sizes, in bytes."""

    def as_pool(self, pool: Any) -> Pool:
        """Accept a `Pool`, or what the device's own interface calls one."""

    def recorder(self, pool: Pool, stream: Any, error_mode: str, generators: Sequence[torch.Generator]) -> Recorder:
        """Make the recorder of one capture; on `stream`, or on the device's one capture stream."""

    def capture_stream(self) -> AbstractContextManager[None]:
        """Make the device's one capture stream current, ordered after and before the caller's stream.

        Warm-ups run on it, so that what libraries set up per stream is there when the capture begins.
        """

    def side_stream(self) -> AbstractContextManager[None]:
        """Make another stream than the caller's and the captures' current, ordered after and before the caller's."""

    def current_stream(self) -> Any:
        """The stream that work is launched on now, as `Recording.launch` takes it."""

    def order_after(self, stream: Any) -> None:
        """Make the current stream wait for the work launched so far on `stream`."""

    @property
    def can_be_lost(self) -> bool:
        """Whether an error, such as an illegal access, can make the device unusable to the process that ran it."""

    def is_lost(self) -> bool:
        """Tell whether such an error has made the device unusable to this process."""

    def listen(self) -> Callable[[], str]:
        """Return a function that tells what the driver has said about errors since now, a few lines; or nothing."""

    def synchronize(self) -> None:
        """Wait until all work on the device is done."""

    def driver_bytes(self) -> int:
        """Return what is in use on the device outside the caching allocator: the context, and every instantiated graph.

        Only differences between two readings mean anything; on the host device there is nothing. The allocator's
        cache is left out, so neither a synchronization nor an empty cache is needed before a reading.
        """

    def empty_cache(self) -> None:
        """Give the memory that the allocator caches, outside graph pools, back to the device."""

    def poison(self, pool: Pool) -> None:
        """Fill memory that nobody uses with NaN: the pool's free blocks, and blocks of the normal allocator.

        Whatever a replay reads there without having written it shows in its results. Runs on the current stream,
        so that what was launched there before still sees the old contents.
        """

    def peak_bytes(self, function: Callable[[], Any]) -> tuple[int, Any]:
        """Call `function`; return the most bytes that were allocated during it beyond the start, and its result."""

    def describe(self) -> dict[str, str | None]:
        """``device`` name, ``driver`` version and ``cuda`` version, for reports."""
