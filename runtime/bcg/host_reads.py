"""Which operations need the host: those that read a value of the device, or whose result's shape depends on one."""

from __future__ import annotations

import functools
import re
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bcg.collectives import is_collective, only_wraps

_READS = {
    Tensor.tolist: "tolist() reads it",
    Tensor.numpy: "numpy() reads it",
    Tensor.__array__: "an array conversion reads it",
    Tensor.item: "item() reads it",
    Tensor.__bool__: "bool() reads it",
    Tensor.__int__: "int() reads it",
    Tensor.__float__: "float() reads it",
    Tensor.__complex__: "complex() reads it",
    Tensor.__index__: "an index reads it",
    Tensor.__contains__: "`in` reads it",
    Tensor.__repr__: "printing reads it",
    Tensor.__format__: "formatting reads it",
    Tensor.cpu: "cpu() copies it to the host",
    Tensor.apply_: "apply_() calls a Python function on its values",
    Tensor.map_: "map_() calls a Python function on its values",
    Tensor.map2_: "map2_() calls a Python function on its values",
}
"""Methods of tensors that never reach the dispatcher for a CPU tensor, and what they do."""

_FROM_HOST_DATA = (torch.tensor, torch.as_tensor, torch.asarray)
_COPIES_DATA = "it copies Python data from the host to the device"


def before_the_dispatcher(
    function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], device_type: str
) -> tuple[str, str] | None:
    """Return name and reason of a call that needs the host, and that a dispatch mode would not see; else None.

    Args:
        function: As a `TorchFunctionMode` gets it.
        args: Its positional arguments.
        kwargs: Its named arguments.
        device_type: Of the tensors that must not be read.
    """
    if function in _FROM_HOST_DATA:
        data = args[0] if args else kwargs.get("data", kwargs.get("obj"))
        if isinstance(data, (list, tuple)) and _holds_values(data, device_type):
            return f"torch.{function.__name__}", "it reads values of tensors"
        device = kwargs.get("device")
        goes_there = device is not None and torch.device(device).type == device_type
        is_there = isinstance(data, Tensor) and data.device.type == device_type
        return (f"torch.{function.__name__}", _COPIES_DATA) if goes_there and not is_there else None
    if not (args and isinstance(args[0], Tensor) and args[0].device.type == device_type):
        return None
    reason = _READS.get(function)
    if function in (torch.repeat_interleave, Tensor.repeat_interleave):
        repeats = args[1] if len(args) > 1 else kwargs.get("repeats")
        if isinstance(repeats, Tensor) and kwargs.get("output_size") is None:
            reason = "its result's shape depends on the repeats"
    if function in (torch.tensor_split, Tensor.tensor_split):
        parts = args[1] if len(args) > 1 else kwargs.get("tensor_indices_or_sections", kwargs.get("indices"))
        reason = "the host needs the indices" if _holds_values(parts, device_type) else None
    if reason is None and function is Tensor.to and any(_is_host(word) for word in (*args[1:], *kwargs.values())):
        reason = "to('cpu') copies it to the host"
    if reason is None and function in (Tensor.new_tensor, Tensor.new):
        data = args[1] if len(args) > 1 else kwargs.get("data")
        if function is Tensor.new_tensor or (isinstance(data, (list, tuple)) and not isinstance(data, torch.Size)):
            reason = "it reads values of tensors" if _holds_values(data, device_type) else _COPIES_DATA
    if reason is None and function is Tensor.__dlpack__ and device_type == "cpu":
        reason = "another library reads the memory that it shares"
    if reason is None and function in (Tensor.__getitem__, Tensor.__setitem__) and _indexes_by_data(args[1]):
        reason = _COPIES_DATA
    return None if reason is None else (f"Tensor.{function.__name__}", reason)


def _holds_values(data: Any, device_type: str) -> bool:
    if isinstance(data, (list, tuple)):
        return any(_holds_values(item, device_type) for item in data)
    return isinstance(data, Tensor) and data.device.type == device_type


def _is_host(word: Any) -> bool:
    return isinstance(word, str) and word == "cpu"


def _indexes_by_data(index: Any) -> bool:
    """An index of Python numbers in a list becomes a tensor on the host first."""
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(part, list) and any(isinstance(item, int) for item in part) for part in parts)


class Traits(NamedTuple):
    """What an operation is known to do, whatever it is given.

    Attributes:
        name: Such as ``aten.mm.default``.
        may_be_python: Whether it may be a Python function, in whose body the host could read.
        reads_host: Why it needs the host; `None` if it doesn't always.
        may_read_host: Whether that depends on its arguments.
        writes: Whether it writes to the memory of an argument.
        pins: Whether its result is pinned host memory, whatever else it may be given.
        is_sparse: Whether its result is a sparse tensor.
        is_collective: Whether processes take part in it together.
        only_wraps: Whether it only wraps a tensor for a collective.
    """

    name: str
    may_be_python: bool
    reads_host: str | None
    may_read_host: bool
    writes: bool
    pins: bool
    is_sparse: bool
    is_collective: bool
    only_wraps: bool


