"""One causal attention as a graph of cuDNN with its plan; run as a program, it builds plans for another process.

Nothing here imports torch or the rest of bcg, and the GPU is only described to cuDNN, so such a process has its first
plan in half a second and takes no memory of the GPU. It must see one: without, cuDNN takes ten times as long
(https://docs.nvidia.com/deeplearning/cudnn/frontend/latest/utilities/deviceless-ahead-of-time-compilation.html).
"""

from __future__ import annotations

import base64
import json
import os
import sys
from typing import Any, NamedTuple, TypeAlias

Layout: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]
"""Shape and strides."""

QUERY, KEY, VALUE, OUTPUT = range(1, 5)
"""What the graph calls its tensors."""


class Attention(NamedTuple):
    """What a plan is built for.

    Attributes:
        kind: Type of all tensors, in cuDNN's words: ``BFLOAT16`` or ``HALF``.
        query: ``[1, heads, rows, head_dim]``.
        key: ``[1, key_value_heads, rows, head_dim]``.
        value: ``[1, key_value_heads, rows, value_dim]``.
        scale: Of the scores.
    """

    kind: str
    query: Layout
    key: Layout
    value: Layout
    scale: float

    @property
    def output_layout(self) -> Layout:
        """``[1, rows, heads, value_dim]`` and dense, as the next segment reads it."""
        (_, heads, rows, _), value_dim = self.query[0], self.value[0][3]
        return (1, rows, heads, value_dim), (rows * heads * value_dim, heads * value_dim, value_dim, 1)

    def with_rows(self, rows: int) -> Attention:
        """Return the same for another number of rows, as far as its layouts can be told from these."""
        query, key, value = (_with_rows(layout, rows) for layout in (self.query, self.key, self.value))
        return Attention(self.kind, query, key, value, self.scale)


def _with_rows(layout: Layout, rows: int) -> Layout:
    (_, heads, before, dim), (_, head_stride, row_stride, dim_stride) = layout
    if head_stride == before * row_stride:  # one head's rows after the other's
        head_stride = rows * row_stride
    return (1, heads, rows, dim), (heads * rows * dim, head_stride, row_stride, dim_stride)


def build(cudnn: Any, attention: Attention, **place: Any) -> Any:
    """Return a graph whose plan is built as torch builds its own, the heuristics' first; it takes 40 to 90 ms.

    Args:
        cudnn: The package.
        attention: What it computes.
        place: The GPU, as a handle or as described by another process.

    Returns:
        The graph; `None` where cuDNN can't compute it.
    """
    kind, single = getattr(cudnn.data_type, attention.kind), cudnn.data_type.FLOAT
    graph = cudnn.pygraph(io_data_type=kind, intermediate_data_type=single, compute_data_type=single, **place)
    query, key, value = (
        graph.tensor(dim=shape, stride=strides, data_type=kind, uid=uid)
        for uid, (shape, strides) in zip((QUERY, KEY, VALUE), attention[1:4], strict=True)
    )
    output, _ = graph.sdpa(
        q=query, k=key, v=value, generate_stats=False, attn_scale=attention.scale, use_causal_mask=True
    )
    shape, strides = attention.output_layout
    output.set_output(True).set_uid(OUTPUT)
    output.set_dim([shape[axis] for axis in _HEADS_FIRST]).set_stride([strides[axis] for axis in _HEADS_FIRST])
    try:
        graph.validate()
        graph.build_operation_graph()
        graph.create_execution_plans([cudnn.heur_mode.A])
        graph.check_support()
        graph.build_plans()
    except (cudnn.cudnnGraphNotSupportedError, RuntimeError, ValueError):
        return None
    return graph


_HEADS_FIRST = (0, 2, 1, 3)


def main() -> None:
    """Read a job as JSON from the standard input; write each plan as a line in base64, an empty one for none.

    A job has the ``version`` of the other process's cuDNN, its GPU's ``device`` properties and ``sm_version`` (90 for
    compute capability 9.0), and the ``attentions``.
    """
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever else is printed is no plan
    sys.modules["torch"] = None  # type: ignore[assignment]  # the package would load it, which takes seconds
    import cudnn

    job = json.load(sys.stdin)
    if cudnn.backend_version() != job["version"]:
        return
    place = {"device_property": cudnn.create_device_properties(job["device"]), "sm_version": job["sm_version"]}
    for attention in job["attentions"]:
        graph = build(cudnn, Attention(*attention), **place)
        plan = b"" if graph is None else bytes(graph.serialize())
        answers.write(base64.b64encode(plan) + b"\n")
        answers.flush()


if __name__ == "__main__":
    main()
