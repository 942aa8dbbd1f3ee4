"""Calls of cuda-python: their results unpacked, their errors raised."""

from __future__ import annotations

from typing import Any

from cuda.bindings import driver, runtime


def check(result: tuple[Any, ...]) -> Any:
    """Unpack what a call returned.

    Raises:
        RuntimeError: It failed; with the driver's words.
    """
    error, *values = result
    if int(error) != 0:
        if isinstance(error, driver.CUresult):
            _, text = driver.cuGetErrorString(error)
        else:
            _, text = runtime.cudaGetErrorString(error)
        raise RuntimeError(f"CUDA error {int(error)} ({error.name}): {text.decode()}")
    return values[0] if len(values) == 1 else tuple(values)


def graph_nodes(graph: int, at_most: int | None = None) -> list[Any]:
    """Return the nodes of a graph, or the first so many, in the order in which the driver lists them."""
    handle = runtime.cudaGraph_t(graph)
    if at_most is None:
        _, at_most = check(runtime.cudaGraphGetNodes(handle, 0))
    nodes, num_nodes = check(runtime.cudaGraphGetNodes(handle, at_most))
    return list(nodes)[:num_nodes]


def node_kind(node: Any) -> str:
    """Return the kind of a node, such as ``kernel`` or ``memcpy``."""
    kind = check(runtime.cudaGraphNodeGetType(node))
    return str(kind.name.removeprefix("cudaGraphNodeType").lower())