_WITHOUT_PYTHON = frozenset({"aten", "prim", "c10d", "_c10d_functional"})
"""Namespaces of operations that are no Python functions, and so hide no host read from the modes."""
PINS = "it allocates pinned host memory"
_SYNCHRONIZING = {
    "aten::item": "the host needs the value",
    "aten::_local_scalar_dense": "the host needs the value",
    "aten::is_nonzero": "the host needs the value",
    "aten::equal": "the host needs the answer",
    "aten::allclose": "the host needs the answer",
    "aten::_nested_tensor_from_mask": "the host needs the lengths in the mask",
    "aten::_nested_tensor_from_mask_left_aligned": "the host needs the answer",
    "aten::_nested_tensor_from_tensor_list": "it makes a nested tensor, which a segment can't hold",
    "aten::_nested_view_from_buffer": "it makes a nested tensor, which a segment can't hold",
    "aten::_pack_padded_sequence": "the host needs the lengths",
    "aten::_pad_packed_sequence": "the host needs the lengths",
    "aten::_choose_qparams_per_tensor": "the host needs its value",
    "aten::quantize_per_tensor_dynamic": "the host needs the largest and the smallest value",
}
_UNTAGGED = {
    "aten.where.default": "its result's shape depends on the values",
    "aten.nonzero_numpy.default": "its result's shape depends on the values",
    "aten.combinations.default": "its result's shape depends on the values",
    "aten.narrow.Tensor": "the host needs its start",
}
"""Composite operations that arrive whole in inference mode, and without the tags of what they are made of."""
UNSAFE_TAGS = tuple(filter(None, [getattr(torch.Tag, "cudagraph_unsafe", None)]))
"""Tags of operations that no graph can hold, as far as this torch has one."""
_INDEXING = {
    "aten::index",
    "aten::index_put",
    "aten::index_put_",
    "aten::_index_put_impl_",
    "aten::_unsafe_index",
}
_COPYING = {"aten::_to_copy", "aten::to", "aten::copy_"}
_ONE_HOT = "aten::one_hot"
_MAKES_SPARSE = re.compile(
    r"aten::_?(to_sparse(_(csr|csc|bsr|bsc))?|sparse_(coo|csr|csc|bsr|bsc|compressed)_tensor\w*)"
)


@functools.cache
def traits_of(function: Any) -> Traits:
    """Return the traits of an ATen or other dispatched operation."""
    name = function._schema.name
    reason = _SYNCHRONIZING.get(name) or _UNTAGGED.get(str(function))
    if reason is None and any(tag in function.tags for tag in UNSAFE_TAGS):
        reason = "it is tagged as unsafe in CUDA graphs"
    if reason is None and torch.Tag.data_dependent_output in function.tags:
        reason = "the host needs its value"
    if reason is None and torch.Tag.dynamic_output_shape in function.tags and name not in (*_INDEXING, _ONE_HOT):
        reason = "its result's shape depends on the values"
    return Traits(
        name=str(function),
        may_be_python=function.namespace not in _WITHOUT_PYTHON,
        reads_host=reason,
        may_read_host=name in _INDEXING or name in _COPYING or name == _ONE_HOT,
        writes=function._schema.is_mutable and torch.Tag.inplace_view not in function.tags,
        pins=name in ("aten::pin_memory", "aten::_pin_memory"),
        is_sparse=_MAKES_SPARSE.fullmatch(name) is not None,
        is_collective=is_collective(str(function)),
        only_wraps=only_wraps(str(function)),
    )


def indexes_by_mask(args: tuple[Any, ...]) -> bool:
    """Indexing by a mask needs the number of its true entries; filling by a mask with one value does not."""
    if len(args) < 2 or not isinstance(args[1], (tuple, list)):
        return False
    masked = any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    fills_one_value = len(args) > 2 and isinstance(args[2], Tensor) and args[2].numel() == 1
    return masked and not fills_one_value


def counts_classes(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """One-hot vectors without a given size are as long as the largest value says; with one, a GPU reads nothing."""
    if function._schema.name != _ONE_HOT:
        return False
    given = args[1] if len(args) > 1 else kwargs.get("num_classes", -1)
    return bool(given == -1)


def copies_to_host(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Tell whether a copy goes from a device to the host."""
    if function._schema.name == "aten::copy_":
        return bool(args[0].device.type == "cpu" and args[1].device.type != "cpu")
    devices = [value for value in (*args[1:], *kwargs.values()) if isinstance(value, torch.device)]
    return any(device.type == "cpu" for device in devices)


def copies_from_host(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], device_type: str) -> bool:
    """Tell whether a copy goes from unpinned host memory to the device."""
    if function._schema.name not in _COPYING:
        return False
    source = args[1] if function._schema.name == "aten::copy_" else args[0]
    if not isinstance(source, Tensor) or source.device.type != "cpu" or source.is_pinned():
        return False
    if function._schema.name == "aten::copy_":
        return bool(args[0].device.type == device_type)
    devices = [value for value in (*args[1:], *kwargs.values()) if isinstance(value, torch.device)]
    return any(device.type == device_type for device in devices)
