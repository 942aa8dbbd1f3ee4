"""Random programs: what they are made of, and how one runs.

A program is plain data. `run` interprets it over a growing list of tensors; each step picks its operands by
number, modulo the list's length, and adapts to their shapes, so that every program runs at every size. Nothing in
here asks whether it is being captured, and only shapes decide Python branches: eager and replay must agree in
every bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bcg import break_graph, eager_on_graph
from bcg.breaks import Allocate, Bindable, BreakLabel, InPlace, call_break
from bcg.structure import storage_key, tensors_in, unowned_alias

WIDTH = 4
MAX_ELEMENTS = 512
"""A step whose result would be larger keeps a part of it."""


@dataclass(frozen=True)
class Op:
    """One operation: its name in `OPERATIONS`, two operands and a number."""

    name: str
    a: int
    b: int
    number: float


@dataclass(frozen=True)
class Break:
    """A function that runs as a break.

    Attributes:
        body: What it computes, from its arguments.
        takes: Operands that it is given.
        given: How: a name in `WAYS_TO_GIVE`.
        returns: What it hands back: a name in `WAYS_TO_RETURN`.
    """

    body: tuple[Step, ...]
    takes: tuple[int, ...]
    given: str
    returns: str


@dataclass(frozen=True)
class Explicit:
    """A bare `break_graph()`."""


@dataclass(frozen=True)
class Forget:
    """The body lets go of one of its tensors: its block may be used again at once."""

    a: int


Step = Op | Break | Explicit | Forget


@dataclass(frozen=True)
class Statics:
    """What stays at its address for the graph's life: inputs, weights, and state that programs may change."""

    x: Tensor
    ids: Tensor
    weight: Tensor
    state: Tensor


@dataclass
class Machine:
    """The tensors of one run."""

    statics: Statics
    values: list[Tensor]

    def pick(self, index: int) -> Tensor:
        """The last tensor is number 0."""
        return self.values[-1 - index % len(self.values)]

    def add(self, tensor: Tensor) -> None:
        if tensor.numel() > MAX_ELEMENTS:
            tensor = tensor.reshape(-1)[:MAX_ELEMENTS]
        self.values.append(tensor)


def run(program: tuple[Step, ...], statics: Statics) -> list[Tensor]:
    """Run a program; return every tensor that it has not let go of."""
    machine = Machine(statics, [statics.ids, statics.x])
    _run_steps(program, machine)
    return machine.values


def _run_steps(steps: tuple[Step, ...], machine: Machine) -> None:
    for step in steps:
        match step:
            case Op():
                for tensor in OPERATIONS[step.name](machine, machine.pick(step.a), machine.pick(step.b), step.number):
                    machine.add(tensor)
            case Break():
                _run_break(step, machine)
            case Explicit():
                break_graph()
            case Forget():
                if len(machine.values) > 2:
                    del machine.values[2 + step.a % (len(machine.values) - 2)]


def _run_break(step: Break, machine: Machine) -> None:
    statics = machine.statics
    returns = WAYS_TO_RETURN[step.returns]

    def function(given: list[Tensor]) -> Any:
        inner = Machine(statics, list(given))
        _run_steps(step.body, inner)
        return returns([own(tensor) for tensor in given], [own(tensor) for tensor in inner.values])

    def own(tensor: Tensor) -> Tensor:
        """A copy of a static tensor that the break was not given: what it returns of those is copied anyway."""
        return tensor.clone() if storage_key(tensor) in withheld else tensor

    given = [machine.pick(index) for index in step.takes]
    withheld = {storage_key(tensor) for tensor in (statics.x, statics.ids, statics.weight, statics.state)}
    if step.given not in ("closure", "object"):
        withheld -= {storage_key(tensor) for tensor in given}
    for tensor in tensors_in(_plain(WAYS_TO_GIVE[step.given](function, given))):
        machine.add(tensor)


# How a break gets its tensors.


def _as_positions(function: Callable[[list[Tensor]], Any], given: list[Tensor]) -> Any:
    return eager_on_graph(lambda *tensors: function(list(tensors)))(*given)


def _as_keywords(function: Callable[[list[Tensor]], Any], given: list[Tensor]) -> Any:
    named = {f"t{index}": tensor for index, tensor in enumerate(given)}
    return eager_on_graph(lambda **tensors: function(list(tensors.values())))(**named)


