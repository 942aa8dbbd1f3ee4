"""State that a forward changes in place: saved, restored, compared.

State is what the module tree holds (see `bcg.holdings`), parameters that a forward puts in place of others, further
tensors that it was seen to write, and the random generators.
"""

from __future__ import annotations

import contextlib
import random
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from bcg.holdings import PLACED, Holdings, changed_values, collect
from bcg.structure import attributes_of, is_freed, is_sparse, same_bits


@dataclass(frozen=True)
class Snapshot(Holdings):
    """State at one moment.

    Attributes:
        contents: Copies of the tensors.
        views: The tensors as they lay in memory.
        generators: States of the process's random generators.
        own_states: States of `own_generators`.
    """

    contents: dict[str, Tensor] = field(default_factory=dict)
    views: dict[str, Tensor] = field(default_factory=dict)
    generators: tuple[Any, ...] = ()
    own_states: list[Any] = field(default_factory=list)


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
        self._parameters = dict(module.named_parameters(remove_duplicate=False))
        self.extra = dict(extra or {})

    def save(self) -> Snapshot:
        """Copy the state as it is now."""
        snapshot = Snapshot(generators=_generator_states())
        self._collect(snapshot)
        snapshot.own_states.extend(map(_generator_state, snapshot.own_generators))
        with torch.inference_mode():
            for path, tensor in snapshot.tensors.items():
                snapshot.contents[path] = tensor.new_empty(0) if is_freed(tensor) else tensor.clone()
                snapshot.views[path] = tensor.detach()
        return snapshot

    def look(self) -> Holdings:
        """Return what is held now, without copies."""
        holdings = Holdings()
        self._collect(holdings)
        return holdings

    def _collect(self, holdings: Holdings) -> None:
        collect(self._module, holdings)
        for path, parameter in self._module.named_parameters(remove_duplicate=False):
            if parameter is not self._parameters.get(path):
                holdings.tensors[path] = parameter
        held = {id(tensor) for tensor in holdings.tensors.values()}
        holdings.tensors.update({name: tensor for name, tensor in self.extra.items() if id(tensor) not in held})

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the state by path, parameters included, as they are now."""
        return {**dict(self._module.named_parameters()), **self.look().tensors}

    def restore(self, snapshot: Snapshot, *, generators: bool = True) -> None:
        """Bring the state back: the same objects, holding what they held; the random generators if asked to."""
        for holder, held in snapshot.holders:
            _refill(holder, held)
        with torch.inference_mode():
            for path, tensor in snapshot.tensors.items():
                contents, view = snapshot.contents[path], snapshot.views[path]
                if contents.shape != view.shape:  # it was freed before
                    continue
                if tensor.shape != view.shape:
                    tensor.set_(view.untyped_storage(), view.storage_offset(), view.size(), view.stride())
                if is_freed(tensor):
                    tensor.untyped_storage().resize_(contents.untyped_storage().nbytes())
                put_contents(tensor, contents)
        if generators:
            restore_generators(snapshot)

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Bring back, after the block, what forwards changed in place, and the random generators."""
        before = self.save()
        try:
            yield
        finally:
            self.restore(before)


def put_contents(tensor: Tensor, contents: Tensor) -> None:
    """Copy `contents` into a tensor of the same shape; of an expanded one each element is written once."""
    if not is_sparse(tensor):
        once = tuple(slice(1) if stride == 0 else slice(None) for stride in tensor.stride())
        tensor, contents = tensor[once], contents[once]
    tensor.copy_(contents)


def changes(before: Snapshot, after: Snapshot) -> list[Change]:
    """Return what differs between two snapshots, generators aside."""
    found = [Change(path, before.values.get(path), after.values.get(path)) for path in changed_values(before, after)]
    for path in dict.fromkeys([*before.contents, *after.contents]):
        old, new = before.contents.get(path), after.contents.get(path)
        if old is None or new is None or not _same_tensor(old, new):
            found.append(Change(path, before.values.get(path, old), after.values.get(path, new)))
    return list({change.path: change for change in found}.values())


