"""Whether what a graph reads from outside is still there, where it was."""

from __future__ import annotations

from torch import Tensor

from bcg.graph import BreakableCUDAGraph
from bcg.structure import is_freed


class Externals:
    """The external tensors of a graph and where they were when this was made.

    A replay that reads freed memory may end the process, so it is looked for before. Where no tape followed the
    capture, its externals are the module tree's, and nothing is known about others.

    Args:
        graph: After its capture.
    """

    def __init__(self, graph: BreakableCUDAGraph) -> None:
        tensors = {
            key: tensor
            for segment in graph.segments
            for key, tensor in segment.tape.externals.items()
            if tensor.numel()
        }
        self._tensors = tuple(tensors.values())
        self._addresses = tuple(tensor.data_ptr() for tensor in self._tensors)

    def find_freed(self) -> Tensor | None:
        """Return a tensor that is freed or has moved, or None."""
        for tensor, address in zip(self._tensors, self._addresses, strict=True):
            if is_freed(tensor) or tensor.data_ptr() != address:
                return tensor
        return None