def _as_list(function: Callable[[list[Tensor]], Any], given: list[Tensor]) -> Any:
    return eager_on_graph(function)(given)


def _as_dict(function: Callable[[list[Tensor]], Any], given: list[Tensor]) -> Any:
    return eager_on_graph(lambda nested: function(nested["tensors"]))({"tensors": given, "number": 1})


def _as_object(function: Callable[[list[Tensor]], Any], given: list[Tensor]) -> Any:
    return eager_on_graph(lambda record: function([record.first, *record.rest]))(Record(given[0], tuple(given[1:])))


def _closed_over(function: Callable[[list[Tensor]], Any], given: list[Tensor]) -> Any:
    return eager_on_graph(lambda: function(given))()


def _as_method(function: Callable[[list[Tensor]], Any], given: list[Tensor]) -> Any:
    class Owner:
        @eager_on_graph
        def method(self, *tensors: Tensor) -> Any:
            return function(list(tensors))

    return Owner().method(*given)


def _in_place(function: Callable[[list[Tensor]], Any], given: list[Tensor]) -> Any:
    """A break that is bound to its arguments and writes one tensor to where the next segment reads it."""

    def compute(*tensors: Tensor) -> Tensor:
        made = tensors_in(_plain(function(list(tensors))))
        return (made[0] if made else tensors[0]).clone(memory_format=torch.contiguous_format)

    def bind(allocate: Allocate, *tensors: Tensor) -> InPlace:
        first = [compute(*tensors)]  # what it changes it must change once, and only now its shape is known
        result = allocate(first[0].shape, first[0].stride(), first[0].dtype)
        output = unowned_alias(result)

        def write() -> None:
            output.copy_(first.pop() if first else compute(*tensors))

        return InPlace(result, write)

    return call_break(Bindable(compute, bind), tuple(given), {}, BreakLabel("in place"))


WAYS_TO_GIVE: dict[str, Callable[[Callable[[list[Tensor]], Any], list[Tensor]], Any]] = {
    "positions": _as_positions,
    "keywords": _as_keywords,
    "list": _as_list,
    "dict": _as_dict,
    "object": _as_object,
    "closure": _closed_over,
    "method": _as_method,
    "in place": _in_place,
}


# What a break hands back, from its arguments and what it computed.


@dataclass
class Record:
    first: Tensor
    rest: tuple[Tensor, ...] = ()
    label: str = "record"


class Named(NamedTuple):
    left: Tensor
    right: Tensor


def _plain(result: Any) -> Any:
    if isinstance(result, Record):
        return (result.first, result.rest)
    return result


WAYS_TO_RETURN: dict[str, Callable[[list[Tensor], list[Tensor]], Any]] = {
    "tensor": lambda given, made: made[-1] + 0,
    "last": lambda given, made: made[-1],
    "nothing": lambda given, made: None,
    "argument": lambda given, made: given[0],
    "view of argument": lambda given, made: given[0].reshape(-1)[:3],
    "transposed argument": lambda given, made: given[0].t() if given[0].dim() <= 2 else given[0].transpose(0, 1),
    "two views": lambda given, made: _two_views(made[-1] + 0),
    "whole and part": lambda given, made: _whole_and_part(made[-1] + 0),
    "same twice": lambda given, made: [made[-1] + 0] * 2,
    "tuple": lambda given, made: (made[-1] + 0, made[0] * 2),
    "argument and result": lambda given, made: [given[-1], made[-1] + 1],
    "dict": lambda given, made: {"a": made[-1] + 0, "b": [made[0] * 2, None], 3: 7},
    "record": lambda given, made: Record(made[-1] + 0, (made[0] * 2, given[0])),
    "named": lambda given, made: Named(made[-1] + 0, made[0]),
    "strided": lambda given, made: (made[-1] + 0).transpose(0, -1) if made[-1].dim() else made[-1] + 0,
    "expanded": lambda given, made: _spread(made[-1] + 0, made[0], 0),
    "empty": lambda given, made: (made[-1] + 0).reshape(-1)[:0],
    "part": lambda given, made: (made[-1] + 0).reshape(-1)[1:],
    "scalar": lambda given, made: _aligned(made[-1]).double().sum(),
    "all": lambda given, made: tuple(made),
}


