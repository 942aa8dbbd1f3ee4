"""Boundaries: how a break's result reaches the next segment, at the same addresses at every replay.

At capture `hold` builds, from the result of the break's first run, what is handed to the next segment and an
`Outlet` that later results are poured into. What a result may be made of:

- a tensor that the break made: the boundary is a tensor in the graph pool, and every result is copied into it;
- a tensor that shares memory with an argument, or with a tensor of the same capture: handed on as it is, and
  expected at the same address at every replay;
- tuples, lists, dicts and objects of these; an object is copied once, and its attributes are replaced at replay;
- a number, string or `None`: handed on, and expected to stay the same, since segments have it frozen in them.

Anything else is an error that names the break: a structure that nobody looks into would go stale silently.
"""

from __future__ import annotations

import copy
import enum
import types
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from bcg.errors import CaptureError, ReplayError
from bcg.structure import rebuild_sequence, storage_bytes, storage_key, unowned_alias

Allocate = Callable[[tuple[int, ...], tuple[int, ...], torch.dtype], Tensor]

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
_OPAQUE = (nn.Module, torch.Generator, type, types.ModuleType, types.FunctionType, types.MethodType)


class Outlet(Protocol):
    """Takes the result of a replayed break, or a part of it."""

    def pour(self, value: Any) -> None:
        """Bring `value` to where the next segment reads it.

        Raises:
            ReplayError: `value` can't stand for what the break returned at capture.
        """


class Holder:
    """Builds the boundaries of one break.

    Args:
        break_name: For errors.
        allocate: Allocates in the graph pool, by size, stride and dtype.
        is_known: Tells whether a tensor shares memory with an argument of the break or with a tensor that
            this capture made: its address is then the same at every replay.
        is_on_device: Tells whether a tensor is on the device of the graph.
    """

    def __init__(
        self,
        break_name: str,
        allocate: Allocate,
        is_known: Callable[[Tensor], bool],
        is_on_device: Callable[[Tensor], bool],
    ) -> None:
        self._break_name = break_name
        self._allocate = allocate
        self._is_known = is_known
        self._is_on_device = is_on_device
        self._held: dict[int, tuple[Any, Outlet]] = {}
        self._shared: dict[int, Tensor] = {}
        self.boundaries: list[Tensor] = []

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
            return value, IgnoringOutlet()
        elif isinstance(value, (tuple, list)):
            held = self._hold_sequence(value, where)
        elif isinstance(value, dict):
            held = self._hold_dict(value, where)
        elif hasattr(value, "__dict__") and not hasattr(value, "__iter__"):
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
        if self._is_known(tensor):
            return tensor, SameTensorOutlet(tensor, where)
        if not self._is_on_device(tensor):
            boundary = tensor.clone()
            return boundary, CopyOutlet(boundary, where)
        key = storage_key(tensor)
        if key in self._shared or _overlaps_itself(tensor):
            return self._hold_view(tensor, key, where)
        size, stride = tuple(tensor.size()), tuple(tensor.stride())
        boundary = self._allocate(size, stride, tensor.dtype)
        boundary.copy_(tensor)
        self.boundaries.append(boundary)
        return boundary, CopyOutlet(unowned_alias(boundary), where)

    def _hold_view(self, tensor: Tensor, key: int, where: str) -> tuple[Tensor, Outlet]:
        """Several results over one storage keep sharing it: the whole storage is the boundary."""
        memory = self._shared.get(key)
        if memory is None:
            num_bytes = tensor.untyped_storage().nbytes()
            memory = self._allocate((num_bytes,), (1,), torch.uint8)
            memory.copy_(storage_bytes(tensor))
            self._shared[key] = memory
            self.boundaries.append(memory)
        boundary = torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(
            memory.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride()
        )
        return boundary, StorageOutlet(unowned_alias(boundary), unowned_alias(memory), where)

    def _storages_of_several(self, result: Any) -> dict[int, Tensor]:
        seen: dict[int, set[int]] = {}
        for tensor in _device_tensors(result, set()):
            if self._is_on_device(tensor) and not self._is_known(tensor):
                seen.setdefault(storage_key(tensor), set()).add(id(tensor))
        several = [key for key, tensors in seen.items() if len(tensors) > 1]
        return _LazyStorages(several)

    def _hold_sequence(self, value: tuple[Any, ...] | list[Any], where: str) -> tuple[Any, Outlet]:
        pairs = [self._hold(item, f"{where}[{index}]") for index, item in enumerate(value)]
        handed = rebuild_sequence(value, [pair[0] for pair in pairs])
        return handed, SequenceOutlet(type(value), [pair[1] for pair in pairs], where)

    def _hold_dict(self, value: dict[Any, Any], where: str) -> tuple[Any, Outlet]:
        pairs = {key: self._hold(item, f"{where}[{key!r}]") for key, item in value.items()}
        handed = copy.copy(value)
        for key, (item, _) in pairs.items():
            handed[key] = item
        return handed, DictOutlet({key: outlet for key, (_, outlet) in pairs.items()}, where)

    def _hold_object(self, value: Any, where: str) -> tuple[Any, Outlet]:
        handed = copy.copy(value)
        outlets: dict[str, Outlet] = {}
        for name, item in vars(value).items():
            if isinstance(item, _CONSTANTS):
                continue
            part, outlets[name] = self._hold(item, f"{where}.{name}")
            object.__setattr__(handed, name, part)
        return handed, ObjectOutlet(handed, outlets, where)


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
    elif hasattr(value, "__dict__"):
        items = vars(value).values()
    for item in items:
        yield from _device_tensors(item, seen)


