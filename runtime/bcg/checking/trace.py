"""One eager forward, operation by operation: what a graph froze shows where two of them differ."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from bcg.breaks import count_breaks, is_in_break
from bcg.context import ForwardContext
from bcg.device import find_device
from bcg.device.base import Device
from bcg.device.bystander import Bystander
from bcg.segment_tape import Operation, SegmentTape
from bcg.structure import tensors_in
from bcg.tape import Tape
from bcg.whereabouts import is_users


@dataclass
class ForwardTrace:
    """What one eager forward did outside its breaks.

    Attributes:
        operations: In program order.
        numbers: The Python numbers that each was given, beside tensors.
        reads: For each, the addresses of tensors that the forward did not make.
        externals: Those tensors, by address.
        made: Storages that its operations made, by key.
        met: Storages that were there before it, by key.
        made_in_breaks: Addresses of what operations in breaks returned.
        read_in_breaks: Addresses of what they were given.
        num_breaks: Breaks that it ran.
        context_reads: Indices of the operations before which it asked, outside a break, how the batch is split into
            requests.
    """

    operations: list[Operation] = field(default_factory=list)
    numbers: list[tuple[Any, ...]] = field(default_factory=list)
    reads: list[tuple[int, ...]] = field(default_factory=list)
    externals: dict[int, Tensor] = field(default_factory=dict)
    made: Mapping[int, StorageWeakRef] = field(default_factory=dict)
    met: Mapping[int, StorageWeakRef] = field(default_factory=dict)
    made_in_breaks: set[int] = field(default_factory=set)
    read_in_breaks: set[int] = field(default_factory=set)
    num_breaks: int = 0
    context_reads: list[int] = field(default_factory=list)


def trace_forward(
    forward: Callable[[ForwardContext], Any], request_lengths: tuple[int, ...], device: torch.device
) -> ForwardTrace:
    """Run `forward` eagerly, exactly as without a capture, and note what it does.

    Args:
        forward: Called with the forward context that it is to run under.
        request_lengths: Of its batch.
        device: Of its tensors.
    """
    tape = _EagerTape(find_device(device))
    tape.trace.met = _storages()
    with torch.inference_mode(), tape.watching():
        tape.begin_segment()
        num_before = count_breaks()
        forward(_WatchedContext(request_lengths, trace=tape.trace))
        tape.trace.num_breaks = count_breaks() - num_before
        tape.end_segment()
    return tape.trace


def _storages() -> dict[int, StorageWeakRef]:
    """Return the storages of all tensors that Python holds; the references keep their keys from being used again."""
    tensors = [found for found in gc.get_objects() if type(found) in (Tensor, nn.Parameter)]
    storages = [tensor.untyped_storage() for tensor in tensors if tensor.layout == torch.strided]
    return {storage._cdata: StorageWeakRef(storage) for storage in storages}


_REQUESTS = frozenset({"request_lengths", "offsets", "cu_seqlens"})


@dataclass(frozen=True)
class _WatchedContext(ForwardContext):
    """Notes when the user's code, outside a break, asks how the batch is split into requests."""

    trace: ForwardTrace = field(default_factory=ForwardTrace)

    def __getattribute__(self, name: str) -> Any:
        if name in _REQUESTS and not is_in_break() and is_users(sys._getframe(1).f_code.co_filename):
            trace: ForwardTrace = super().__getattribute__("trace")
            trace.context_reads.append(len(trace.operations))
        return super().__getattribute__(name)


class _EagerTape(Tape):
    """Lets every operation through, and keeps what it was given."""

    def __init__(self, device: Device) -> None:
        super().__init__(device, Bystander())
        self.trace = ForwardTrace(made=self._made)

    def begin_segment(self) -> None:
        super().begin_segment()
        self._tape_segment = self._segment or SegmentTape()

    def refuse(self, name: str, reason: str) -> None:
        return None

    def run(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if is_in_break():
            self.trace.read_in_breaks.update(_addresses((args, kwargs)))
            result = function(*args, **kwargs)
            self.trace.made_in_breaks.update(_addresses(result))
            return result
        if not self.module_path:  # loading inputs and cutting outputs is no part of the forward
            return function(*args, **kwargs)
        outside = [tensor for tensor in tensors_in((args, kwargs)) if not self.made(tensor)]
        result = super().run(function, args, kwargs)
        self.trace.operations.append(self._tape_segment.operations[-1])
        self.trace.numbers.append(tuple(numbers_in((args, tuple(kwargs.values())))))
        self.trace.reads.append(tuple(tensor.untyped_storage().data_ptr() for tensor in outside))
        self.trace.externals.update({tensor.untyped_storage().data_ptr(): tensor for tensor in outside})
        return result


def _addresses(value: Any) -> Iterator[int]:
    return (tensor.untyped_storage().data_ptr() for tensor in tensors_in(value))


def numbers_in(value: Any) -> Iterator[Any]:
    """Yield the numbers and strings of nested tuples and lists."""
    if isinstance(value, (bool, int, float, complex, str)):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from numbers_in(item)
