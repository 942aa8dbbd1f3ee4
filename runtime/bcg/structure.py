"""Walking the structures that breaks take and return: tensors inside tuples, lists, dicts and objects."""

from __future__ import annotations

import copy
import functools
import itertools
import operator
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
"""Types of values that are known by being equal."""
CODE = (type, types.FunctionType, types.MethodType, types.BuiltinFunctionType, types.ModuleType, functools.partial)
"""Types of objects whose attributes are no state."""
SEQUENCES = (tuple, list, deque)
"""Types that are looked into by position."""


def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors of nested tuples, lists and dicts, in order; of a sparse one those that it is made of."""
    whole = whole_tensors_in(value)
    if not any(map(is_sparse, whole)):
        return whole
    parts = (_SPARSE_PARTS[tensor.layout](tensor) if is_sparse(tensor) else (tensor,) for tensor in whole)
    return list(itertools.chain.from_iterable(parts))


def whole_tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors of nested tuples, lists and dicts, in order."""
    found: list[Tensor] = []
    _collect(value, found)
    return found


def _collect(value: Any, found: list[Tensor]) -> None:
    if isinstance(value, Tensor):
        found.append(value)
    elif isinstance(value, SEQUENCES):
        for item in value:
            _collect(item, found)
    elif isinstance(value, dict):
        for item in value.values():
            _collect(item, found)


_SPARSE_PARTS: dict[torch.layout, Callable[[Tensor], tuple[Tensor, ...]]] = {
    torch.sparse_coo: lambda tensor: (tensor._indices(), tensor._values()),
    **dict.fromkeys(
        (torch.sparse_csr, torch.sparse_bsr),
        lambda tensor: (tensor.crow_indices(), tensor.col_indices(), tensor.values()),
    ),
    **dict.fromkeys(
        (torch.sparse_csc, torch.sparse_bsc),
        lambda tensor: (tensor.ccol_indices(), tensor.row_indices(), tensor.values()),
    ),
}


def is_sparse(tensor: Tensor) -> bool:
    """Tell whether a tensor has no storage of its own, but parts whose size depends on what it holds."""
    return tensor.layout in _SPARSE_PARTS


def map_tensors(function: Callable[[Tensor], Any], value: Any) -> Any:
    """Return `value` with every tensor in its tuples, lists and dicts replaced by `function(tensor)`.

    Containers are rebuilt with their own type (named tuples included), lists and dicts with their attributes;
    anything else is passed through.
    """
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, SEQUENCES):
        return rebuild_sequence(value, [map_tensors(function, item) for item in value])
    if isinstance(value, dict):
        return rebuild_dict(value, {key: map_tensors(function, item) for key, item in value.items()})
    return value


def rebuild_sequence(like: tuple[Any, ...] | list[Any] | deque[Any], items: list[Any]) -> Any:
    """Make a tuple, named tuple, list or deque of the same type as `like` from `items`."""
    if not isinstance(like, tuple):
        rebuilt = copy.copy(like)
        rebuilt.clear()
        rebuilt.extend(items)
        return rebuilt
    return type(like)(*items) if hasattr(like, "_fields") else type(like)(items)


def rebuild_dict(like: dict[Any, Any], items: dict[Any, Any]) -> dict[Any, Any]:
    """Make a dict of the same type as `like` from `items`, which has the same keys."""
    rebuilt = copy.copy(like)
    for key, item in items.items():
        rebuilt[key] = item
    return rebuilt


def same_contents(left: Any, right: Any, same: Callable[[Any, Any], bool] = operator.is_) -> bool:
    """Tell whether two nested structures hold the same in tuples, lists and dicts, by default the very objects."""
    if isinstance(left, SEQUENCES) and isinstance(right, SEQUENCES):
        return len(left) == len(right) and all(map(same_contents, left, right, itertools.repeat(same)))
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same_contents(item, right[key], same) for key, item in left.items())
    return same(left, right)


def same_value(one: Any, other: Any) -> bool:
    """Tell whether two plain values are of one type and equal, or both not a number."""
    return type(one) is type(other) and bool(one == other or (one != one and other != other))


def has_attributes(value: Any) -> bool:
    """Tell whether `value` is an object whose attributes can be looked into."""
    return hasattr(value, "__dict__") or any("__slots__" in vars(kind) for kind in type(value).__mro__[:-1])


def attributes_of(value: Any) -> dict[str, Any]:
    """Return the attributes of an object, those in slots included."""
    slots = {name: getattr(value, name) for name in _slots(type(value)) if hasattr(value, name)}  # type: ignore[arg-type]
    return {**slots, **getattr(value, "__dict__", {})}


