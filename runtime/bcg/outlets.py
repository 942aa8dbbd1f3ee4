"""Outlets: where the result of a replayed break is poured, so that the next segment reads it.

There is one kind for each kind of value that a break may return; `bcg.boundary` builds them at capture.
"""

from __future__ import annotations

import reprlib
import types
from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor

from bcg.errors import ReplayError
from bcg.structure import attributes_of, same_value, storage_bytes, storage_key


class Outlet(Protocol):
    """Takes the result of a replayed break, or a part of it."""

    def pour(self, value: Any) -> None:
        """Bring `value` to where the next segment reads it.

        Raises:
            ReplayError: `value` can't stand for what the break returned at capture.
        """


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {value.dtype} on {value.device.type}"
    return type(value).__qualname__


_SAME_STRUCTURE = "a break must return the same structure, shapes and dtypes at every replay of a bucket"
_SAME_SHARING = "segments have it frozen which results of a break share memory: return copies where they don't always"


def _refuse(where: str, expected: str, got: str, hint: str = _SAME_STRUCTURE) -> ReplayError:
    return ReplayError(f"break {where} returned {got} at replay; at capture it was {expected}", hint=hint, hazard="S9")


class CopyOutlet:
    """Has a tensor copied into its boundary.

    Args:
        boundary: Where it goes.
        copy: Brings a tensor of the boundary's shape and dtype there, before the next step reads it.
        where: For errors.
    """

    def __init__(self, boundary: Tensor, copy: Callable[[Tensor], Any], where: str) -> None:
        self._boundary = boundary
        self._copy = copy
        self._where = where
        self._shape = boundary.shape
        self._dtype = boundary.dtype

    def pour(self, value: Any) -> None:
        if not isinstance(value, Tensor) or value.shape != self._shape or value.dtype != self._dtype:
            raise _refuse(self._where, _describe(self._boundary), _describe(value))
        self._copy(value)


class StorageOutlet:
    """Copies the whole storage that several results are views of, once for all of them.

    Args:
        boundary: How the segments see it.
        memory: Where the bytes of the storage go.
        where: For errors.
        first: The outlet of the first view of the same storage; `None` for that one itself.
    """

    def __init__(self, boundary: Tensor, memory: Tensor, where: str, first: StorageOutlet | None) -> None:
        self.where = where
        self.poured = 0
        self._expected = _describe(boundary)
        self._view = _view_of(boundary)
        self._memory = memory
        self._first = first

    def pour(self, value: Any) -> None:
        if not isinstance(value, Tensor) or _view_of(value) != self._view:
            raise _refuse(self.where, f"a view {self._expected}", _describe(value))
        storage = storage_key(value)
        if self._first is None:
            self._copy(value)
            self.poured = storage
        elif storage != self._first.poured:
            shared = f"one of the memory of {self._first.where}"
            raise _refuse(self.where, shared, "a view of other memory", _SAME_SHARING)

    def _copy(self, value: Tensor) -> None:
        source = storage_bytes(value)
        if source.shape != self._memory.shape:
            raise _refuse(self.where, f"a view of {len(self._memory)} bytes", f"one of {len(source)} bytes")
        self._memory.copy_(source)


def _view_of(tensor: Tensor) -> tuple[Any, ...]:
    """Return how a tensor looks at its storage."""
    layout = tensor.size(), tensor.stride(), tensor.storage_offset()
    return *layout, tensor.dtype, tensor.is_conj(), tensor.is_neg()


class SameTensorOutlet:
    """Expects the very memory that was handed on at capture, looked at in the same way."""

    def __init__(self, tensor: Tensor, where: str) -> None:
        self._address = tensor.data_ptr()
        self._shape = tensor.shape
        self._stride = tensor.stride()
        self._dtype = tensor.dtype
        self._is_complex = tensor.is_complex()
        self._is_conj = tensor.is_conj()
        self._is_neg = tensor.is_neg()
        self._where = where

    def pour(self, value: Any) -> None:
        if (
            not isinstance(value, Tensor)
            or value.data_ptr() != self._address
            or value.shape != self._shape
            or value.stride() != self._stride
            or value.dtype != self._dtype
            or value.is_neg() != self._is_neg
            or (self._is_complex and value.is_conj() != self._is_conj)
        ):
            raise _refuse(self._where, "a view of a tensor it was given", f"{_describe(value)}, another view or tensor")


