"""`BreakableCUDAGraph`: the segments and breaks of one captured forward, and their replay."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor

from bcg.breaks import BreakLabel, is_following
from bcg.device import find_device
from bcg.device.base import Device, Pool, Recording, SegmentContents
from bcg.errors import CaptureError, Place, ReplayError
from bcg.outlets import Outlet
from bcg.report import StepKind
from bcg.segment_tape import FirstRead, SegmentTape
from bcg.whereabouts import source_line_of

Run: TypeAlias = Callable[[Any], None]
"""Runs a step once on a stream, which is the device's current one."""
Around: TypeAlias = Callable[[], AbstractContextManager[Any]]
"""Gives what one step is to stand in."""


class Segment:
    """One CUDA graph between two breaks.

    Attributes:
        tape: Its operations, externals (held here, for the graph's life) and writes.
    """

    kind: ClassVar[StepKind] = "segment"

    def __init__(self, recording: Recording, tape: SegmentTape) -> None:
        self.tape = tape
        self._recording = recording
        self.run: Run = recording.launch

    def contents(self) -> SegmentContents:
        """Look into the graph: nodes by kind, kernel names. Read from the driver at each call."""
        return self._recording.contents()

    def release(self) -> None:
        """Free the graph and let the externals go."""
        self._recording.release()
        self.tape = SegmentTape()


@dataclass(frozen=True)
class Ambience:
    """What a break's surroundings had set while it was captured: replay sets it again.

    Attributes:
        autocast: The dtype of the autocast that was on for the device type.
    """

    device_type: str
    autocast: torch.dtype

    @classmethod
    def now(cls, device_type: str) -> Ambience | None:
        """Return what is set now, or `None` where nothing is."""
        if not torch.is_autocast_enabled(device_type):
            return None
        return cls(device_type, torch.get_autocast_dtype(device_type))

    def around(self, function: Callable[[], Any]) -> Any:
        """Call `function` with it set again."""
        with torch.autocast(self.device_type, self.autocast):
            return function()


class Break:
    """A function that runs eagerly between two segments.

    Its arguments are bound once: tensors that the capture made are referred to without being kept alive (the
    pool owns them and the segment before has just written them), all others are held.

    Attributes:
        label: Name, module path and source.
        boundaries: Pool tensors through which its result reaches the next segment.
    """

    kind: ClassVar[StepKind] = "break"

    def __init__(
        self,
        label: BreakLabel,
        function: Callable[..., Any],
        call: Callable[[], Any],
        outlet: Outlet,
        boundaries: Sequence[Tensor],
        ambience: Ambience | None = None,
    ) -> None:
        self.label = label
        self.boundaries = tuple(boundaries)
        self.function = function
        self._call = call
        self._pour = outlet.pour
        self._ambience = ambience

    @property
    def boundary_bytes(self) -> int:
        return sum(boundary.untyped_storage().nbytes() for boundary in self.boundaries)

    def run(self, stream: Any) -> None:
        if self._ambience is None:
            self._pour(self._call())
        else:
            self._pour(self._ambience.around(self._call))


