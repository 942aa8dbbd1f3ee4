"""What breaks are given: bound once, and kept from changes that a replay would not make.

A replayed break gets the arguments of its capture. Tensors of the pool have new values by then; everything else is as
the capture left it, so what the forward exchanges in an argument after a break had it would reach that break in its
last state. That is an error which names the break (hazard S9).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bcg.breaks import BreakLabel
from bcg.errors import CaptureError
from bcg.structure import (
    CODE,
    PLAIN,
    SEQUENCES,
    attributes_of,
    dressed_as,
    has_attributes,
    map_tensors,
    same_contents,
    same_value,
    storage_key,
    unowned_alias,
    whole_tensors_in,
)


class Arguments:
    """The arguments of the breaks of one capture.

    Args:
        made: Whether the pool owns a tensor on behalf of the capture, so that nobody else needs to hold it.
        forbid: Has a segment refused, with these words, that reads a tensor.
    """

    def __init__(self, made: Callable[[Tensor], bool], forbid: Callable[[Tensor, str], None]) -> None:
        self._made = made
        self._forbid = forbid
        self._tensors: list[tuple[BreakLabel, Tensor, object]] = []
        self._objects: dict[int, _GivenObject] = {}

    def bound(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Refer to the pool's tensors without keeping them alive; one that is given twice stays one object."""
        aliases: dict[int, Tensor] = {}

        def bind(tensor: Tensor) -> Tensor:
            if id(tensor) not in aliases:
                aliases[id(tensor)] = dressed_as(tensor, unowned_alias(tensor)) if self._made(tensor) else tensor
            return aliases[id(tensor)]

        bound: tuple[tuple[Any, ...], dict[str, Any]] = map_tensors(bind, (tuple(args), dict(kwargs)))
        return bound

    @contextlib.contextmanager
    def given(
        self, label: BreakLabel, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Iterator[None]:
        """Run a break inside the block that is given these arguments; what it does to objects a replay does again."""
        values = [*args, *kwargs.values()]
        for held in self._objects.values():
            held.refuse_changes()
        _refuse_iterators(label, values)
        containers = [value for value in values if isinstance(value, (*SEQUENCES, dict))]
        contents = map_tensors(lambda tensor: tensor, containers)
        tensors = [(label, tensor, _layout(tensor)) for tensor in whole_tensors_in(values)]
        known = {storage_key(tensor) for tensor, _ in _held_tensors(_objects_in(values))}
        yield
        objects = list(_objects_in(values))
        for tensor, name in _held_tensors(objects):
            if storage_key(tensor) not in known:
                self._forbid(
                    tensor, f"{name!r}, which break {label.name} exchanges: a replay would read that of the capture"
                )
        if not same_contents(contents, containers):
            raise CaptureError(
                f"break {label.name} changed a list or dict that it was given; replay knows only what it returns",
                hint="return what it puts there",
                hazard="S9",
            )
        for one in tensors:
            _refuse_other_layout(*one)
        self._tensors += [one for one in tensors if not self._made(one[1])]
        for value, is_inside in objects:
            if not _is_method_of(function, value):
                self._objects[id(value)] = _GivenObject(label, value, is_inside)
        for held in self._objects.values():
            held.look()

    def refuse_changes(self) -> None:
        """Look at everything again when the forward has ended.

        Raises:
            CaptureError: Something was exchanged after a break had been given it.
        """
        for one in self._tensors:
            _refuse_other_layout(*one)
        for held in self._objects.values():
            held.refuse_changes()


class _GivenObject:
    """A plain object that a break was given, or one inside of it: of that the tensors alone are looked at."""

    def __init__(self, label: BreakLabel, value: Any, is_inside: bool) -> None:
        self._label = label
        self._value = value
        self._is_inside = is_inside
        self._attributes: dict[str, Any] = {}
        self._tensors: dict[str, list[Tensor]] = {}

    def look(self) -> None:
        """Keep what it holds now."""
        attributes = attributes_of(self._value)
        self._attributes = {} if self._is_inside else attributes
        self._tensors = {name: whole_tensors_in(item) for name, item in attributes.items()}

    def refuse_changes(self) -> None:
        """Refuse attributes, and tensors in them, that are others than at the last look; new ones are taken."""
        now = attributes_of(self._value)
        others = [
            name for name, item in self._attributes.items() if not same_contents(item, now.get(name, item), _is_same)
        ]
        others += [
            name
            for name, tensors in self._tensors.items()
            if name in now and not same_contents(tensors, whole_tensors_in(now[name]))
        ]
        if others:
            raise CaptureError(
                f"{others[0]!r} of the {type(self._value).__name__} that break {self._label.name} was given is another "
                "one afterwards; at replay the break would be given the last one",
                hint="give the break the value itself",
                hazard="S9",
            )


def _objects_in(value: Any, seen: set[int] | None = None, *, is_inside: bool = False) -> Iterator[tuple[Any, bool]]:
    """Yield the plain objects of nested tuples, lists and dicts, and those inside of them, with whether they are.

    What modules hold is state, and looked at as such.
    """
    seen = set() if seen is None else seen
    if isinstance(value, (*SEQUENCES, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _objects_in(item, seen, is_inside=is_inside)
    elif id(value) not in seen and has_attributes(value) and not isinstance(value, (Tensor, nn.Module, *CODE)):
        seen.add(id(value))
        yield value, is_inside
        yield from _objects_in(list(attributes_of(value).values()), seen, is_inside=True)


def _held_tensors(objects: Iterable[tuple[Any, bool]]) -> Iterator[tuple[Tensor, str]]:
    """Yield the tensors that objects, from `_objects_in`, hold, each with the name of its attribute."""
    for holder, _ in objects:
        for name, held in attributes_of(holder).items():
            yield from ((tensor, name) for tensor in whole_tensors_in(held))


def _refuse_iterators(label: BreakLabel, values: Any) -> None:
    for value in values.values() if isinstance(values, dict) else values:
        if isinstance(value, (*SEQUENCES, dict)):
            _refuse_iterators(label, value)
        elif isinstance(value, Iterator):
            raise CaptureError(
                f"break {label.name} was given a {type(value).__name__}, which its first run uses up",
                hint="give it a list or a tuple",
                hazard="S9",
            )


def _is_method_of(function: Callable[..., Any], value: Any) -> bool:
    """Tell whether an object is given as the ``self`` of a method: what it counts for itself is none of replay's."""
    return hasattr(type(value), getattr(function, "__name__", ""))


def _is_same(one: Any, other: Any) -> bool:
    return one is other or (isinstance(one, PLAIN) and same_value(one, other))


def _layout(tensor: Tensor) -> object:
    if tensor.layout != torch.strided or tensor.is_nested:
        return None
    return tensor.size(), tensor.stride(), tensor.storage_offset()


def _refuse_other_layout(label: BreakLabel, tensor: Tensor, before: object) -> None:
    if _layout(tensor) != before:
        raise CaptureError(
            f"a tensor that break {label.name} was given was reshaped in place, by it or after it; "
            "at replay the break would be given it in its last shape",
            hint="reshape a view of it: x.view_as(x)",
            hazard="S9",
        )
