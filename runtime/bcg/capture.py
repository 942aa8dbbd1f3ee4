"""`BreakableCUDAGraphCapture`: records a block of code as the segments and breaks of a `BreakableCUDAGraph`."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from bcg import breaks
from bcg.alignment import Alignment
from bcg.arguments import Arguments
from bcg.boundary import Holder
from bcg.breaks import Bindable, BreakLabel, InPlace
from bcg.collectives import CollectiveWatch, is_collective, settled
from bcg.device.base import Pool, Recorder
from bcg.errors import CaptureError, Place
from bcg.graph import Ambience, Break, BreakableCUDAGraph, PoolUse, Segment, StreamOrder
from bcg.outlets import ConstantOutlet
from bcg.structure import is_sparse, map_tensors, storage_key, tensors_in, unowned_alias, whole_tensors_in
from bcg.tape import Tape
from bcg.whereabouts import torchs_function

_pool_uses: weakref.WeakValueDictionary[Any, PoolUse] = weakref.WeakValueDictionary()


class BreakableCUDAGraphCapture:
    """Context manager that captures its body into `graph`.

    The body runs once. On a GPU each segment is replayed right after it was recorded (kernels don't run while a
    stream is captured), so breaks see real data and the body's results are real when the block ends. Work is recorded
    on one capture stream, which is current inside the block and ordered after and before the caller's stream.

    If the body, a break or the capture itself fails, everything is undone: stream, capture state, generators
    and the graph, which is empty again and can capture again. The exception keeps its type and message; a note
    says in which segment or break it happened.

    Args:
        graph: An empty graph.
        pool: Graph pool to allocate from: a graph's `pool`, or on a GPU what `torch.cuda.graph_pool_handle`
            returns (which is spent if its first capture fails). A new one by default. Graphs that share a pool must
            not be replayed at the same time, and a later capture may reuse the memory of results that nobody holds.
        stream: GPU stream to capture on; the device's one capture stream by default.
        capture_error_mode: ``"global"``, ``"thread_local"`` or ``"relaxed"``, as in `torch.cuda.graph`.
        known_externals: Tensors that are held for the graph's life in place of those that the tape would find.
            The capture then runs without the tape: a third of the time on a GPU, but whoever calls vouches that
            segments read nothing else from outside, and errors say no place. The host device can't do without.
        alignment: Ranks meet before the first run of a segment, before a break and before a collective inside one,
            and each time compare where they are.

    Raises:
        CaptureError: A capture is active on this thread, the graph is not empty, or the capture failed.
        HostReadError: The body reads a device value on the host inside a segment.
    """

    def __init__(
        self,
        graph: BreakableCUDAGraph,
        pool: Any = None,
        stream: Any = None,
        capture_error_mode: str = "global",
        *,
        known_externals: Sequence[Tensor] | None = None,
        alignment: Alignment | None = None,
    ) -> None:
        self.graph = graph
        self._pool = pool
        self._stream = stream
        self._error_mode = capture_error_mode
        self._known_externals = known_externals
        self._alignment = alignment
        self._steps: list[Segment | Break] = []
        self._first_error: BaseException | None = None
        self._is_recording = False
        self._is_whole = False

    def __enter__(self) -> BreakableCUDAGraphCapture:
        active = breaks.current_capture()
        if active is not None:
            place = active._tape.place("a nested capture") if isinstance(active, BreakableCUDAGraphCapture) else None
            raise CaptureError(
                "a capture is already active on this thread" + (f": {place}" if place else ""),
                hint="end it before beginning another; a model leaves capturing to its caller",
                place=place,
                hazard="L14",
            )
        if self.graph.steps:
            raise CaptureError("the graph was captured before", hint="reset() it, or capture into a new one")
        device = self.graph.device
        self._pool_handle: Pool = device.new_pool() if self._pool is None else device.as_pool(self._pool)
        self._recorder: Recorder = device.recorder(
            self._pool_handle, self._stream, self._error_mode, self.graph.generators
        )
        self._tape: Tape = Tape(device, self._recorder)
        self._is_taped = self._known_externals is None or device.needs_tape
        self._arguments = Arguments(self._made, self._tape.forbid)
        self._pool_use = _use_of(self._pool_handle)
        self._steps, self._first_error, self._is_whole = [], None, False
        self._inference = torch.is_inference_mode_enabled()
        with contextlib.ExitStack() as stack:
            stack.enter_context(_no_garbage_collection())
            stack.enter_context(_own_cache_of_autocast())
            stack.enter_context(self._recorder.on_stream())
            stack.enter_context(self._pool_use.turn)
            self._pool_use.replays.wait(device, device.current_stream())
            self._order = StreamOrder()
            self._order.launch(device, device.current_stream())
            stack.enter_context(breaks.running_breaks(self))
            stack.callback(self._abort)
            if self._is_taped:
                stack.enter_context(self._tape.watching())
            self._begin_segment()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            with self._stack:
                if error is not None:
                    self._explain(error)
                    return
                self._raise_swallowed_error()
                self._end_segment()
                self._arguments.refuse_changes()
                self._is_whole = True
            self.graph.install(
                self._steps,
                self._pool_handle,
                self._pool_use,
                inference=self._inference,
                num_side_streams=self._recorder.num_side_streams,
                held=self._known_externals or (),
            )
        finally:
            self._tape.close()
            del self._stack, self._tape, self._recorder, self._arguments, self._pool_use, self._pool_handle

    def run_break(
        self, function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], label: BreakLabel
    ) -> Any:
        """End the segment, run `function` eagerly, begin the next segment; return the function's result.

        The tensors of the result are the boundaries that every replay writes. Called by `bcg.breaks.call_break`.
        """
        self._raise_swallowed_error()
        if label.module is None:
            label = dataclasses.replace(label, module=self._tape.module_path)
        _refuse_transformed(label, (args, kwargs))
        ambience = Ambience.now(self._tape.device_type)
        args, kwargs = map_tensors(settled, (tuple(args), kwargs))
        self._end_segment()
        try:
            self._meet(f"break {label.name} in module {label.module!r}")
            watch = self._tape.looking_away() if self._is_taped else contextlib.nullcontext()
            with watch, self._watch_collectives(label):
                bound_args, bound_kwargs = self._arguments.bound(args, kwargs)
                in_place: InPlace | None = None
                if isinstance(function, Bindable) and ambience is None:
                    in_place = function.bind(self._recorder.allocate, *bound_args, **bound_kwargs)
                with self._arguments.given(label, function, args, kwargs):
                    if in_place is not None:
                        in_place.write()
                    else:
                        result = function(*args, **kwargs)
            if ambience is not None:
                torch.clear_autocast_cache()  # of weights that the break cast: segments cast their own
            if in_place is not None:
                handed: Any = self._add_in_place(label, function, in_place)
            else:
                call = functools.partial(function, *bound_args, **bound_kwargs)
                handed = self._add_break(label, function, (args, kwargs), call, result, ambience)
        except BaseException as error:
            error.add_note(f"in break {label.name}")
            self._first_error = self._first_error or error
            raise
        self._begin_segment()
        return handed

    def _add_in_place(self, label: BreakLabel, function: Callable[..., Any], in_place: InPlace) -> Tensor:
        """What is called returns nothing, and must not: its result is where the next segment reads it."""
        self._tape.add_made(in_place.result)
        boundaries = (unowned_alias(in_place.result),)
        self._steps.append(Break(label, function, in_place.write, ConstantOutlet(None, label.name), boundaries))
        return in_place.result

    def _meet(self, place: str) -> None:
        if self._alignment is not None:
            self._alignment.meet(f"step {len(self._steps)}: {place}")

    def _watch_collectives(self, label: BreakLabel) -> AbstractContextManager[Any]:
        if self._alignment is None or label.source == "collective":
            return contextlib.nullcontext()
        return CollectiveWatch(lambda name: self._meet(f"{name} inside break {label.name}"))

    def _add_break(
        self,
        label: BreakLabel,
        function: Callable[..., Any],
        arguments: Any,
        call: Callable[[], Any],
        result: Any,
        ambience: Ambience | None,
    ) -> Any:
        given = {storage_key(tensor) for tensor in tensors_in(arguments)}
        holder = Holder(
            label.name,
            self._recorder,
            lambda tensor: storage_key(tensor) in given or self._made(tensor),
            self._tape.is_on_device,
        )
        handed, outlet = holder.hold(result)
        for boundary in holder.boundaries:
            self._tape.add_made(boundary)
        self._steps.append(Break(label, function, call, outlet, holder.unowned, ambience))
        return handed

    def _made(self, tensor: Tensor) -> bool:
        """Tell whether the pool owns `tensor` on behalf of this capture, so that nobody else needs to hold it."""
        if is_sparse(tensor):
            return False  # no segment makes one
        if self._is_taped:
            return self._tape.made(tensor)
        return self._tape.is_on_device(tensor) and self._pool_handle.owns(tensor)

    def _begin_segment(self) -> None:
        self._recorder.begin()
        self._tape.begin_segment()
        self._is_recording = True

    def _end_segment(self) -> None:
        tape = self._tape.end_segment()
        try:
            recording = self._recorder.end()
        except Exception as error:
            self._first_error = self._first_error or error
            raise CaptureError(
                f"{self._where()} could not be ended: {error}".splitlines()[0],
                hint="a side stream may not have been joined, or an operation before it can't be captured",
            ) from error
        self._is_recording = False
        stream = self.graph.device.current_stream()
        self._order.launch(self.graph.device, stream)  # a capture only records that streams wait for each other
        if recording is not None:
            segment = Segment(recording, tape)
            self._steps.append(segment)
            collectives = [operation.name for operation in tape.operations if is_collective(operation.name)]
            self._meet("segment" + (f" with {', '.join(collectives)}" if collectives else ""))
            if not self._recorder.runs_while_recording:
                segment.run(stream)

    def _abort(self) -> None:
        """Drop the open segment, and then, unless the capture is whole, the others too.

        In this order: a graph can't be destroyed while a stream is being captured.
        """
        self._tape.end_segment()
        self._recorder.abort()
        self._is_recording = False
        if not self._is_whole:
            for step in self._steps:
                if isinstance(step, Segment):
                    step.release()
            self._steps = []

    def _raise_swallowed_error(self) -> None:
        """A capture whose body caught a host read, or a break's failure, recorded another program than eager's."""
        swallowed = self._tape.first_error or self._first_error
        if swallowed is not None:
            raise CaptureError(
                f"the body went on after an error that makes the capture wrong: {swallowed}",
                hint="run the code that catches it as a break",
            ) from swallowed

    def _explain(self, error: BaseException) -> None:
        error.add_note(f"in {self._where()} of the capture")
        function = torchs_function(error)
        if function is not None:
            error.add_note(f"raised by {function}")
        first = self._tape.first_error or self._first_error
        if first is not None and first is not error:
            error.add_note(f"after an earlier error that the body caught: {first}")

    def _where(self) -> str:
        num_segments = sum(isinstance(step, Segment) for step in self._steps)
        if self._is_recording:
            module = next(iter(self._tape.failed_in), self._tape.module_path)
            return f"segment {num_segments}" + (f" (module {module!r})" if module else "")
        return f"the part after segment {num_segments - 1}" if num_segments else "the part before the first segment"


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """A collection inside a capture may destroy graphs and events, which a captured stream does not allow."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextlib.contextmanager
def _own_cache_of_autocast() -> Iterator[None]:
    """A weight that autocast cast before would be read as it was then at every replay; one of the pool, afterwards."""
    torch.clear_autocast_cache()
    try:
        yield
    finally:
        torch.clear_autocast_cache()


def _refuse_transformed(label: BreakLabel, arguments: Any) -> None:
    """Refuse a break inside `torch.func.vmap`, `grad` or `jvp`, whose tensors have no memory of their own."""
    if any(map(torch._C._functorch.is_functorch_wrapped_tensor, whole_tensors_in(arguments))):
        raise CaptureError(
            f"break {label.name} runs inside a transform of torch.func, such as vmap or grad",
            hint="let the break hold the whole transform",
            place=Place(module=label.module),
        )


def _use_of(pool: Pool) -> PoolUse:
    """The one `PoolUse` of all graphs that share `pool`."""
    use = _pool_uses.get(pool.id)
    if use is None:
        use = _pool_uses[pool.id] = PoolUse()
    return use
