"""Gathers that torch's compiler makes cheap: those of flattened matrices, whose rows are the dynamic tokens.

A mixture of experts sorts its routing weights ``[tokens, choices]`` by expert: it flattens them and indexes the result.
Inductor computes the weights anew for each element that it gathers, and finds row and column from the flat index by two
divisions by the number of tokens, in 64 bits: two thirds of the kernel that adds up the experts' outputs, a fifth of a
step of Qwen3-30B-A3B at 1,024 tokens on an H200. The number of columns is a constant, and divisions by it are cheap.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, fx
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

aten = torch.ops.aten
_FLATTENING = (aten.view.default, aten.reshape.default, aten._unsafe_view.default)
_POSITIONS = (torch.int32, torch.int64)


class SplitFlatGathers(CustomGraphPass):
    """Makes ``matrix.reshape(-1)[index]`` into ``matrix[index // columns, index % columns]``, for negative indices too.

    A pass over a graph of ATen operations, as ``torch._inductor.config.post_grad_custom_pre_pass`` takes one.
    """

    def __call__(self, graph: fx.Graph) -> None:
        for node in graph.find_nodes(op="call_function", target=aten.index.Tensor):
            flat, indices = cast("tuple[fx.Node, list[fx.Node]]", node.args)
            columns = _columns_of(flat)
            if columns is None or indices[0].meta["val"].dtype not in _POSITIONS:
                continue
            with graph.inserting_before(node):
                row = graph.call_function(aten.div.Tensor_mode, (indices[0], columns), {"rounding_mode": "floor"})
                column = graph.call_function(aten.remainder.Scalar, (indices[0], columns))
            node.args = (flat.args[0], [row, column])

    def uuid(self) -> Any:
        return get_hash_for_files((__file__,))


def _columns_of(flat: fx.Node) -> int | None:
    """Return the constant number of columns of the matrix that `flat` is a flattening of; None if it is none."""
    if flat.target not in _FLATTENING or flat.meta["val"].dim() != 1:
        return None
    matrix: Tensor = cast("fx.Node", flat.args[0]).meta["val"]
    return matrix.shape[1] if matrix.dim() == 2 and isinstance(matrix.shape[1], int) else None
