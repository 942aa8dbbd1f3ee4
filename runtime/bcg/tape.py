"""The tape: sees every operation of a capture, says where it came from, and what each segment reads and writes.

It is active while capturing only, so it costs nothing at replay. It keeps rule 1 (closure): every tensor that a
segment reads and that this capture did not make itself is an *external* and is held for the graph's life;
tensors that the capture made live in the graph pool and are not held.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils import _python_dispatch

from bcg.collectives import run_as_break
from bcg.device.base import Device, Recorder
from bcg.dispatch import DispatchMode, written_by
from bcg.errors import CaptureError, HostReadError, Place
from bcg.host_reads import (
    PINS,
    before_the_dispatcher,
    copies_from_host,
    copies_to_host,
    counts_classes,
    indexes_by_mask,
    traits_of,
)
from bcg.segment_tape import FirstRead, Operation, SegmentTape
from bcg.structure import is_sparse, storage_address, storage_key, tensors_in, whole_tensors_in
from bcg.whereabouts import ModulePath, users_frame

HOST_READ_HINT = (
    "run the function that reads it as a break (@eager_on_graph, or --break with the module's path), "
    "or keep the value on the device (torch.where, scatter)"
)


class Tape:
    """Follows one capture through its segments.

    Args:
        device: The device of the graph.
        recorder: Executes the operations of a segment.
    """

    def __init__(self, device: Device, recorder: Recorder) -> None:
        self.device_type = device.torch_device.type
        self.first_error: HostReadError | None = None
        self.records_collectives = device.records_collectives
        self._recorder = recorder
        self._segment: SegmentTape | None = None
        self._made: dict[int, StorageWeakRef] = {}
        self._forbidden: dict[int, tuple[StorageWeakRef, str]] = {}
        self._modules = ModulePath(self._note_entered, self._note_left)
        self._failed_in: tuple[str, ...] | None = None
        self._interned: dict[Operation, Operation] = {}
        self._dispatch_mode = _DispatchTape(self)
        self._function_mode = _FunctionTape(self)

    def close(self) -> None:
        """Let go of the model and the pool at once: the tape and its modes refer to each other."""
        del self._modules, self._dispatch_mode, self._function_mode, self._recorder

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """See the operations and modules of this thread."""
        with self._modules.followed(), self._dispatch_mode, self._function_mode:
            yield

    @contextlib.contextmanager
    def looking_away(self) -> Iterator[None]:
        """See nothing, as far as possible not even as a mode: a break runs as it does at replay."""
        with contextlib.ExitStack() as stack:
            if torch.overrides._get_current_function_mode() is self._function_mode:
                stack.enter_context(torch.overrides._pop_mode_temporarily())
            if _python_dispatch._get_current_dispatch_mode() is self._dispatch_mode:
                stack.enter_context(self._dispatch_mode.aside())
            yield

    def begin_segment(self) -> None:
        self._segment = SegmentTape()

    def end_segment(self) -> SegmentTape:
        segment, self._segment = self._segment, None
        return segment or SegmentTape()

    def made(self, tensor: Tensor) -> bool:
        """Tell whether this capture made the memory of `tensor`: then the graph pool owns it."""
        return storage_key(tensor) in self._made

    def add_made(self, tensor: Tensor) -> None:
        """Note that the memory of `tensor`, such as a boundary's, is owned by the graph pool."""
        storage = tensor.untyped_storage()
        self._made[storage._cdata] = StorageWeakRef(storage)

    def forbid(self, tensor: Tensor, what: str) -> None:
        """Refuse the segment that reads `tensor` from now on: it is `what`."""
        storage = tensor.untyped_storage()
        self._forbidden[storage._cdata] = StorageWeakRef(storage), what

    @property
    def failed_in(self) -> tuple[str, ...]:
        """Paths, from the innermost outwards, of the modules that an error left, or that ended the recording."""
        return self._failed_in or ()

    def _note_entered(self) -> None:
        """Forget a module that failed, if its error was caught and the recording goes on."""
        if self._failed_in is not None and self._recorder.is_intact():
            self._failed_in = None

    def _note_left(self, path: str) -> None:
        """Look after every module whether the recording goes on: a kernel that no mode sees may have ended it."""
        if self._segment is None or self._failed_in is not None:
            return
        raises = sys.exc_info()[0] is not None
        if not raises and self._recorder.is_intact():
            return
        self._failed_in = (path, *self._modules.paths) if self._modules.path else ()
        if not raises:
            raise CaptureError(
                f"something in module {path!r} that can't be captured ended the recording of the segment",
                hint=f"run it eagerly: --break '{path}'",
                place=Place(None, path),
            )

    @property
    def module_path(self) -> str:
        """Path of the innermost module whose forward is running."""
        return self._modules.path

    @property
    def module_paths(self) -> tuple[str, ...]:
        """Paths of the modules whose forwards are running, from the innermost outwards; the root is left out."""
        return self._modules.paths

    def is_on_device(self, tensor: Tensor) -> bool:
        return tensor.device.type == self.device_type

    def run(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Execute one operation that reached the dispatcher."""
        segment = self._segment
        if segment is None:
            return function(*args, **kwargs)
        traits = traits_of(function)
        if traits.only_wraps:
            return function(*args, **kwargs)
        if traits.is_collective and not self.records_collectives:
            return run_as_break(function, args, kwargs, self._modules.path)
        given = whole_tensors_in((args, kwargs))
        if traits.is_sparse or any(map(is_sparse, given)):
            self.refuse(traits.name, "it makes or takes a sparse tensor, which a segment can't hold")
        self.refuse_host_read(function, args, kwargs)
        operation = self._operation(traits.name)
        segment.operations.append(operation)
        given_keys = self._note_reads(segment, given, operation)
        if traits.writes:
            self._note_writes(segment, function, args, kwargs)
        if traits.may_be_python and any(map(self.is_on_device, given)):
            with self._inside(function):
                result = self._recorder.execute(function, args, kwargs)
        else:
            result = self._recorder.execute(function, args, kwargs)
        for tensor in tensors_in(result):
            key = storage_key(tensor)
            if key not in given_keys and key not in self._made and self.is_on_device(tensor):
                self._made[key] = StorageWeakRef(tensor.untyped_storage())
        return result

    def run_higher_order(self, function: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Execute an operator such as ``torch.cond`` eagerly: a segment can't hold it."""
        if self._segment is not None:
            self.refuse(name, "it runs functions, perhaps others with other values, that no tape sees")
        return function(*args, **kwargs)

    @contextlib.contextmanager
    def _inside(self, function: Any) -> Iterator[None]:
        """Refuse host reads in the body of an operation that may be written in Python, below the dispatcher."""
        with _BodyOfOperation(self, function), self._function_mode:
            yield

    def _note_reads(self, segment: SegmentTape, given: list[Tensor], operation: Operation) -> set[int]:
        keys = set()
        for tensor in given:
            key = storage_key(tensor)
            keys.add(key)
            if key not in self._made and key not in segment.externals:
                if key in self._forbidden:
                    raise CaptureError(
                        f"{operation.place} reads {self._forbidden[key][1]}",
                        hint="return it from the break, and use what is returned",
                        place=operation.place,
                        hazard="S9",
                    )
                segment.externals[key] = tensor
                segment.first_reads[key] = FirstRead(operation, storage_address(tensor), key)
        return keys

    def _note_writes(self, segment: SegmentTape, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        keys = map(storage_key, written_by(function, args, kwargs))
        segment.written_externals.update(key for key in keys if key in segment.externals)

    def refuse_host_read(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Refuse an operation that reads the device from the host, needs data of the host, or pins memory of it."""
        traits = traits_of(function)
        if traits.pins or kwargs.get("pin_memory"):
            self.refuse(traits.name, PINS)
            return
        if traits.reads_host is None and not traits.may_read_host:
            return
        if self.device_type != "cpu" and copies_from_host(function, args, kwargs, self.device_type):
            self.refuse(str(function), "it copies from pageable host memory to the device")
        if not any(self.is_on_device(tensor) for tensor in tensors_in((args, kwargs))):
            return
        reason = traits.reads_host
        if reason is None and indexes_by_mask(args):
            reason = "its result's shape depends on the values of a mask"
        if reason is None and counts_classes(function, args, kwargs):
            reason = "its result's shape depends on the values"
        if reason is None and self.device_type != "cpu" and copies_to_host(function, args, kwargs):
            reason = "it copies from the device to the host"
        if reason is not None:
            self.refuse(str(function), reason)

    def refuse(self, name: str, reason: str) -> None:
        """Raise for a host read, and keep the error: user code that swallows it must not hide it."""
        place = self.place(name)
        error = HostReadError(
            f"the host reads a device value inside a segment: {place}: {reason}",
            hint=HOST_READ_HINT,
            place=place,
            hazard="L2" if reason == PINS else "L1",
        )
        self.first_error = self.first_error or error
        raise error

    @property
    def is_recording(self) -> bool:
        return self._segment is not None

    def place(self, name: str) -> Place:
        """Say where the body is now, for an error about `name`."""
        return self._operation(name).place

    def _operation(self, name: str) -> Operation:
        frame = users_frame(sys._getframe(2))
        file, line = (frame.f_code.co_filename, frame.f_lineno) if frame is not None else ("", 0)
        operation = Operation(name, self._modules.path, file, line)
        return self._interned.setdefault(operation, operation)


class _DispatchTape(DispatchMode):
    """Hands the operations that reach the dispatcher to the tape."""

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self._tape = tape

    def run(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._tape.run(function, args, kwargs)

    def run_higher_order(self, function: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._tape.run_higher_order(function, name, args, kwargs)


class _BodyOfOperation(DispatchMode):
    """Looks for host reads alone: what an operation is made of is no operation of the segment."""

    def __init__(self, tape: Tape, operation: Any) -> None:
        super().__init__()
        self._tape = tape
        self._operation = operation
        self._keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, tape.device_type.upper()))

    def run(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if function is self._operation:
            with self:  # past the dispatcher's modes, or it would come here again
                return function.redispatch(self._keys, *args, **kwargs)
        self._tape.refuse_host_read(function, args, kwargs)
        return function(*args, **kwargs)


class _FunctionTape(TorchFunctionMode):
    """Sees the host reads that never reach the dispatcher: on CPU tensors ``tolist()`` or ``bool()`` don't."""

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self._tape = tape

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._tape.is_recording:
            needs_host = before_the_dispatcher(func, args, kwargs, self._tape.device_type)
            if needs_host is not None:
                self._tape.refuse(*needs_host)
        return func(*args, **kwargs)
