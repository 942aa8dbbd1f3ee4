"""The tape: sees every operation of a capture, says where it came from, and what each segment reads and writes.

It is active while capturing only, so it costs nothing at replay. It keeps rule 1 (closure): every tensor that a
segment reads and that this capture did not make itself is an *external* and is held for the graph's life;
tensors that the capture made live in the graph pool and are not held.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules import module as nn_module
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from bcg.collectives import is_collective, only_wraps, run_as_break
from bcg.device.base import Device, Recorder
from bcg.errors import HostReadError, Place
from bcg.structure import is_wrapped, storage_address, storage_key, tensors_in

HOST_READ_HINT = (
    "run the function that reads it as a break (@eager_on_graph, or --break with the module's path), "
    "or keep the value on the device (torch.where, scatter)"
)


class Operation(NamedTuple):
    """One operation of a segment and where it came from.

    Attributes:
        name: Such as ``aten.mm.default``.
        module: Path of the innermost module whose forward was running; empty outside any module.
        file: File of the innermost line that is neither torch's nor bcg's.
        line: Its line number.
    """

    name: str
    module: str
    file: str
    line: int

    @property
    def place(self) -> Place:
        return Place(self.name, self.module or None, f"{self.file}:{self.line}" if self.file else None)


class FirstRead(NamedTuple):
    """Who read an external first, and where its memory was then."""

    operation: Operation
    address: int


@dataclass
class SegmentTape:
    """What one segment reads, writes and allocates.

    Attributes:
        operations: In program order.
        externals: Tensors that it reads and that the capture did not make, by storage; held here.
        first_reads: Of the externals, by storage.
        written_externals: Keys of those that it also writes.
        allocated_bytes: Sum of the storages that its operations made.
    """

    operations: list[Operation] = field(default_factory=list)
    externals: dict[int, Tensor] = field(default_factory=dict)
    first_reads: dict[int, FirstRead] = field(default_factory=dict)
    written_externals: set[int] = field(default_factory=set)
    allocated_bytes: int = 0

    @property
    def external_bytes(self) -> int:
        return sum(tensor.untyped_storage().nbytes() for tensor in self.externals.values())

    def moved_externals(self) -> Iterator[tuple[Tensor, FirstRead]]:
        """Yield the externals whose memory was freed or exchanged after the capture: the segment reads garbage."""
        for key, tensor in self.externals.items():
            first_read = self.first_reads[key]
            if storage_address(tensor) != first_read.address:
                yield tensor, first_read


class Tape:
    """Follows one capture through its segments.

    Args:
        device: The device of the graph.
        recorder: Executes the operations of a segment.
    """

    def __init__(self, device: Device, recorder: Recorder) -> None:
        self.device_type = device.torch_device.type
        self.first_error: HostReadError | None = None
        self._records_collectives = device.records_collectives
        self._recorder = recorder
        self._segment: SegmentTape | None = None
        self._made: dict[int, StorageWeakRef] = {}
        self._modules = _ModulePath()
        self._interned: dict[Operation, Operation] = {}
        self._dispatch_mode = _DispatchTape(self)
        self._function_mode = _FunctionTape(self)

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
            if torch.utils._python_dispatch._get_current_dispatch_mode() is self._dispatch_mode:
                stack.enter_context(torch.utils._python_dispatch._pop_mode_temporarily())
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
        traits = _traits(function)
        if traits.only_wraps:
            return function(*args, **kwargs)
        if traits.is_collective and not self._records_collectives:
            return run_as_break(function, args, kwargs, self._modules.path)
        given = list(tensors_in((args, kwargs)))
        if traits.reads_host is not None or traits.may_read_host:
            self._refuse_host_read(function, traits, args, kwargs, given)
        operation = self._operation(str(function))
        segment.operations.append(operation)
        given_keys = self._note_reads(segment, given, operation)
        if traits.writes:
            self._note_writes(segment, function, args, kwargs)
        result = self._recorder.execute(function, args, kwargs)
        for tensor in tensors_in(result):
            key = storage_key(tensor)
            if key not in given_keys and key not in self._made and self.is_on_device(tensor):
                storage = tensor.untyped_storage()
                self._made[key] = StorageWeakRef(storage)
                segment.allocated_bytes += storage.nbytes()
        return result

    def _note_reads(self, segment: SegmentTape, given: list[Tensor], operation: Operation) -> set[int]:
        keys = set()
        for tensor in given:
            key = storage_key(tensor)
            keys.add(key)
            if key not in self._made and key not in segment.externals:
                segment.externals[key] = tensor
                segment.first_reads[key] = FirstRead(operation, storage_address(tensor))
        return keys

    def _note_writes(self, segment: SegmentTape, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for position, argument in enumerate(function._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            value = kwargs.get(argument.name, args[position] if position < len(args) else None)
            for tensor in tensors_in(value):
                key = storage_key(tensor)
                if key in segment.externals:
                    segment.written_externals.add(key)

    def _refuse_host_read(
        self,
        function: Any,
        traits: _Traits,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        given: list[Tensor],
    ) -> None:
        if self.device_type != "cpu" and _copies_from_host(function, args, kwargs, self.device_type):
            self.refuse(str(function), "it copies from pageable host memory to the device")
        if not any(self.is_on_device(tensor) for tensor in given):
            return
        reason = traits.reads_host
        if reason is None and _indexes_by_mask(args):
            reason = "its result's shape depends on the values of a mask"
        if reason is None and self.device_type != "cpu" and _copies_to_host(function, args, kwargs):
            reason = "it copies from the device to the host"
        if reason is not None:
            self.refuse(str(function), reason)

    def refuse(self, name: str, reason: str) -> None:
        """Raise for a host read, and keep the error: user code that swallows it must not hide it."""
        place = self._operation(name).place
        error = HostReadError(
            f"the host reads a device value inside a segment: {place}: {reason}",
            hint=HOST_READ_HINT,
            place=place,
            hazard="L1",
        )
        self.first_error = self.first_error or error
        raise error

    @property
    def is_recording(self) -> bool:
        return self._segment is not None

    def _operation(self, name: str) -> Operation:
        frame = users_frame(sys._getframe(2))
        file, line = (frame.f_code.co_filename, frame.f_lineno) if frame is not None else ("", 0)
        operation = Operation(name, self._modules.path, file, line)
        return self._interned.setdefault(operation, operation)


class _DispatchTape(TorchDispatchMode):
    """Hands the operations that reach the dispatcher to the tape."""

    def __init__(self, tape: Tape) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._tape = tape

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if is_wrapped(types):
            return NotImplemented
        return self._tape.run(func, args, kwargs or {})


_READS_BEFORE_THE_DISPATCHER = {
    Tensor.tolist: "tolist() reads it",
    Tensor.numpy: "numpy() reads it",
    Tensor.__array__: "an array conversion reads it",
    Tensor.item: "item() reads it",
    Tensor.__bool__: "bool() reads it",
    Tensor.__int__: "int() reads it",
    Tensor.__float__: "float() reads it",
    Tensor.__complex__: "complex() reads it",
    Tensor.__index__: "an index reads it",
    Tensor.__contains__: "`in` reads it",
    Tensor.__repr__: "printing reads it",
    Tensor.__format__: "formatting reads it",
    Tensor.cpu: "cpu() copies it to the host",
}
_FROM_HOST_DATA = (torch.tensor, torch.as_tensor)


class _FunctionTape(TorchFunctionMode):
    """Sees the host reads that never reach the dispatcher: on CPU tensors ``tolist()`` or ``bool()`` don't."""

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self._tape = tape

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        reason = _READS_BEFORE_THE_DISPATCHER.get(func)
        tape = self._tape
        if reason is not None and tape.is_recording and args and isinstance(args[0], Tensor):
            if tape.is_on_device(args[0]):
                tape.refuse(f"Tensor.{func.__name__}", reason)
        elif func in _FROM_HOST_DATA and tape.is_recording and _copies_to_device(tape, args, kwargs):
            tape.refuse(f"torch.{func.__name__}", "it copies Python data from the host to the device")
        return func(*args, **kwargs)


