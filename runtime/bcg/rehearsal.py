"""A rehearsal: one eager forward that tells in which order a capture will allocate and free in the graph pool."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from bcg.breaks import BreakLabel, running_breaks
from bcg.layout import PoolEvent
from bcg.structure import is_wrapped, storage_key, tensors_in


def rehearse(forward: Callable[[], Any], device_type: str) -> list[PoolEvent]:
    """Run `forward` eagerly and return what its segments and boundaries would allocate and free, in order.

    What a break allocates for itself is not in the pool; its result is, as a boundary.

    Args:
        forward: What would be captured.
        device_type: Of the tensors that count, as in `torch.device.type`.
    """
    rehearsal = _Rehearsal(device_type)
    with running_breaks(rehearsal), rehearsal:
        forward()
    return rehearsal.events


class _Rehearsal(TorchDispatchMode):
    """Sees what the segments allocate, and runs the breaks without looking."""

    def __init__(self, device_type: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.events: list[PoolEvent] = []
        self._device_type = device_type
        self._in_break = False
        self._alive: dict[int, StorageWeakRef] = {}

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

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if is_wrapped(types):
            return NotImplemented
        kwargs = kwargs or {}
        if self._in_break:
            return func(*args, **kwargs)
        given = {storage_key(tensor) for tensor in tensors_in((args, kwargs))}
        self._note_freed()
        result = func(*args, **kwargs)
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
