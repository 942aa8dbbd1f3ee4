"""Causal attention through cuDNN's own interface: the kernel that torch would launch, bound to its addresses once.

`torch.nn.functional.scaled_dot_product_attention` chooses a backend, allocates a result and a workspace and looks up
its plan at every call, 28 to 33 µs of host time on a machine where a plan that is kept took 9 to 14; and its result
has to be copied to where the next segment reads it. The plans come from the package `nvidia-cudnn-frontend`
(https://docs.nvidia.com/deeplearning/cudnn/frontend/latest/). Where that can't be used, attention is torch's call.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from bcg.device.cudnn_builders import current_builders
from bcg.device.cudnn_graph import KEY, OUTPUT, QUERY, VALUE, Attention, Layout, build


class Plan:
    """How cuDNN computes one attention: good for all tensors of the same layouts on one GPU.

    Attributes:
        output_layout: Of the result, ``[1, rows, heads, value_dim]`` and dense, as the next segment reads it.
    """

    def __init__(self, graph: Any, index: int, output_layout: Layout) -> None:
        self.output_layout = output_layout
        self._graph = graph
        self._index = index
        self._workspace_bytes: int = graph.get_workspace_size()

    def bind(self, query: Tensor, key: Tensor, value: Tensor, output: Tensor) -> Callable[[], None]:
        """Return what computes `output` on the current stream. Only the addresses are kept: memory must stay alive."""
        addresses = {
            QUERY: query.data_ptr(),
            KEY: key.data_ptr(),
            VALUE: value.data_ptr(),
            OUTPUT: output.data_ptr(),
        }
        execute, index, workspace_bytes = self._graph.execute, self._index, self._workspace_bytes

        def launch() -> None:
            if torch._C._cuda_getDevice() != index:
                with torch.cuda.device(index):
                    return launch()
            lane = _lanes.find(index, torch._C._cuda_getCurrentRawStream(index))
            execute(addresses, lane.workspace(workspace_bytes), lane.handle)
            return None

        return launch


def find_plan(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Plan | None:
    """Return the plan for causal attention of one sequence; `None` where torch would not call cuDNN for it.

    Args:
        query: ``[1, heads, rows, head_dim]``.
        key: ``[1, key_value_heads, rows, head_dim]``.
        value: ``[1, key_value_heads, rows, value_dim]``.
        scale: Of the scores.
    """
    tensors = (query, key, value)
    if query.dtype not in _type_names or any(tensor.shape[0] != 1 or 1 in tensor.shape[2:] for tensor in tensors):
        return None
    is_grouped = query.shape[1] != key.shape[1]
    chosen = torch._fused_sdp_choice(query, key, value, None, 0.0, True, scale=scale, enable_gqa=is_grouped)
    if chosen != SDPBackend.CUDNN_ATTENTION.value or frontend() is None:
        return None
    attention = Attention(_type_names[query.dtype], _layout(query), _layout(key), _layout(value), scale)
    with torch.cuda.device(query.device):
        return _plan(query.device.index, attention)


@functools.cache
def frontend() -> Any:
    """Return the package, or `None` where it is missing, works with another cuDNN than torch, or is slow.

    From release 1.27 on a graph is an object of Python, and executing it takes longer (62 µs) than all of torch's call.
    """
    try:
        import cudnn

        is_compiled = cudnn.pygraph.__module__.endswith("_compiled_module")
        is_torchs = cudnn.backend_version() == torch.backends.cudnn.version()
    except Exception:  # noqa: BLE001 - no package, one that finds no cuDNN or two, or another of the same name
        return None
    return cudnn if is_compiled and is_torchs else None


_type_names = {torch.bfloat16: "BFLOAT16", torch.float16: "HALF"}


@functools.cache
def _plan(index: int, attention: Attention) -> Plan | None:
    cudnn, builders = frontend(), current_builders()
    lane = _lanes.find(index, torch._C._cuda_getCurrentRawStream(index))
    built = builders.take(cudnn, index, attention) if builders is not None else b""
    if built:
        graph = cudnn.pygraph()
        graph.deserialize(lane.handle, list(built))
    else:
        graph = build(cudnn, attention, handle=lane.handle)
    return None if graph is None else Plan(graph, index, attention.output_layout)


def _layout(tensor: Tensor) -> Layout:
    """Describe a tensor of one sequence; how far away the next sequence would be says nothing."""
    return tuple(tensor.shape), (tensor.numel(), *tensor.stride()[1:])


class _Lane:
    """What the plans that one thread launches on one stream share: cuDNN's handle, and a workspace."""

    def __init__(self, index: int, stream: int) -> None:
        cudnn = frontend()
        self.handle = cudnn.create_handle()
        cudnn.set_stream(handle=self.handle, stream=stream)
        weakref.finalize(self, cudnn.destroy_handle, self.handle).atexit = False  # the thread has ended
        self._device = torch.device("cuda", index)
        self._workspace: Tensor | None = None
        self._num_bytes = 0
        self._address = 0

    def workspace(self, num_bytes: int) -> int:
        """Return the address of a workspace; a smaller one is exchanged in the order of the stream."""
        if num_bytes > self._num_bytes:
            self._workspace = torch.empty(num_bytes, dtype=torch.uint8, device=self._device)
            self._num_bytes, self._address = num_bytes, self._workspace.data_ptr()
        return self._address


class _Lanes(threading.local):
    def __init__(self) -> None:
        self._by_stream: dict[tuple[int, int], _Lane] = {}

    def find(self, index: int, stream: int) -> _Lane:
        lane = self._by_stream.get((index, stream))
        if lane is None:
            lane = self._by_stream[index, stream] = _Lane(index, stream)
        return lane


_lanes = _Lanes()