def _copies_to_device(tape: Tape, args: Any, kwargs: Any) -> bool:
    device = kwargs.get("device")
    if device is None or torch.device(device).type != tape.device_type:
        return False
    return not (args and isinstance(args[0], Tensor) and tape.is_on_device(args[0]))


class _Traits(NamedTuple):
    reads_host: str | None
    may_read_host: bool
    writes: bool
    is_collective: bool
    only_wraps: bool


_SYNCHRONIZING = {
    "aten::item": "the host needs the value",
    "aten::_local_scalar_dense": "the host needs the value",
    "aten::is_nonzero": "the host needs the value",
    "aten::equal": "the host needs the answer",
    "aten::allclose": "the host needs the answer",
    "aten::pin_memory": "it allocates pinned host memory",
    "aten::_pin_memory": "it allocates pinned host memory",
}
_INDEXING = {
    "aten::index",
    "aten::index_put",
    "aten::index_put_",
    "aten::_index_put_impl_",
    "aten::_unsafe_index",
}
_COPYING = {"aten::_to_copy", "aten::to", "aten::copy_"}


@functools.cache
def _traits(function: Any) -> _Traits:
    name = function._schema.name
    reason = _SYNCHRONIZING.get(name)
    if reason is None and torch.Tag.data_dependent_output in function.tags:
        reason = "the host needs its value"
    if reason is None and torch.Tag.dynamic_output_shape in function.tags and name not in _INDEXING:
        reason = "its result's shape depends on the values"
    return _Traits(
        reads_host=reason,
        may_read_host=name in _INDEXING or name in _COPYING,
        writes=bool(function._schema.is_mutable),
        is_collective=is_collective(str(function)),
        only_wraps=only_wraps(str(function)),
    )