class Turn:
    """Lets one at a time use memory that replays share (hazard S17); whoever comes in between is refused."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            raise ReplayError(
                "a graph of the same pool is being captured or replayed, by another thread or around this break",
                hint="capture and replay graphs that share a pool one after another",
                hazard="S17",
            )

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class StreamOrder:
    """Keeps what is launched on one stream after another in the order of the launches."""

    def __init__(self) -> None:
        self._last_stream: Any = None
        self._used = False

    def wait(self, device: Device, stream: Any) -> None:
        """Let `stream`, the current one, wait for the last launch, where that was on another one."""
        if self._used and stream != self._last_stream:
            device.order_after(self._last_stream)

    def launch(self, device: Device, stream: Any) -> None:
        """Do the same, and let what comes on other streams wait for what is launched on this one."""
        self.wait(device, stream)
        self._last_stream, self._used = stream, True


class PoolUse:
    """Whose turn it is to capture or replay in a pool, and the order of its replays.

    Attributes:
        turn: Taken by a capture and by a replay, around what follows.
        replays: Order of the replays; a capture waits for them, and orders its stream and the caller's by itself.
    """

    def __init__(self) -> None:
        self.turn = Turn()
        self.replays = StreamOrder()


class BreakableCUDAGraph:
    """A forward captured as CUDA graph segments with eager breaks between them.

    Life of a graph: *empty* until a `BreakableCUDAGraphCapture` around it ends well, then *captured*; `reset`
    makes it empty again. It owns its segments and boundaries, holds every external tensor that a segment reads,
    and keeps its pool alive. Tensors that the capture made live in the pool: their values are valid until the
    next replay or capture in that pool.

    Args:
        device: ``"cuda"``, ``"cpu"`` (the host device), or `None` for the GPU where there is one and else the
            host.
    """

    def __init__(self, device: str | torch.device | None = None) -> None:
        self.device: Device = find_device(device)
        self._device_type = self.device.torch_device.type
        self.generators: list[torch.Generator] = []
        self.num_replays = 0
        self.num_side_streams = 0
        self._steps: list[Segment | Break] = []
        self._runs: list[Run] = []
        self._held: tuple[Tensor, ...] = ()
        self._pool: Pool | None = None
        self._pool_use = PoolUse()
        self._inference = False

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("a captured graph lives where it was captured, and can't be copied or pickled: capture again")

    @property
    def steps(self) -> tuple[Segment | Break, ...]:
        """Segments and breaks in the order of replay."""
        return tuple(self._steps)

    @property
    def segments(self) -> tuple[Segment, ...]:
        return tuple(step for step in self._steps if isinstance(step, Segment))

    @property
    def breaks(self) -> tuple[Break, ...]:
        return tuple(step for step in self._steps if isinstance(step, Break))

    @property
    def num_segments(self) -> int:
        return len(self.segments)

    @property
    def num_breaks(self) -> int:
        return len(self.breaks)

    @property
    def pool(self) -> Pool | None:
        """The pool of the last capture; other captures may share it."""
        return self._pool

    def moved_externals(self) -> Iterator[tuple[Tensor, FirstRead]]:
        """Yield the externals whose memory was freed or exchanged since the capture (hazard S5); see `SegmentTape`.

        A replay would read garbage, or crash. It does not look by itself: that would cost time at every replay.
        """
        for segment in self.segments:
            yield from segment.tape.moved_externals()

    def register_generator(self, generator: torch.Generator) -> None:
        """Let segments draw from `generator`, besides the default one; to be called before the capture."""
        self.generators.append(generator)

    def replay(self, around: Sequence[Around] | None = None) -> None:
        """Run the segments and breaks once, in order, on the current stream.

        Breaks run under the caller's forward context and under no gradient, as nothing of a graph is
        differentiated; under the autocast of their capture, whatever the caller's.

        Args:
            around: One for each step, for somebody who looks at it on the way.

        Raises:
            ReplayError: Nothing was captured, a break returned something else than at capture, or a graph of
                the same pool is being replayed.
        """
        if not self._steps:
            raise ReplayError("replay of an empty graph", hint="capture it first: a capture of nothing is empty")
        if is_following():
            raise CaptureError(
                "a graph is replayed inside a capture: a segment can't hold it",
                hint="do it in a function that is marked eager_on_graph",
            )
        stream = self.device.current_stream()
        runs = self._runs
        if around is not None:
            runs = [_within(enter, run) for enter, run in zip(around, self._runs, strict=True)]
        grad_mode = torch.inference_mode() if self._inference else torch.no_grad()
        with self._pool_use.turn, grad_mode, _no_autocast(self._device_type):
            self._pool_use.replays.launch(self.device, stream)
            index = 0
            try:
                for index, run in enumerate(runs):  # noqa: B007
                    run(stream)
            except Exception as error:
                step = self._steps[index]
                error.add_note(f"in {self._describe(step)} of the replay")
                if isinstance(error, ReplayError) and isinstance(step, Break):
                    error.place = error.place or Place(module=step.label.module, source=source_line_of(step.function))
                raise
        self.num_replays += 1

    def reset(self) -> None:
        """Free segments, boundaries and externals; the graph can be captured again."""
        for segment in self.segments:
            segment.release()
        self._steps, self._runs = [], []
        self._held = ()
        self._pool = None
        self._pool_use = PoolUse()

    def adopt_labels(self, taped: BreakableCUDAGraph) -> None:
        """Call the breaks as in `taped`, the same program at another size: only a tape sees their modules."""
        if [step.label.name for step in self.breaks] == [step.label.name for step in taped.breaks]:
            for mine, its in zip(self.breaks, taped.breaks, strict=True):
                mine.label = its.label

    def install(
        self,
        steps: Sequence[Segment | Break],
        pool: Pool,
        pool_use: PoolUse,
        *,
        inference: bool,
        num_side_streams: int,
        held: Sequence[Tensor],
    ) -> None:
        """Take over what a capture recorded; called by `BreakableCUDAGraphCapture`."""
        self._steps = list(steps)
        self._runs = [step.run for step in steps]
        self._pool = pool
        self._pool_use = pool_use
        self._inference = inference
        self.num_side_streams = num_side_streams
        self._held = tuple(held)

    def _describe(self, step: Segment | Break) -> str:
        if isinstance(step, Break):
            return f"break {self.breaks.index(step)} ({step.label.name})"
        return f"segment {self.segments.index(step)}"


def _within(enter: Around, run: Run) -> Run:
    def run_inside(stream: Any) -> None:
        with enter():
            run(stream)

    return run_inside


def _no_autocast(device_type: str) -> AbstractContextManager[Any]:
    """Take off the caller's autocast; a break that was captured under one sets it again (see `Ambience`)."""
    if torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()