def _same_tensor(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and same_bits(one, other)


def _refill(holder: Any, held: Any) -> None:
    if isinstance(holder, nn.Module):
        placed = {name: value for name, value in vars(holder).items() if name in PLACED}
        _refill(vars(holder), held | placed)
    elif isinstance(holder, (dict, set)):
        if holder != held if isinstance(holder, set) else _differs(holder, held):
            holder.clear()
            holder.update(held)
    elif isinstance(holder, numpy.ndarray):
        if holder.tobytes() != held.tobytes():  # it may be read-only
            holder[...] = held
    elif not isinstance(holder, (list, deque)):
        _refill_slots(holder, held)
    elif len(holder) != len(held) or any(one is not other for one, other in zip(holder, held, strict=True)):
        holder.clear()
        holder.extend(held)


def _refill_slots(holder: Any, held: dict[str, Any]) -> None:
    now = attributes_of(holder)
    for name in now.keys() - held.keys() - getattr(holder, "__dict__", {}).keys():
        delattr(holder, name)
    for name, value in held.items():
        if name not in now or now[name] is not value:
            setattr(holder, name, value)


def _differs(one: dict[Any, Any], other: dict[Any, Any]) -> bool:
    return one.keys() != other.keys() or any(one[key] is not other[key] for key in one)


def _generator_states() -> tuple[Any, ...]:
    devices = [torch.cuda.get_rng_state(index) for index in range(torch.cuda.device_count())] if _uses_gpu() else []
    return (random.getstate(), numpy.random.get_state(), torch.get_rng_state(), *devices)


def restore_generators(snapshot: Snapshot) -> None:
    """Bring the random generators back to where they were."""
    for generator, state in zip(snapshot.own_generators, snapshot.own_states, strict=True):
        _put_generator_state(generator, state)
    if not snapshot.generators:
        return
    python, arrays, host, *devices = snapshot.generators
    random.setstate(python)
    numpy.random.set_state(arrays)
    torch.set_rng_state(host)
    for index, state in enumerate(devices):
        torch.cuda.set_rng_state(state, index)


def have_drawn(since: Snapshot) -> bool:
    """Tell whether a random generator is no more where it was."""
    now = (*_generator_states(), *map(_generator_state, since.own_generators))
    return not _same_state((*since.generators, *since.own_states), now)


def host_generators(snapshot: Snapshot) -> dict[str, Any]:
    """Return where the generators are now that draw on the host: the process's own, and those that the modules hold."""
    states: dict[str, Any] = {
        "random": random.getstate(),
        "numpy.random": numpy.random.get_state(),
        "torch's default generator": torch.get_rng_state(),
    }
    for generator in snapshot.own_generators:
        if not (isinstance(generator, torch.Generator) and generator.device.type != "cpu"):
            states[f"a {type(generator).__name__} of the model"] = _generator_state(generator)
    return states


def moved_otherwise(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Return the names of the generators that are not at the same place in both."""
    return [name for name, state in one.items() if not _same_state(state, other[name])]


def _generator_state(generator: Any) -> Any:
    if isinstance(generator, random.Random):
        return generator.getstate()
    return generator.bit_generator.state if isinstance(generator, numpy.random.Generator) else generator.get_state()


def _put_generator_state(generator: Any, state: Any) -> None:
    if isinstance(generator, random.Random):
        generator.setstate(state)
    elif isinstance(generator, numpy.random.Generator):
        generator.bit_generator.state = state
    else:
        generator.set_state(state)


def _same_state(one: Any, other: Any) -> bool:
    """Compare states of generators: tensors, arrays and numbers in tuples and dicts."""
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(_same_state, one, other))
    if isinstance(one, dict):
        return all(_same_state(value, other[name]) for name, value in one.items())
    if not isinstance(one, (Tensor, numpy.ndarray)):  # hundreds of numbers
        return bool(one == other)
    return torch.equal(one, other) if isinstance(one, Tensor) else numpy.array_equal(one, other)


def _uses_gpu() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_initialized()
