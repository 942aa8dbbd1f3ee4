"""Boundaries: how a break's result reaches the next segment, at the same addresses at every replay.

At capture `hold` builds, from the result of the break's first run, what is handed to the next segment and an
`Outlet` that later results are poured into. What a result may be made of:

- a tensor that the break made: the boundary is a tensor in the graph pool, and every result is copied into it (so
  it is for a tensor that the break merely holds: what segments write to the copy does not reach the original);
- a tensor that shares memory with an argument, or with a tensor of the same capture: handed on as it is, and
  expected at the same address at every replay;
- tuples, lists, dicts and objects of these, the attributes of a dict subclass among them; an object is copied once,
  and a string among its attributes is replaced at replay;
- any other number, string or `None`: handed on, and expected to stay the same, since segments have it frozen in them;
- a module, function or generator: handed on, and expected to be the same object at every replay.

What is one object, or one memory, at capture must be one at replay: a segment that writes to the one writes to the
other, whatever the break returns later. What is two at capture has two boundaries, and both are filled from what may
be one at replay; a break whose results share memory only now and then returns copies of them.

Anything else is an error that names the break: a structure that nobody looks into would go stale silently.
"""

from __future__ import annotations

import collections
import copy
import enum
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from bcg.errors import CaptureError
from bcg.outlets import (
    AgainOutlet,
    ConstantOutlet,
    ContainerOutlet,
    CopyOutlet,
    DictOutlet,
    ObjectOutlet,
    Outlet,
    SameObjectOutlet,
    SameTensorOutlet,
    SequenceOutlet,
    SharedOutlet,
    StorageOutlet,
    TextOutlet,
)
from bcg.structure import (
    CODE,
    PLAIN,
    attributes_of,
    dressed_as,
    has_attributes,
    is_dressed,
    is_sparse,
    rebuild_dict,
    rebuild_sequence,
    storage_bytes,
    storage_key,
    unowned_alias,
    view_as_in,
)