def _overlaps_itself(tensor: Tensor) -> bool:
    return any(step == 0 and size > 1 for size, step in zip(tensor.size(), tensor.stride(), strict=True))


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {value.dtype} on {value.device.type}"
    return type(value).__qualname__


def _refuse(where: str, expected: str, got: str) -> ReplayError:
    return ReplayError(
        f"break {where} returned {got} at replay; at capture it was {expected}",
        hint="a break must return the same structure, shapes and dtypes at every replay of a bucket",
    )


class CopyOutlet:
    """Copies a tensor into its boundary."""

    def __init__(self, boundary: Tensor, where: str) -> None:
        self._boundary = boundary
        self._where = where
        self._shape = boundary.shape
        self._dtype = boundary.dtype
        self._address = boundary.data_ptr()

    def pour(self, value: Any) -> None:
        if not isinstance(value, Tensor) or value.shape != self._shape or value.dtype != self._dtype:
            raise _refuse(self._where, _describe(self._boundary), _describe(value))
        if value.data_ptr() != self._address:
            self._boundary.copy_(value)


class StorageOutlet:
    """Copies the whole storage that several results are views of."""

    def __init__(self, boundary: Tensor, memory: Tensor, where: str) -> None:
        self._boundary = boundary
        self._memory = memory
        self._where = where

    def pour(self, value: Any) -> None:
        expected = self._boundary
        if not isinstance(value, Tensor) or value.dtype != expected.dtype or _layout(value) != _layout(expected):
            raise _refuse(self._where, f"a view {_describe(expected)}", _describe(value))
        source = storage_bytes(value)
        if source.shape != self._memory.shape:
            raise _refuse(self._where, f"a view of {len(self._memory)} bytes", f"one of {len(source)} bytes")
        self._memory.copy_(source)


def _layout(tensor: Tensor) -> tuple[torch.Size, tuple[int, ...], int | torch.SymInt]:
    return tensor.size(), tensor.stride(), tensor.storage_offset()


class SameTensorOutlet:
    """Expects the very memory that was handed on at capture."""

    def __init__(self, tensor: Tensor, where: str) -> None:
        self._address = tensor.data_ptr()
        self._shape = tensor.shape
        self._where = where

    def pour(self, value: Any) -> None:
        if not isinstance(value, Tensor) or value.shape != self._shape or value.data_ptr() != self._address:
            raise _refuse(self._where, "a view of a tensor it was given", f"{_describe(value)}, another tensor")


class ConstantOutlet:
    """Expects the value of the capture: segments have it frozen in them."""

    def __init__(self, value: Any, where: str) -> None:
        self._value = value
        self._where = where

    def pour(self, value: Any) -> None:
        if value is not self._value and value != self._value and not _both_nan(value, self._value):
            raise _refuse(self._where, repr(self._value), repr(value))


def _both_nan(left: Any, right: Any) -> bool:
    return isinstance(left, float) and isinstance(right, float) and left != left and right != right


class IgnoringOutlet:
    """For a value that holds no tensor and is handed on as it is."""

    def pour(self, value: Any) -> None:
        return None


class SequenceOutlet:
    """Pours each item of a tuple or list."""

    def __init__(self, kind: type, outlets: list[Outlet], where: str) -> None:
        self._kind: Any = kind
        self._pours = [outlet.pour for outlet in outlets]
        self._where = where

    def pour(self, value: Any) -> None:
        if type(value) is not self._kind or len(value) != len(self._pours):
            got = f"{len(value)} items" if isinstance(value, (tuple, list)) else _describe(value)
            raise _refuse(self._where, f"a {self._kind.__qualname__} of {len(self._pours)} items", got)
        for pour, item in zip(self._pours, value, strict=False):
            pour(item)


class DictOutlet:
    """Pours each entry of a dict."""

    def __init__(self, outlets: dict[Any, Outlet], where: str) -> None:
        self._outlets = outlets
        self._where = where

    def pour(self, value: Any) -> None:
        if not isinstance(value, dict) or value.keys() != self._outlets.keys():
            got = f"keys {list(value)}" if isinstance(value, dict) else _describe(value)
            raise _refuse(self._where, f"keys {list(self._outlets)}", got)
        for key, outlet in self._outlets.items():
            outlet.pour(value[key])


class ObjectOutlet:
    """Pours the tensors of an object's attributes and replaces its other attributes."""

    def __init__(self, handed: Any, outlets: dict[str, Outlet], where: str) -> None:
        self._handed = handed
        self._outlets = outlets
        self._where = where

    def pour(self, value: Any) -> None:
        if type(value) is not type(self._handed):
            raise _refuse(self._where, _describe(self._handed), _describe(value))
        for name, item in vars(value).items():
            outlet = self._outlets.get(name)
            if outlet is not None:
                outlet.pour(item)
            elif isinstance(item, Tensor):
                raise _refuse(f"{self._where}.{name}", "no tensor", _describe(item))
            else:
                object.__setattr__(self._handed, name, item)
