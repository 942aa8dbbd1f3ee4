"""Outlets: where the result of a replayed break is poured, so that the next segment reads it.

There is one kind for each kind of value that a break may return; `bcg.boundary` builds them at capture.
"""

from __future__ import annotations

import reprlib
import types
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from bcg.errors import ReplayError
from bcg.structure import attributes_of, storage_bytes


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


def _refuse(where: str, expected: str, got: str) -> ReplayError:
    return ReplayError(
        f"break {where} returned {got} at replay; at capture it was {expected}",
        hint="a break must return the same structure, shapes and dtypes at every replay of a bucket",
        hazard="S9",
    )


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
    """Expects the very memory that was handed on at capture, looked at in the same way."""

    def __init__(self, tensor: Tensor, where: str) -> None:
        self._address = tensor.data_ptr()
        self._shape = tensor.shape
        self._stride = tensor.stride()
        self._dtype = tensor.dtype
        self._is_complex = tensor.is_complex()
        self._is_conj = tensor.is_conj()
        self._where = where

    def pour(self, value: Any) -> None:
        if (
            not isinstance(value, Tensor)
            or value.data_ptr() != self._address
            or value.shape != self._shape
            or value.stride() != self._stride
            or value.dtype != self._dtype
            or (self._is_complex and value.is_conj() != self._is_conj)
        ):
            raise _refuse(self._where, "a view of a tensor it was given", f"{_describe(value)}, another view or tensor")


class ConstantOutlet:
    """Expects the value of the capture: segments have it frozen in them."""

    def __init__(self, value: Any, where: str) -> None:
        self._value = value
        self._where = where

    def pour(self, value: Any) -> None:
        if value is not self._value and not _are_equal(value, self._value):
            got = _describe(value) if isinstance(value, Tensor) else reprlib.repr(value)
            raise ReplayError(
                f"break {self._where} returned {got} at replay; at capture it was {reprlib.repr(self._value)}",
                hint="segments have what a break returns beside tensors frozen in them: return it as a tensor",
                hazard="S2",
            )


def _are_equal(one: Any, other: Any) -> bool:
    """Tell whether two constants are of one type and equal, or both not a number."""
    return type(one) is type(other) and bool(one == other or (one != one and other != other))


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
        for name, item in attributes_of(value).items():
            outlet = self._outlets.get(name)
            if outlet is not None:
                outlet.pour(item)
            elif isinstance(item, Tensor):
                raise _refuse(f"{self._where}.{name}", "no tensor", _describe(item))
            else:
                object.__setattr__(self._handed, name, item)
