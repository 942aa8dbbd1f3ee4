"""Feeds: how the results of a replayed break get into its boundary on a GPU.

The copy is one of the first nodes of the segment after the break, launched with the rest of it: an operation of its
own between the two would cost the host three times as much as a launch, and the GPU two gaps instead of one. The same
node brings the first result there, when the segment is launched at the end of its capture. A result may lie elsewhere
than the last one; then the node's source is exchanged in the instantiated graph. In a steady state the allocator hands
out the same block each time, and there is nothing to exchange.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from cuda.bindings import runtime
from torch import Tensor

from bcg.device.calls import check, graph_nodes, node_kind

_KIND = runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice


class Feed:
    """Copies the results of one break into one boundary.

    Where no segment follows the break, but another break or the end, there is no node, and copies are launched alone.

    Args:
        boundary: Dense; its memory is the graph pool's.
        result: The break's result at capture: held, as later ones, until the segment that copies it was launched.
    """

    def __init__(self, boundary: Tensor, result: Tensor) -> None:
        self._boundary = boundary
        self._stride = boundary.stride()
        self._device = boundary.device
        self._address = boundary.data_ptr()
        self._num_bytes = boundary.nbytes
        self._result: Tensor | None = None
        self._source = 0
        self._exec: Any = None
        self._node: Any = None
        self._take(self._laid_out(result))

    def record(self, stream: int) -> None:
        """Record the copy into the segment that is being captured on `stream`."""
        check(
            runtime.cudaMemcpyAsync(self._address, self._source, self._num_bytes, _KIND, runtime.cudaStream_t(stream))
        )

    def is_copied_by(self, node: Any) -> bool:
        """Tell whether `node` is the copy that `record` recorded."""
        if node_kind(node) != "memcpy":
            return False
        parameters = check(runtime.cudaGraphMemcpyNodeGetParams(node))
        return (int(parameters.dstPtr.ptr), int(parameters.srcPtr.ptr)) == (self._address, self._source)

    def fill(self) -> None:
        """Copy the result now: there is no segment to do it."""
        assert self._result is not None, "the first result is held until it was copied"
        self._boundary.copy_(self._result)
        self.let_go()

    def bind(self, graph_exec: Any, node: Any) -> None:
        """From now on the instantiated graph copies."""
        self._exec, self._node = graph_exec, node

    def __call__(self, result: Tensor) -> None:
        """Have `result`, of the boundary's shape and dtype, copied by the next launch of the segment, or now."""
        if result.stride() != self._stride or result.device != self._device or result.is_neg():
            result = self._laid_out(result)
        address = result.data_ptr()
        if self._node is None:
            self._boundary.copy_(result)
        elif address != self._source:
            self._take(result if address != self._address else result.clone())
            (error,) = runtime.cudaGraphExecMemcpyNodeSetParams1D(
                self._exec, self._node, self._address, self._source, self._num_bytes, _KIND
            )
            if error:
                check((error,))
        else:
            self._result = result

    def let_go(self) -> None:
        """Hold the result no longer: what copies it was launched, and whatever takes its memory comes after."""
        self._result = None

    def _take(self, result: Tensor) -> None:
        self._result, self._source = result, result.data_ptr()

    def _laid_out(self, result: Tensor) -> Tensor:
        """Return `result` with the strides of the boundary."""
        if result.stride() == self._stride and result.device == self._device and not result.is_neg():
            return result
        return torch.empty_strided(result.shape, self._stride, dtype=self._boundary.dtype, device=self._device).copy_(
            result
        )


def can_feed(boundary: Tensor) -> bool:
    """Tell whether a single copy of bytes fills a boundary."""
    is_dense = boundary.untyped_storage().nbytes() == boundary.nbytes and not boundary.is_complex()
    return is_dense and boundary.nbytes > 0


def bind_all(feeds: Sequence[Feed], first_nodes: Sequence[Any], graph: int, graph_exec: Any) -> None:
    """Bind feeds to the nodes that they recorded: the first ones, as far as the driver lists them in order."""
    unbound = list(feeds)
    for node in _first_then_all(first_nodes, graph):
        if not unbound:
            return
        feed = next((feed for feed in unbound if feed.is_copied_by(node)), None)
        if feed is not None:
            feed.bind(graph_exec, node)
            unbound.remove(feed)
    if unbound:
        raise RuntimeError(f"{len(unbound)} copies into boundaries are missing in the captured graph")


def _first_then_all(first_nodes: Sequence[Any], graph: int) -> Iterator[Any]:
    yield from first_nodes
    yield from graph_nodes(graph)
