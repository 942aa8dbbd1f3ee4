"""What a module tree holds besides its parameters: tensors, numbers, and what they are kept in.

Buffers, and attributes of any depth: tensors, numbers, strings, numpy's arrays, and containers and plain objects of
these, with slots or without.
"""

from __future__ import annotations

import itertools
import random
import sys
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from bcg.structure import CODE, PLAIN, attributes_of, has_attributes, same_value

_TORCHS_OWN = frozenset(vars(nn.Module())) - {"_buffers", "training"}
PLACED = ("forward", "_bcg_path")
"""Attributes that breaks and modes put on a module: code, not state."""
_PLAIN = (*PLAIN, torch.Size, numpy.generic)
_MAX_DEPTH = 6
GENERATORS = (torch.Generator, random.Random, numpy.random.Generator, numpy.random.RandomState)
"""Types of random generators."""


@dataclass(frozen=True)
class Holdings:
    """What a module tree held at one moment; nothing is copied but containers, shallowly, and numpy's arrays.

    Attributes:
        values: Numbers, strings, arrays and lengths by path, such as ``layers.0.cache.length``.
        tensors: Tensors by path.
        holders: Every module, container, array, attribute dict and object with slots that was met, with a shallow copy
            of what it held; of a module its attributes by name, of an object the values of its slots.
        own_generators: Random generators that attributes hold, and globals of the files that define the modules.
    """

    values: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    holders: list[tuple[Any, Any]] = field(default_factory=list)
    own_generators: list[Any] = field(default_factory=list)


def collect(root: nn.Module, into: Holdings) -> None:
    """Add what the module tree holds now."""
    seen: set[int] = set()
    for path, module in root.named_modules():
        owned = vars(module)
        into.holders.append((module, {name: value for name, value in owned.items() if name not in PLACED}))
        for name, value in owned.items():
            if name in ("_buffers", "_parameters") and isinstance(value, dict):  # a scripted module's can't be refilled
                into.holders.append((value, dict(value)))
            if name == "_buffers":
                for key, buffer in value.items():
                    _visit(into, _join(path, key), buffer, seen, 0)
            elif name not in _TORCHS_OWN and name not in PLACED:
                _visit(into, _join(path, name), value, seen, 0)
    into.own_generators.extend(_global_generators(root))


def changed_paths(before: Holdings, after: Holdings) -> list[str]:
    """Return the paths at which other values or other tensors are held; what tensors hold is not looked at."""
    tensors = [
        path
        for path in dict.fromkeys([*before.tensors, *after.tensors])
        if before.tensors.get(path) is not after.tensors.get(path)
    ]
    return list(dict.fromkeys([*changed_values(before, after), *tensors]))


def changed_values(before: Holdings, after: Holdings) -> list[str]:
    """Return the paths at which other values are held."""
    return [
        path
        for path in dict.fromkeys([*before.values, *after.values])
        if (path in before.values) != (path in after.values)
        or not _same_value(before.values.get(path), after.values.get(path))
    ]


def _same_value(one: Any, other: Any) -> bool:
    """Tell whether two plain values are the same, two NaN included."""
    if isinstance(one, numpy.ndarray) and isinstance(other, numpy.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    return same_value(one, other)


def _global_generators(root: nn.Module) -> Iterator[Any]:
    files = dict.fromkeys(type(module).__module__ for module in root.modules())
    for name in files:
        if name in sys.modules and not name.startswith("torch."):
            yield from (value for value in vars(sys.modules[name]).values() if type(value) in GENERATORS)


def _join(path: str, name: Any) -> str:
    return f"{path}.{name}" if path else str(name)


def _visit(into: Holdings, path: str, value: Any, seen: set[int], depth: int) -> None:
    if isinstance(value, _PLAIN):
        into.values[path] = value
        return
    if isinstance(value, GENERATORS):
        into.own_generators.append(value)
        return
    if isinstance(value, itertools.count):
        into.values[path] = repr(value)
        return
    if id(value) in seen or depth > _MAX_DEPTH or isinstance(value, (nn.Module, nn.Parameter)):
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        into.tensors[path] = value
    elif isinstance(value, (list, tuple, deque, dict, set, frozenset)):
        into.values[f"len({path})"] = len(value)
        if not isinstance(value, (tuple, frozenset)):
            into.holders.append((value, value.copy()))
        for key, item in _items(value):
            _visit(into, f"{path}[{key!r}]", item, seen, depth + 1)
    elif isinstance(value, numpy.ndarray):
        if not value.dtype.hasobject:
            into.values[path] = value.copy()
            into.holders.append((value, into.values[path]))
    elif _is_plain_object(value):
        attributes, owned = attributes_of(value), getattr(value, "__dict__", {})
        into.holders.append((owned, dict(owned)))
        into.holders.append((value, {name: item for name, item in attributes.items() if name not in owned}))
        for name, item in attributes.items():
            _visit(into, f"{path}.{name}", item, seen, depth + 1)


def _items(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, (dict, OrderedDict)):
        yield from value.items()
    elif isinstance(value, (set, frozenset)):
        yield from ((item, item) for item in sorted(value, key=repr))
    else:
        yield from enumerate(value)


def _is_plain_object(value: Any) -> bool:
    """Tell whether an object may hold state: no function, type or module, none of torch's, no configuration."""
    if isinstance(value, CODE) or not has_attributes(value):
        return False
    return not type(value).__module__.startswith(("torch.", "builtins")) and not hasattr(value, "model_type")