def _indexes_by_mask(args: tuple[Any, ...]) -> bool:
    """Indexing by a mask needs the number of its true entries; filling by a mask with one value does not."""
    if len(args) < 2 or not isinstance(args[1], (tuple, list)):
        return False
    masked = any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    fills_one_value = len(args) > 2 and isinstance(args[2], Tensor) and args[2].numel() == 1
    return masked and not fills_one_value


def _copies_to_host(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    if function._schema.name == "aten::copy_":
        return bool(args[0].device.type == "cpu" and args[1].device.type != "cpu")
    devices = [value for value in (*args[1:], *kwargs.values()) if isinstance(value, torch.device)]
    return any(device.type == "cpu" for device in devices)


def _copies_from_host(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], device_type: str) -> bool:
    if function._schema.name not in _COPYING:
        return False
    source = args[1] if function._schema.name == "aten::copy_" else args[0]
    if not isinstance(source, Tensor) or source.device.type != "cpu" or source.is_pinned():
        return False
    if function._schema.name == "aten::copy_":
        return bool(args[0].device.type == device_type)
    devices = [value for value in (*args[1:], *kwargs.values()) if isinstance(value, torch.device)]
    return any(device.type == device_type for device in devices)


_LIBRARIES = (str(Path(torch.__file__).parent), str(Path(__file__).parent))


@functools.cache
def is_users(file: str) -> bool:
    """Tell whether a file is neither torch's nor bcg's."""
    return not file.startswith((*_LIBRARIES, "<frozen"))


def users_frame(frame: FrameType | None) -> FrameType | None:
    """Return the innermost frame from `frame` outwards that is neither torch's nor bcg's."""
    while frame is not None and not is_users(frame.f_code.co_filename):
        frame = frame.f_back
    return frame


class _ModulePath:
    """Follows which module's forward is running on the thread that made it."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._stack: list[str] = []
        self._names: dict[nn.Module, str] = {}

    @property
    def path(self) -> str:
        return self._stack[-1] if self._stack else ""

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(reversed(self._stack[1:]))

    @contextlib.contextmanager
    def followed(self) -> Iterator[None]:
        enter: Callable[..., None] = self._enter
        handles = [
            nn_module.register_module_forward_pre_hook(enter),
            nn_module.register_module_forward_hook(self._leave, always_call=True),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, module: nn.Module, args: Any) -> None:
        if threading.get_ident() != self._thread:
            return
        name = self._names.get(module)
        if name is None:
            self._names.update({part: path for path, part in module.named_modules() if path})
            name = self._names[module] = self._names.get(module, type(module).__name__)
        self._stack.append(name)

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if threading.get_ident() == self._thread and self._stack:
            self._stack.pop()
