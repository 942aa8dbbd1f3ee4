"""A rehearsal: one eager forward that tells in which order a capture will allocate and free in the graph pool.

A few layers of each kind stand for all: what the last of them allocate and free is repeated for those left out.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from bcg.breaks import BreakLabel, running_breaks
from bcg.dispatch import DispatchMode
from bcg.layout import PoolEvent
from bcg.structure import is_wrapped, storage_key, tensors_in
from bcg.warmup import cut_to

NUM_REHEARSED = 4
"""Of each kind of layer: the first may differ, the second and third are compared, the last one ends the forward."""


def rehearse(
    forward: Callable[[nn.Module], Any],
    root: nn.Module,
    device_type: str,
    prefixes: Mapping[nn.ModuleList, int] | None = None,
) -> list[PoolEvent]:
    """Run `forward` eagerly and return what its segments and boundaries would allocate and free, in order.

    What a break allocates for itself is not in the pool; its result is, as a boundary.

    Args:
        forward: What would be captured, of `root` or of a module that stands for it.
        root: The module tree.
        device_type: Of the tensors that count, as in `torch.device.type`.
        prefixes: Lists of layers, and how many of each hold every kind; see `bcg.warmup.distinct_prefixes`.
    """
    rehearsal = _Rehearsal(device_type)
    lengths = rehearsed_lengths(prefixes or {})
    marking = rehearsal.marking(list(lengths))
    with cut_to(root, lengths) as shorter, marking, running_breaks(rehearsal), rehearsal:
        forward(shorter)
    if len(lengths) != 1:
        return rehearsal.events
    ((layers, length),) = lengths.items()
    period = (prefixes or {})[layers]
    return with_repeats(rehearsal.events, rehearsal.marks, period, -(-(len(layers) - length) // period))


def rehearsed_lengths(prefixes: Mapping[nn.ModuleList, int]) -> dict[nn.ModuleList, int]:
    """Return how many layers of each list a rehearsal runs."""
    return {layers: min(len(layers), NUM_REHEARSED * prefix) for layers, prefix in prefixes.items()}


def with_repeats(events: Sequence[PoolEvent], marks: Sequence[int], period: int, num_repeats: int) -> list[PoolEvent]:
    """Repeat what the third period of layers in a rehearsal allocates and frees.

    Args:
        events: Of the whole rehearsal.
        marks: Index of the first event of each layer.
        period: How many layers are repeated together.
        num_repeats: How often.

    Returns:
        The events with storages numbered anew; as they are where the second and third period differ in length.
    """
    if not num_repeats or len(marks) != NUM_REHEARSED * period:
        return list(events)
    before, start, end = (marks[number * period] for number in (1, 2, 3))
    shift = start - before
    if end - start != shift:
        return list(events)
    made: dict[int, int] = {}
    origins = []  # the event that allocated what each event is about
    for index, event in enumerate(events):
        if event.num_bytes:
            made[event.storage] = index
        origins.append(made.get(event.storage, index))

    def number(origin: int, repeat: int) -> int:
        """Number the storage that the event at `origin`, or its counterpart in a repeat, allocated."""
        if origin < start and before <= origin and repeat:
            return number(origin + shift, repeat - 1)
        return origin + repeat * len(events) if origin >= start else origin

    def copied(first: int, last: int, repeat: int) -> Iterator[PoolEvent]:
        for origin, event in zip(origins[first:last], events[first:last], strict=True):
            yield PoolEvent(number(origin, repeat), event.num_bytes)

    repeated = [*copied(0, end, 0)]
    for repeat in range(1, num_repeats + 1):
        repeated += copied(start, end, repeat)
    return [*repeated, *copied(end, len(events), num_repeats)]


class _Rehearsal(DispatchMode):
    """Sees what the segments allocate, and runs the breaks without looking."""

    def __init__(self, device_type: str) -> None:
        super().__init__()
        self.events: list[PoolEvent] = []
        self.marks: list[int] = []
        self._thread = threading.get_ident()
        self._device_type = device_type
        self._in_break = False
        self._alive: dict[int, StorageWeakRef] = {}

    @contextlib.contextmanager
    def marking(self, lists: Sequence[nn.ModuleList]) -> Iterator[None]:
        """Note where each layer begins."""
        hooks = [layer.register_forward_pre_hook(self._mark) for layers in lists for layer in layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _mark(self, *_: Any) -> None:
        if threading.get_ident() != self._thread:
            return  # somebody else's forward
        self._note_freed()
        self.marks.append(len(self.events))

    def run_break(
        self, function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], label: BreakLabel
    ) -> Any:
        given = {storage_key(tensor) for tensor in tensors_in((args, kwargs))}
        self._in_break = True
        try:
            result = function(*args, **kwargs)
        finally:
            self._in_break = False
        self._note_freed()
        self._note(given, result)
        return result

    def run(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._in_break:
            return function(*args, **kwargs)
        given = {storage_key(tensor) for tensor in tensors_in((args, kwargs))}
        self._note_freed()
        result = function(*args, **kwargs)
        self._note(given, result)
        return result

    def _note(self, given: set[int], result: Any) -> None:
        for tensor in tensors_in(result):
            if is_wrapped([type(tensor)]):
                continue
            key = storage_key(tensor)
            if key not in given and key not in self._alive and tensor.device.type == self._device_type:
                storage = tensor.untyped_storage()
                self._alive[key] = StorageWeakRef(storage)
                self.events.append(PoolEvent(key, storage.nbytes()))

    def _note_freed(self) -> None:
        for key in [key for key, storage in self._alive.items() if storage.expired()]:
            del self._alive[key]
            self.events.append(PoolEvent(key, 0))
