"""State that a forward changes in place: found, saved, restored, compared.

State is what the module tree holds besides its parameters (buffers, and attributes of any depth: tensors, numbers,
strings, and containers and plain objects of these), further tensors that a forward was seen to write, and the
random generators.
"""

from __future__ import annotations

import functools
import itertools
import random
import types
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from bcg.structure import is_freed

_TORCHS_OWN = frozenset(vars(nn.Module())) - {"_buffers", "training"}
_PLAIN = (int, float, complex, str, bytes, bool, type(None), torch.dtype, torch.device, torch.Size)
_CODE = (type, types.FunctionType, types.MethodType, types.BuiltinFunctionType, types.ModuleType, functools.partial)
_MAX_DEPTH = 6


@dataclass(frozen=True)
class Snapshot:
    """State at one moment.

    Attributes:
        values: Numbers, strings and lengths by path, such as ``layers.0.cache.length``.
        tensors: The tensors themselves by path, not copied.
        contents: Copies of those tensors.
        holders: Every container and attribute dict that was met, with a shallow copy of what it held.
        generators: States of the process's random generators.
        own_generators: The generators that attributes hold, with their states.
    """

    values: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    contents: dict[str, Tensor] = field(default_factory=dict)
    holders: list[tuple[Any, Any]] = field(default_factory=list)
    generators: tuple[Any, ...] = ()
    own_generators: list[tuple[torch.Generator, Tensor]] = field(default_factory=list)


@dataclass(frozen=True)
class Change:
    """One piece of state that differs between two snapshots.

    Attributes:
        path: Attribute path from the root module.
        before: Its value, or the tensor's contents, in the first snapshot; None if it was not there.
        after: The same in the second.
    """

    path: str
    before: Any
    after: Any

    @property
    def is_tensor(self) -> bool:
        return isinstance(self.after, Tensor) or isinstance(self.before, Tensor)