class Memory(Protocol):
    """Where boundaries lie."""

    def allocate(self, size: Sequence[int], stride: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Allocate a boundary."""

    def feed(self, boundary: Tensor, result: Tensor) -> Callable[[Tensor], Any]:
        """Bring the first result into a boundary, and return what does it with later ones."""


_CONSTANTS = (*PLAIN, enum.Enum, slice, range)
_OPAQUE = (nn.Module, torch.Generator, *CODE)
_HANDED_AS_IT_IS = (*_CONSTANTS, *_OPAQUE)


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
        self._repeated: set[int] = set()
        self._divided: set[int] = set()
        self._open: set[int] = set()
        self._held: dict[int, tuple[Any, SharedOutlet]] = {}
        self._memories: dict[int, tuple[Tensor, StorageOutlet]] = {}
        self.boundaries: list[Tensor] = []
        self.unowned: list[Tensor] = []

    def hold(self, result: Any) -> tuple[Any, Outlet]:
        """Return what the next segment gets for `result`, and the outlet for later results.

        Raises:
            CaptureError: The result has a structure that can't be looked into (hazard S9).
        """
        self._look_for_sharing(result)
        return self._hold(result, self._break_name)

    def _look_for_sharing(self, result: Any) -> None:
        """Find what `result` holds in several places, and the storages that several of its tensors are views of."""
        parts = list(_parts(result, set()))
        if len(parts) < 2:
            return  # such as the one result of attention
        places = collections.Counter[int]()
        views: dict[int, set[int]] = {}
        for part in parts:
            if isinstance(part, Tensor):
                if self._is_known(part):
                    continue
                if not is_sparse(part) and self._is_on_device(part):
                    views.setdefault(storage_key(part), set()).add(id(part))
            places[id(part)] += 1
        self._repeated = {key for key, count in places.items() if count > 1}
        self._divided = {key for key, tensors in views.items() if len(tensors) > 1}

    def _hold(self, value: Any, where: str) -> tuple[Any, Outlet]:
        if id(value) in self._held:
            handed, first = self._held[id(value)]
            return handed, AgainOutlet(first, where)
        if id(value) in self._open:
            raise CaptureError(
                f"break {where} returned a {type(value).__qualname__} that holds itself",
                hint="return the tensors themselves, or a dataclass of them",
                hazard="S9",
            )
        self._open.add(id(value))
        try:
            return self._hold_new(value, where)
        finally:
            self._open.remove(id(value))

    def _hold_new(self, value: Any, where: str) -> tuple[Any, Outlet]:
        held: tuple[Any, Outlet]
        if isinstance(value, Tensor):
            held = self._hold_dressed(value, where)
        elif isinstance(value, _CONSTANTS):
            return value, ConstantOutlet(value, where)
        elif isinstance(value, (tuple, list, dict)):
            held = self._hold_container(value, where)
        elif isinstance(value, _OPAQUE):
            return value, SameObjectOutlet(value, where)
        elif has_attributes(value) and not hasattr(value, "__iter__"):
            held = self._hold_object(value, where)
        else:
            raise CaptureError(
                f"break {where} returned a {type(value).__module__}.{type(value).__qualname__}, whose tensors can't "
                "be found; expected tensors, numbers, tuples, lists, dicts or objects with attributes",
                hint="return the tensors themselves, or a dataclass of them",
                hazard="S9",
            )
        if id(value) in self._repeated:
            held = self._held[id(value)] = held[0], SharedOutlet(held[1], where)
        return held

    def _hold_dressed(self, tensor: Tensor, where: str) -> tuple[Tensor, Outlet]:
        """A tensor's class and attributes go with it, and are expected again."""
        handed, outlet = self._hold_tensor(tensor, where)
        if handed is tensor:
            return handed, outlet
        if is_dressed(tensor):
            handed = dressed_as(tensor, handed)
            outlet = ContainerOutlet(outlet, self._hold_attributes(tensor, handed, where))
        if tensor.grad_fn is not None and torch.is_grad_enabled():
            handed = _EndOfGradients.apply(handed, tensor, where)  # type: ignore[no-untyped-call]
        return handed, outlet

    def _hold_tensor(self, tensor: Tensor, where: str) -> tuple[Tensor, Outlet]:
        without_an_address = _without_an_address(tensor)
        if without_an_address:
            what, remedy = without_an_address
            raise CaptureError(
                f"break {where} returned a {what}, which has no fixed address that the next segment could read; "
                "expected a dense one",
                hint=f"return its {remedy}, or let the break reach to where it is used up: --break the module around",
                hazard="S9",
            )
        if self._is_known(tensor):
            return tensor, SameTensorOutlet(tensor, where)
        if not self._is_on_device(tensor):
            boundary = tensor.clone()
            return boundary, CopyOutlet(boundary, boundary.copy_, where)
        if storage_key(tensor) in self._divided or _overlaps_itself(tensor):
            return self._hold_view(tensor, where)
        size, stride = tuple(tensor.size()), tuple(tensor.stride())
        boundary = self._memory.allocate(size, stride, tensor.dtype)
        unowned = self._add(boundary)
        return boundary, CopyOutlet(unowned, self._memory.feed(unowned, tensor), where)

    def _hold_view(self, tensor: Tensor, where: str) -> tuple[Tensor, Outlet]:
        """Several results over one storage keep sharing it: the whole storage is the boundary."""
        key = storage_key(tensor)
        memory, first = self._memories.get(key, (None, None))
        if memory is None:
            memory = self._memory.allocate((tensor.untyped_storage().nbytes(),), (1,), torch.uint8)
            memory.copy_(storage_bytes(tensor))
            self._add(memory)
        boundary = view_as_in(memory.untyped_storage(), tensor)
        outlet = StorageOutlet(boundary, unowned_alias(memory), where, first)
        self._memories.setdefault(key, (memory, outlet))
        return boundary, outlet

    def _add(self, boundary: Tensor) -> Tensor:
        unowned = unowned_alias(boundary)
        self.boundaries.append(boundary)
        self.unowned.append(unowned)
        return unowned

    def _hold_container(self, value: Any, where: str) -> tuple[Any, Outlet]:
        handed, outlet = self._hold_dict(value, where) if isinstance(value, dict) else self._hold_sequence(value, where)
        if attributes_of(value):
            outlet = ContainerOutlet(outlet, self._hold_attributes(value, handed, where))
        return handed, outlet

    def _hold_sequence(self, value: tuple[Any, ...] | list[Any], where: str) -> tuple[Any, Outlet]:
        pairs = [self._hold(item, f"{where}[{index}]") for index, item in enumerate(value)]
        handed = rebuild_sequence(value, [pair[0] for pair in pairs])
        return handed, SequenceOutlet(type(value), [pair[1] for pair in pairs], where)

    def _hold_dict(self, value: dict[Any, Any], where: str) -> tuple[Any, Outlet]:
        pairs = {key: self._hold(item, f"{where}[{key!r}]") for key, item in value.items()}
        handed = rebuild_dict(value, {key: item for key, (item, _) in pairs.items()})
        return handed, DictOutlet(type(value), {key: outlet for key, (_, outlet) in pairs.items()}, where)

    def _hold_object(self, value: Any, where: str) -> tuple[Any, Outlet]:
        handed = copy.copy(value)
        return handed, self._hold_attributes(value, handed, where)

    def _hold_attributes(self, value: Any, handed: Any, where: str) -> Outlet:
        outlets: dict[str, Outlet] = {}
        for name, item in attributes_of(value).items():
            place = f"{where}.{name}"
            if type(item) is str:
                outlets[name] = TextOutlet(handed, name, place)
                continue
            part, outlets[name] = self._hold(item, place)
            object.__setattr__(handed, name, part)
        return ObjectOutlet(type(value), outlets, where)


class _EndOfGradients(torch.autograd.Function):
    """A boundary that a gradient does not pass: without it the gradient would lack that part without an error."""

    @staticmethod
    def forward(ctx: Any, boundary: Tensor, result: Tensor, where: str) -> Tensor:
        ctx.where = where
        ctx.mark_dirty(boundary)
        return boundary

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise CaptureError(
            f"a gradient is asked for through break {ctx.where}, whose result reaches the next segment by a copy",
            hint="put what computes the gradient into one break, or the break outside of it",
        )


def _remembering(is_known: Callable[[Tensor], bool]) -> Callable[[Tensor], bool]:
    """Ask once for each tensor of a result: on a GPU it takes a look at the allocator's counters."""
    answers: dict[int, bool] = {}

    def remembered(tensor: Tensor) -> bool:
        answer = answers.get(id(tensor))
        if answer is None:
            answer = answers[id(tensor)] = is_known(tensor)
        return answer

    return remembered


def _parts(value: Any, seen: set[int]) -> Iterator[Any]:
    """Yield tensors, and what they are in: everything that can be written to, as often as there is a place of it."""
    if isinstance(value, Tensor):
        yield value
        return
    if isinstance(value, _HANDED_AS_IT_IS):
        return
    if not isinstance(value, tuple):
        yield value
        if id(value) in seen:
            return
        seen.add(id(value))
    items = [*attributes_of(value).values()]
    if isinstance(value, (tuple, list)):
        items += value
    elif isinstance(value, dict):
        items += value.values()
    for item in items:
        yield from _parts(item, seen)


def _without_an_address(tensor: Tensor) -> tuple[str, str] | None:
    """Say of a tensor whose values don't lie in one block of memory what it is, and what makes one that does."""
    if is_sparse(tensor):
        return f"sparse tensor ({tensor.layout})", "to_dense()"
    if tensor.is_nested:
        return "nested tensor", "values, padded to one shape"
    return ("quantized tensor", "dequantize()") if tensor.is_quantized else None


def _overlaps_itself(tensor: Tensor) -> bool:
    return any(step == 0 and size > 1 for size, step in zip(tensor.size(), tensor.stride(), strict=True))