@functools.lru_cache(maxsize=256)
def _slots(kind: type) -> tuple[str, ...]:
    declared = (vars(parent).get("__slots__", ()) for parent in kind.__mro__)
    names = itertools.chain.from_iterable((slots,) if isinstance(slots, str) else slots for slots in declared)
    return tuple(name for name in names if not name.startswith("__"))


def hiding_tensors(value: Any, seen: set[int] | None = None) -> Iterator[str]:
    """Yield the types of the objects in a result that hold tensors where nobody looks, such as a cache's.

    Args:
        value: The result.
        seen: Identities of the objects that were looked into: they may hold each other.
    """
    seen = set() if seen is None else seen
    if isinstance(value, (*SEQUENCES, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from hiding_tensors(item, seen)
    elif id(value) not in seen and not isinstance(value, (Tensor, *PLAIN, *CODE)) and has_attributes(value):
        seen.add(id(value))
        held = list(attributes_of(value).values())
        if tensors_in(held) or next(hiding_tensors(held, seen), None) is not None:
            yield type(value).__name__


def is_wrapped(types: Iterable[type]) -> bool:
    """Tell whether a dispatch mode was called for tensors that only wrap others, such as a sharded `DTensor`.

    A mode that answers `NotImplemented` then is called again for the operations on the plain tensors.
    """
    return any(hasattr(kind, "__tensor_flatten__") for kind in types)


def local_part(tensor: Tensor) -> Tensor:
    """Return this rank's plain tensor of a sharded one (a `DTensor`), and any other tensor as it is."""
    local: Tensor = getattr(tensor, "_local_tensor", tensor)
    return local


def local_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the size of the tensors, of sharded ones that of this rank's part."""
    return sum(part.numel() * part.element_size() for part in map(local_part, tensors))


def storage_key(tensor: Tensor) -> int:
    """Identify the storage of `tensor`; stable for as long as the storage, or a weak reference to it, lives.

    A sparse tensor is known by the storage of its values.
    """
    values = _SPARSE_PARTS[tensor.layout](tensor)[-1] if is_sparse(tensor) else tensor
    return int(values.untyped_storage()._cdata)


def storage_address(tensor: Tensor) -> int:
    """Return where the memory of `tensor` begins; 0 for memory that was freed or never was."""
    return 0 if isinstance(tensor, FakeTensor) else tensor.untyped_storage().data_ptr()


def is_freed(tensor: Tensor) -> bool:
    """Tell whether somebody gave back the memory of `tensor` under it, as ``storage.resize_(0)`` does."""
    return not is_sparse(tensor) and tensor.numel() > 0 and tensor.untyped_storage().nbytes() == 0


def storage_bytes(tensor: Tensor) -> Tensor:
    """Return the whole storage of `tensor` as a flat uint8 tensor that shares its memory."""
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Tell whether two tensors of one shape, dtype and layout hold the same bits, sparse ones in all their parts."""
    return all(
        part.shape == other_part.shape and (part.numel() == 0 or torch.equal(_bits(part), _bits(other_part)))
        for part, other_part in zip(tensors_in(one), tensors_in(other), strict=True)
    )


def _bits(tensor: Tensor) -> Tensor:
    if tensor.dtype == torch.bool or not (tensor.is_floating_point() or tensor.is_complex()):
        return tensor
    return tensor.resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)


def unowned_alias(tensor: Tensor) -> Tensor:
    """Return a tensor over the same memory that does not keep the memory alive.

    The caller must know another owner of the memory: here always the graph pool. Reading the alias is
    valid for as long as that pool lives.
    """
    storage = tensor.untyped_storage()
    unowned = torch._C._construct_storage_from_data_pointer(storage.data_ptr(), tensor.device, storage.nbytes())
    return view_as_in(unowned, tensor)


def is_dressed(tensor: Tensor) -> bool:
    """Tell whether a tensor is of a class that adds to its own memory, or has attributes that somebody gave it."""
    return not is_wrapped([type(tensor)]) and (type(tensor) is not Tensor or bool(vars(tensor)))


def dressed_as(tensor: Tensor, alias: Tensor) -> Tensor:
    """Return `alias` in the class of `tensor`, and with its attributes."""
    if is_dressed(tensor):
        alias = alias.as_subclass(type(tensor))
        vars(alias).update(vars(tensor))
    return alias


def view_as_in(storage: Any, tensor: Tensor) -> Tensor:
    """Return a plain tensor over `storage` that looks at it as `tensor` looks at its own, conjugated and negated too.

    To autograd, `tensor` is not changed.
    """
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.data.set_(storage, tensor.storage_offset(), tensor.size(), tensor.stride())
