"""Boundaries: how a break's result reaches the next segment, at the same addresses at every replay.

At capture `hold` builds, from the result of the break's first run, what is handed to the next segment and an
`Outlet` that later results are poured into. What a result may be made of:

- a tensor that the break made: the boundary is a tensor in the graph pool, and every result is copied into it (so
  it is for a tensor that the break merely holds: what segments write to the copy does not reach the original);
- a tensor that shares memory with an argument, or with a tensor of the same capture: handed on as it is, and
  expected at the same address at every replay;
- tuples, lists, dicts and objects of these; an object is copied once, and its attributes are replaced at replay;
- a number, string or `None`: handed on, and expected to stay the same, since segments have it frozen in them;
- a module, function or generator: handed on, and expected to be the same object at every replay.

Anything else is an error that names the break: a structure that nobody looks into would go stale silently.
"""

from __future__ import annotations

import copy
import enum
import functools
import types
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from bcg.errors import CaptureError
from bcg.outlets import (
    ConstantOutlet,
    CopyOutlet,
    DictOutlet,
    ObjectOutlet,
    Outlet,
    SameObjectOutlet,
    SameTensorOutlet,
    SequenceOutlet,
    StorageOutlet,
)
from bcg.structure import (
    attributes_of,
    has_attributes,
    is_sparse,
    rebuild_dict,
    rebuild_sequence,
    storage_bytes,
    storage_key,
    unowned_alias,
)