class SharedOutlet:
    """Pours what a result holds in several places, in the first of them."""

    def __init__(self, outlet: Outlet, where: str) -> None:
        self.where = where
        self.poured = 0
        self._pour = outlet.pour

    def pour(self, value: Any) -> None:
        self._pour(value)
        self.poured = id(value)


class AgainOutlet:
    """Expects what was poured in the first place: one object at capture must be one at replay."""

    def __init__(self, first: SharedOutlet, where: str) -> None:
        self._first = first
        self._where = where

    def pour(self, value: Any) -> None:
        if id(value) != self._first.poured:
            raise _refuse(self._where, f"the same as {self._first.where}", f"another {_describe(value)}", _SAME_SHARING)


class ConstantOutlet:
    """Expects the value of the capture: segments have it frozen in them."""

    def __init__(self, value: Any, where: str) -> None:
        self._value = value
        self._where = where

    def pour(self, value: Any) -> None:
        if value is not self._value and not same_value(value, self._value):
            got = _describe(value) if isinstance(value, Tensor) else reprlib.repr(value)
            raise ReplayError(
                f"break {self._where} returned {got} at replay; at capture it was {reprlib.repr(self._value)}",
                hint="segments have what a break returns beside tensors frozen in them: return it as a tensor",
                hazard="S2",
            )


class SameObjectOutlet:
    """Expects the very object of the capture: nobody looks into it for tensors, so another one would go stale."""

    def __init__(self, value: Any, where: str) -> None:
        self._value = value
        self._where = where

    def pour(self, value: Any) -> None:
        if value is not self._value and not (isinstance(value, types.MethodType) and value == self._value):
            raise _refuse(self._where, f"the same {_describe(self._value)} object", f"another {_describe(value)}")


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

    def __init__(self, kind: type, outlets: dict[Any, Outlet], where: str) -> None:
        self._kind: Any = kind
        self._outlets = outlets
        self._keys = list(outlets)  # a segment may have gone through them in this order
        self._where = where

    def pour(self, value: Any) -> None:
        if type(value) is not self._kind or list(value) != self._keys:
            keys = f" with keys {list(value)}" if isinstance(value, dict) else ""
            expected = f"{self._kind.__qualname__} with keys {self._keys}"
            raise _refuse(self._where, expected, _describe(value) + keys)
        for key, outlet in self._outlets.items():
            outlet.pour(value[key])


class ObjectOutlet:
    """Pours each attribute of an object."""

    def __init__(self, kind: type, outlets: dict[str, Outlet], where: str) -> None:
        self._kind = kind
        self._outlets = outlets
        self._where = where

    def pour(self, value: Any) -> None:
        if type(value) is not self._kind:
            raise _refuse(self._where, self._kind.__qualname__, _describe(value))
        attributes = attributes_of(value)
        if attributes.keys() != self._outlets.keys():
            raise _refuse(self._where, f"attributes {', '.join(self._outlets)}", f"attributes {', '.join(attributes)}")
        for name, outlet in self._outlets.items():
            outlet.pour(attributes[name])


class ContainerOutlet:
    """Pours the items of a tuple, list or dict that has attributes too, and these."""

    def __init__(self, items: Outlet, attributes: Outlet) -> None:
        self._items = items
        self._attributes = attributes

    def pour(self, value: Any) -> None:
        self._items.pour(value)
        self._attributes.pour(value)


class TextOutlet:
    """Replaces a string among the attributes of what the body of the capture was handed.

    Text tells something about a result, such as which kernel made it: unlike a number it goes into no computation.
    """

    def __init__(self, handed: Any, name: str, where: str) -> None:
        self._handed = handed
        self._name = name
        self._where = where

    def pour(self, value: Any) -> None:
        if type(value) is not str:
            raise _refuse(self._where, "a str", _describe(value))
        object.__setattr__(self._handed, self._name, value)
