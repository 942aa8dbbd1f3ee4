"""What a captured forward reads from outside, without watching every operation of every bucket.

Closure (rule 1 of the design) needs every external tensor of a graph to be held. The tape finds them exactly, at
the price of a Python call for each operation: two to three times the bare capture of an 8-billion-parameter model
(measured on an H200). So a runner lets the tape follow its first capture. If everything that this capture read
from outside is part of the module tree or a static input, the later captures hold the module tree as it is when
they begin, and run without the tape; otherwise the tape follows all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor, nn

from bcg.graph import BreakableCUDAGraph
from bcg.structure import local_part, storage_key, tensors_in


def module_tensors(module: nn.Module) -> list[Tensor]:
    """Return the tensors that the module tree holds: parameters, buffers, and attributes such as caches.

    Of a sharded parameter it is this rank's part.
    """
    return [local_part(tensor) for tensor in _held_by(module)]


_OWN_FIELDS = frozenset(vars(nn.Module()))
"""What every module keeps for itself: hooks, submodules, and the parameters and buffers looked at by name."""


def _held_by(root: nn.Module) -> Iterator[Tensor]:
    for part in _parts_of(root):
        for tensor in (*part._parameters.values(), *part._buffers.values()):
            if tensor is not None:
                yield tensor
        for name, value in vars(part).items():
            # Asked of the type: of a configuration `isinstance` looks up attributes, in Python and for every module.
            if name not in _OWN_FIELDS and issubclass(type(value), (Tensor, dict, list, tuple)):
                yield from tensors_in(value)


def _parts_of(root: nn.Module) -> Iterable[nn.Module]:
    """Return every module once, in no special order: `nn.Module.modules` takes three times as long."""
    found: dict[nn.Module, None] = {root: None}
    pending = [root]
    while pending:
        for child in pending.pop()._modules.values():
            if child is not None and child not in found:
                found[child] = None
                pending.append(child)
    return found


def explains(known: Iterable[Tensor], graph: BreakableCUDAGraph) -> bool:
    """Tell whether `known` holds everything that a taped capture read from outside.

    A graph that worked on side streams is not explained either: only the tape sees which ones are to be joined.
    """
    keys = {storage_key(tensor) for tensor in known}
    read = {key for segment in graph.segments for key in segment.tape.externals}
    return graph.num_side_streams == 0 and read <= keys