class Memory(Protocol):
    """Where boundaries lie."""

    def allocate(self, size: Sequence[int], stride: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Allocate a boundary."""

    def feed(self, boundary: Tensor, result: Tensor) -> Callable[[Tensor], Any]:
        """Return what brings later results into a boundary, given the first one."""


_CONSTANTS = (
    int,
    float,
    complex,
    bool,
    str,
    bytes,
    type(None),
    torch.dtype,
    torch.device,
    enum.Enum,
    slice,
    range,
)
_OPAQUE = (
    nn.Module,
    torch.Generator,
    type,
    types.ModuleType,
    types.FunctionType,
    types.MethodType,
    types.BuiltinFunctionType,
    functools.partial,
)


class Holder:
    """Builds the boundaries of one break.

    Args:
        break_name: For errors.
        memory: The graph pool, as the recorder of the capture hands it out.
        is_known: Tells whether a tensor shares memory with an argument of the break or with a tensor that
            this capture made: its address is then the same at every replay.
        is_on_device: Tells whether a tensor is on the device of the graph.

    Attributes:
        boundaries: Those that were allocated.
        unowned: Aliases of the same that don't keep them alive.
    """

    def __init__(
        self,
        break_name: str,
        memory: Memory,
        is_known: Callable[[Tensor], bool],
        is_on_device: Callable[[Tensor], bool],
    ) -> None:
        self._break_name = break_name
        self._memory = memory
        self._is_known = _remembering(is_known)
        self._is_on_device = is_on_device
        self._held: dict[int, tuple[Any, Outlet]] = {}
        self._shared: dict[int, Tensor] = {}
        self.boundaries: list[Tensor] = []
        self.unowned: list[Tensor] = []

    def hold(self, result: Any) -> tuple[Any, Outlet]:
        """Return what the next segment gets for `result`, and the outlet for later results.

        Raises:
            CaptureError: The result has a structure that can't be looked into (hazard S9).
        """
        self._shared = self._storages_of_several(result)
        return self._hold(result, self._break_name)

    def _hold(self, value: Any, where: str) -> tuple[Any, Outlet]:
        if id(value) in self._held:
            return self._held[id(value)]
        held: tuple[Any, Outlet]
        if isinstance(value, Tensor):
            held = self._hold_tensor(value, where)
        elif isinstance(value, _CONSTANTS):
            return value, ConstantOutlet(value, where)
        elif isinstance(value, _OPAQUE):
            return value, SameObjectOutlet(value, where)
        elif isinstance(value, (tuple, list)):
            held = self._hold_sequence(value, where)
        elif isinstance(value, dict):
            held = self._hold_dict(value, where)
        elif has_attributes(value) and not hasattr(value, "__iter__"):
            held = self._hold_object(value, where)
        else:
            raise CaptureError(
                f"break {where} returned a {type(value).__module__}.{type(value).__qualname__}, whose tensors can't "
                "be found; expected tensors, numbers, tuples, lists, dicts or objects with attributes",
                hint="return the tensors themselves, or a dataclass of them",
                hazard="S9",
            )
        self._held[id(value)] = held
        return held

    def _hold_tensor(self, tensor: Tensor, where: str) -> tuple[Tensor, Outlet]:
        if is_sparse(tensor):
            raise CaptureError(
                f"break {where} returned a sparse tensor ({tensor.layout}), which has no fixed address that the next "
                "segment could read; expected a dense one",
                hint="return its to_dense(), or let the break reach to where it is used up: --break the module around",
                hazard="S9",
            )
        if self._is_known(tensor):
            return tensor, SameTensorOutlet(tensor, where)
        if not self._is_on_device(tensor):
            boundary = tensor.clone()
            return boundary, CopyOutlet(boundary, boundary.copy_, where)
        key = storage_key(tensor)
        if key in self._shared or _overlaps_itself(tensor):
            return self._hold_view(tensor, key, where)
        size, stride = tuple(tensor.size()), tuple(tensor.stride())
        boundary = self._memory.allocate(size, stride, tensor.dtype)
        boundary.copy_(tensor)
        unowned = self._add(boundary)
        return boundary, CopyOutlet(unowned, self._memory.feed(unowned, tensor), where)

    def _hold_view(self, tensor: Tensor, key: int, where: str) -> tuple[Tensor, Outlet]:
        """Several results over one storage keep sharing it: the whole storage is the boundary."""
        memory = self._shared.get(key)
        if memory is None:
            num_bytes = tensor.untyped_storage().nbytes()
            memory = self._memory.allocate((num_bytes,), (1,), torch.uint8)
            memory.copy_(storage_bytes(tensor))
            self._shared[key] = memory
            self._add(memory)
        boundary = torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(
            memory.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride()
        )
        return boundary, StorageOutlet(unowned_alias(boundary), unowned_alias(memory), where)

    def _add(self, boundary: Tensor) -> Tensor:
        unowned = unowned_alias(boundary)
        self.boundaries.append(boundary)
        self.unowned.append(unowned)
        return unowned

    def _storages_of_several(self, result: Any) -> dict[int, Tensor]:
        seen: dict[int, set[int]] = {}
        for tensor in _device_tensors(result, set()):
            if not is_sparse(tensor) and self._is_on_device(tensor) and not self._is_known(tensor):
                seen.setdefault(storage_key(tensor), set()).add(id(tensor))
        several = [key for key, tensors in seen.items() if len(tensors) > 1]
        return _LazyStorages(several)

    def _hold_sequence(self, value: tuple[Any, ...] | list[Any], where: str) -> tuple[Any, Outlet]:
        pairs = [self._hold(item, f"{where}[{index}]") for index, item in enumerate(value)]
        handed = rebuild_sequence(value, [pair[0] for pair in pairs])
        return handed, SequenceOutlet(type(value), [pair[1] for pair in pairs], where)

    def _hold_dict(self, value: dict[Any, Any], where: str) -> tuple[Any, Outlet]:
        entries = {id(tensor) for tensor in _device_tensors(list(value.values()), set())}
        if any(id(tensor) not in entries for tensor in _device_tensors(getattr(value, "__dict__", {}), set())):
            raise CaptureError(
                f"break {where} returned a {type(value).__qualname__} with tensors beside its entries",
                hint="return the tensors themselves, or a dataclass of them",
                hazard="S9",
            )
        pairs = {key: self._hold(item, f"{where}[{key!r}]") for key, item in value.items()}
        handed = rebuild_dict(value, {key: item for key, (item, _) in pairs.items()})
        return handed, DictOutlet({key: outlet for key, (_, outlet) in pairs.items()}, where)

    def _hold_object(self, value: Any, where: str) -> tuple[Any, Outlet]:
        handed = copy.copy(value)
        outlets: dict[str, Outlet] = {}
        for name, item in attributes_of(value).items():
            if isinstance(item, _CONSTANTS):
                continue
            part, outlets[name] = self._hold(item, f"{where}.{name}")
            object.__setattr__(handed, name, part)
        return handed, ObjectOutlet(handed, outlets, where)


def _remembering(is_known: Callable[[Tensor], bool]) -> Callable[[Tensor], bool]:
    """Ask once for each tensor of a result: on a GPU it takes a look at the allocator's counters."""
    answers: dict[int, bool] = {}

    def remembered(tensor: Tensor) -> bool:
        answer = answers.get(id(tensor))
        if answer is None:
            answer = answers[id(tensor)] = is_known(tensor)
        return answer

    return remembered


class _LazyStorages(dict[int, Tensor]):
    """Storages that several results share: known from the start, allocated when the first is held."""

    def __init__(self, keys: Iterable[int]) -> None:
        super().__init__()
        self._keys = frozenset(keys)

    def __contains__(self, key: object) -> bool:
        return key in self._keys


def _device_tensors(value: Any, seen: set[int]) -> Iterable[Tensor]:
    if id(value) in seen or isinstance(value, (*_CONSTANTS, *_OPAQUE)):
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield value
        return
    items: Iterable[Any] = ()
    if isinstance(value, (tuple, list)):
        items = value
    elif isinstance(value, dict):
        items = value.values()
    elif has_attributes(value):
        items = attributes_of(value).values()
    for item in items:
        yield from _device_tensors(item, seen)


def _overlaps_itself(tensor: Tensor) -> bool:
    return any(step == 0 and size > 1 for size, step in zip(tensor.size(), tensor.stride(), strict=True))