def _whole_and_part(whole: Tensor) -> dict[str, Tensor]:
    return {"whole": whole, "part": whole.reshape(-1)[1:]}


def _two_views(whole: Tensor) -> tuple[Tensor, Tensor]:
    flat = whole.reshape(-1)
    return flat[: len(flat) // 2 + 1], flat[len(flat) // 2 :]


# Operations of a segment, and of a break's body.


def _reals(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_floating_point() else tensor.float()


def _aligned(tensor: Tensor) -> Tensor:
    """Fresh memory: on a GPU the order of a sum depends on where the first element lies."""
    return _reals(tensor).clone(memory_format=torch.contiguous_format)


def _eighths(tensor: Tensor) -> Tensor:
    """Numbers whose products sum up exactly in any order: a matrix library may take another kernel in a graph."""
    return (torch.nan_to_num(tensor) * 8).round().clamp(-64, 64) / 8


def _rows(tensor: Tensor) -> Tensor:
    """A two-dimensional float32 tensor of at least one row and `WIDTH` columns, from any tensor."""
    flat = tensor.float().clone().reshape(-1)
    num_rows = max(len(flat) // WIDTH, 1)
    if len(flat) < WIDTH:
        flat = F.pad(flat, (0, WIDTH - len(flat)))
    return flat[: num_rows * WIDTH].reshape(num_rows, WIDTH)


def _same_shape(a: Tensor, b: Tensor) -> Tensor:
    """As many elements of `b` as `a` has, in the shape of `a`."""
    flat = b.reshape(-1)
    if len(flat) == 0:
        return torch.zeros_like(a, dtype=b.dtype)
    repeats = -(-a.numel() // len(flat))
    return flat.repeat(max(repeats, 1))[: a.numel()].reshape(a.shape)


def _writable(tensor: Tensor) -> bool:
    return all(step != 0 or size <= 1 for size, step in zip(tensor.size(), tensor.stride(), strict=True))


def _in_place(write: Callable[[Tensor, Tensor, float], object]) -> Any:
    """Wrap a write: a tensor that overlaps itself is left alone."""

    def operation(machine: Machine, a: Tensor, b: Tensor, number: float) -> list[Tensor]:
        if _writable(a):
            write(a, b, number)
        return []

    return operation


def _new(compute: Callable[[Tensor, Tensor, float], Tensor]) -> Any:
    return lambda machine, a, b, number: [compute(a, b, number)]


def _assign_rows(a: Tensor, b: Tensor, number: float) -> None:
    if a.dim():
        a[::2] = _same_shape(a[::2], b).to(a.dtype)


def _add_out(a: Tensor, b: Tensor, number: float) -> None:
    if a.is_floating_point():
        torch.add(_same_shape(a, b).to(a.dtype), 1, out=a)


def _index_add(a: Tensor, b: Tensor, number: float) -> None:
    if a.dim() and a.numel() and a.is_floating_point():
        a.index_add_(0, torch.zeros(1, dtype=torch.int64, device=a.device), _same_shape(a[:1], b).to(a.dtype))


def _masked_fill(a: Tensor, b: Tensor, number: float) -> None:
    if a.dim():
        a[_same_shape(a, b) > 0] = 1


def _write_state(machine: Machine, a: Tensor, b: Tensor, number: float) -> list[Tensor]:
    machine.statics.state.copy_(_same_shape(machine.statics.state, a))
    return []


def _add_to_state(machine: Machine, a: Tensor, b: Tensor, number: float) -> list[Tensor]:
    machine.statics.state[1:3].add_(number)
    return []


def _split(machine: Machine, a: Tensor, b: Tensor, number: float) -> list[Tensor]:
    return list(a.reshape(-1).tensor_split(2))


def _narrow(a: Tensor, b: Tensor, number: float) -> Tensor:
    return a.narrow(0, 0, (len(a) + 1) // 2) if a.dim() else a


def _take(a: Tensor, b: Tensor, number: float) -> Tensor:
    if not a.dim() or not len(a):
        return a
    return a.index_select(0, torch.nan_to_num(b.reshape(-1).double()).clamp(0, 100).long() % len(a))


def _softmax(a: Tensor, b: Tensor, number: float) -> Tensor:
    return _aligned(a).softmax(-1) if a.dim() else a


def _spread(a: Tensor, b: Tensor, number: float) -> Tensor:
    return a.reshape(-1)[:1].expand(5) if a.numel() else a


def _bits(a: Tensor, b: Tensor, number: float) -> Tensor:
    return a.view(torch.int32) if a.dtype == torch.float32 else a.view(a.shape)


def _cast(dtype: torch.dtype) -> Any:
    return _new(lambda a, b, number: torch.nan_to_num(_reals(a)).clamp(-100, 100).to(dtype))


OPERATIONS: dict[str, Callable[[Machine, Tensor, Tensor, float], list[Tensor]]] = {
    "add number": _new(lambda a, b, number: a + number),
    "times number": _new(lambda a, b, number: a * number),
    "sin": _new(lambda a, b, number: a.sin()),
    "tanh": _new(lambda a, b, number: a.tanh()),
    "relu": _new(lambda a, b, number: a.relu() if a.dtype != torch.bool else a),
    "add": _new(lambda a, b, number: _reals(a) + _same_shape(a, b)),
    "times": _new(lambda a, b, number: _reals(a) * _same_shape(a, b)),
    "where": _new(lambda a, b, number: torch.where(a > 0, _reals(a), _reals(_same_shape(a, b)))),
    "linear": lambda machine, a, b, number: [_eighths(_rows(a)) @ machine.statics.weight],
    "embed": lambda machine, a, b, number: [F.embedding(machine.statics.ids.abs() % WIDTH, machine.statics.weight)],
    "outer": _new(lambda a, b, number: _eighths(_rows(a)) @ _eighths(_rows(b)).t()),
    "sum": _new(lambda a, b, number: _aligned(a).sum(-1) if a.dim() else a),
    "mean": _new(lambda a, b, number: _rows(a).mean(0)),
    "softmax": _new(_softmax),
    "norm": _new(lambda a, b, number: F.layer_norm(_rows(a), (WIDTH,))),
    "cumsum": _new(lambda a, b, number: _aligned(a).reshape(-1).cumsum(0)),
    "sort": lambda machine, a, b, number: list(_reals(a).reshape(-1).sort(stable=True)),
    "argmax": _new(lambda a, b, number: _rows(a).argmax(-1)),
    "transpose": _new(lambda a, b, number: a.transpose(0, -1) if a.dim() else a),
    "flatten": _new(lambda a, b, number: a.reshape(-1)),
    "narrow": _new(_narrow),
    "stride": _new(lambda a, b, number: a.reshape(-1)[::2]),
    "nothing of it": _new(lambda a, b, number: a.reshape(-1)[:0]),
    "unsqueeze": _new(lambda a, b, number: a.unsqueeze(0) if a.dim() < 4 else a),
    "expand": _new(_spread),
    "bits": _new(_bits),
    "split": _split,
    "cat": _new(lambda a, b, number: torch.cat([a.reshape(-1), b.reshape(-1), a.reshape(-1)[:1]])),
    "stack": _new(lambda a, b, number: torch.stack([a, a])),
    "take": _new(_take),
    "zeros": _new(lambda a, b, number: torch.zeros_like(a)),
    "clone": _new(lambda a, b, number: a.clone()),
    "same": _new(lambda a, b, number: a),
    "to float64": _cast(torch.float64),
    "to float32": _cast(torch.float32),
    "to bfloat16": _cast(torch.bfloat16),
    "to int64": _cast(torch.int64),
    "to bool": _new(lambda a, b, number: a > number),
    "add_": _in_place(lambda a, b, number: a.add_(1) if a.dtype != torch.bool else a.logical_not_()),
    "times_": _in_place(lambda a, b, number: a.mul_(2) if a.dtype != torch.bool else None),
    "fill_": _in_place(lambda a, b, number: a.fill_(number)),
    "copy_": _in_place(lambda a, b, number: a.copy_(_same_shape(a, b))),
    "rows_": _in_place(_assign_rows),
    "out_": _in_place(_add_out),
    "index_add_": _in_place(_index_add),
    "masked_": _in_place(_masked_fill),
    "relu_": _in_place(lambda a, b, number: a.relu_() if a.is_floating_point() else None),
    "read state": lambda machine, a, b, number: [machine.statics.state],
    "view state": lambda machine, a, b, number: [machine.statics.state[1:]],
    "write state": _write_state,
    "add to state": _add_to_state,
}