class ModelState:
    """The state of one module tree.

    Args:
        module: The root.
        extra: Further tensors by name that forwards write.
    """

    def __init__(self, module: nn.Module, extra: Mapping[str, Tensor] | None = None) -> None:
        self._module = module
        self.extra = dict(extra or {})

    def save(self) -> Snapshot:
        """Copy the state as it is now."""
        snapshot = Snapshot(generators=_generator_states())
        self._collect(snapshot)
        with torch.inference_mode():
            for path, tensor in snapshot.tensors.items():
                snapshot.contents[path] = tensor.new_empty(0) if is_freed(tensor) else tensor.clone()
        return snapshot

    def _collect(self, snapshot: Snapshot) -> None:
        seen: set[int] = set()
        for path, module in self._module.named_modules():
            owned = vars(module)
            snapshot.holders.append((owned, dict(owned)))
            for name, value in owned.items():
                if name == "_buffers":
                    if isinstance(value, dict):  # a scripted module's can't be refilled
                        snapshot.holders.append((value, dict(value)))
                    for key, buffer in value.items():
                        _visit(snapshot, _join(path, key), buffer, seen, 0)
                elif name not in _TORCHS_OWN:
                    _visit(snapshot, _join(path, name), value, seen, 0)
        for name, tensor in self.extra.items():
            _visit(snapshot, name, tensor, seen, 0)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the state by path, parameters included, as they are now."""
        snapshot = Snapshot(tensors=dict(self._module.named_parameters()))
        self._collect(snapshot)
        return snapshot.tensors

    def restore(self, snapshot: Snapshot, *, generators: bool = True) -> None:
        """Bring the state back: the same objects, holding what they held; the random generators if asked to."""
        for holder, held in snapshot.holders:
            _refill(holder, held)
        with torch.inference_mode():
            for path, tensor in snapshot.tensors.items():
                contents = snapshot.contents[path]
                if tensor.shape != contents.shape:
                    continue
                if is_freed(tensor):
                    tensor.untyped_storage().resize_(contents.untyped_storage().nbytes())
                tensor.copy_(contents)
        if generators:
            restore_generators(snapshot)


def changes(before: Snapshot, after: Snapshot) -> list[Change]:
    """Return what differs between two snapshots, generators aside."""
    found = []
    for path in dict.fromkeys([*before.values, *after.values]):
        one, other = before.values.get(path), after.values.get(path)
        if not _equal(one, other) or (path in before.values) != (path in after.values):
            found.append(Change(path, one, other))
    for path in dict.fromkeys([*before.contents, *after.contents]):
        old, new = before.contents.get(path), after.contents.get(path)
        if old is None or new is None or not _same_tensor(old, new):
            found.append(Change(path, before.values.get(path, old), after.values.get(path, new)))
    return list({change.path: change for change in found}.values())


def _equal(one: Any, other: Any) -> bool:
    return type(one) is type(other) and (one == other or (one != one and other != other))


def _same_tensor(one: Tensor, other: Tensor) -> bool:
    from bcg.checking.compare import same_bits

    return one.shape == other.shape and one.dtype == other.dtype and same_bits(one, other)


def _join(path: str, name: Any) -> str:
    return f"{path}.{name}" if path else str(name)


def _visit(snapshot: Snapshot, path: str, value: Any, seen: set[int], depth: int) -> None:
    if isinstance(value, _PLAIN):
        snapshot.values[path] = value
        return
    if isinstance(value, torch.Generator):
        snapshot.own_generators.append((value, value.get_state()))
        return
    if isinstance(value, itertools.count):
        snapshot.values[path] = repr(value)
        return
    if id(value) in seen or depth > _MAX_DEPTH or isinstance(value, (nn.Module, nn.Parameter)):
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        snapshot.tensors[path] = value
    elif isinstance(value, (list, tuple, deque, dict, set, frozenset)):
        snapshot.values[f"len({path})"] = len(value)
        if not isinstance(value, (tuple, frozenset)):
            snapshot.holders.append((value, value.copy()))
        for key, item in _items(value):
            _visit(snapshot, f"{path}[{key!r}]", item, seen, depth + 1)
    elif _is_plain_object(value):
        snapshot.holders.append((vars(value), dict(vars(value))))
        for name, item in vars(value).items():
            _visit(snapshot, f"{path}.{name}", item, seen, depth + 1)


def _items(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, (dict, OrderedDict)):
        yield from value.items()
    elif isinstance(value, (set, frozenset)):
        yield from ((item, item) for item in sorted(value, key=repr))
    else:
        yield from enumerate(value)


def _is_plain_object(value: Any) -> bool:
    """Tell whether an object may hold state: no function, type or module, none of torch's, no configuration."""
    if isinstance(value, _CODE) or not hasattr(value, "__dict__"):
        return False
    return not type(value).__module__.startswith(("torch.", "builtins")) and not hasattr(value, "model_type")


def _refill(holder: Any, held: Any) -> None:
    if isinstance(holder, (dict, set)):
        if holder != held if isinstance(holder, set) else _differs(holder, held):
            holder.clear()
            holder.update(held)
    elif len(holder) != len(held) or any(one is not other for one, other in zip(holder, held, strict=True)):
        holder.clear()
        holder.extend(held)


def _differs(one: dict[Any, Any], other: dict[Any, Any]) -> bool:
    return one.keys() != other.keys() or any(one[key] is not other[key] for key in one)


def _generator_states() -> tuple[Any, ...]:
    devices = [torch.cuda.get_rng_state(index) for index in range(torch.cuda.device_count())] if _uses_gpu() else []
    return (random.getstate(), numpy.random.get_state(), torch.get_rng_state(), *devices)


def restore_generators(snapshot: Snapshot) -> None:
    """Bring the random generators back to where they were."""
    for generator, state in snapshot.own_generators:
        generator.set_state(state)
    if not snapshot.generators:
        return
    python, arrays, host, *devices = snapshot.generators
    random.setstate(python)
    numpy.random.set_state(arrays)
    torch.set_rng_state(host)
    for index, state in enumerate(devices):
        torch.cuda.set_rng_state(state, index)


def _uses_gpu() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_initialized()
