"""Breakable CUDA graphs: a forward captured as graph segments with eager breaks between them.

Names are imported on first use, so that ``import bcg`` alone loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bcg.breaks import break_graph as break_graph
    from bcg.breaks import current_capture as current_capture
    from bcg.breaks import eager_on_graph as eager_on_graph
    from bcg.buckets import default_buckets as default_buckets
    from bcg.buckets import parse_buckets as parse_buckets
    from bcg.capture import BreakableCUDAGraphCapture as BreakableCUDAGraphCapture
    from bcg.checking import assert_graph_safe as assert_graph_safe
    from bcg.checking import check as check
    from bcg.context import ForwardContext as ForwardContext
    from bcg.context import current_forward_context as current_forward_context
    from bcg.context import forward_context as forward_context
    from bcg.errors import BcgError as BcgError
    from bcg.errors import CaptureError as CaptureError
    from bcg.errors import CheckFailure as CheckFailure
    from bcg.errors import HostReadError as HostReadError
    from bcg.errors import ModelError as ModelError
    from bcg.errors import ReplayError as ReplayError
    from bcg.errors import ReportError as ReportError
    from bcg.errors import UsageError as UsageError
    from bcg.graph import BreakableCUDAGraph as BreakableCUDAGraph
    from bcg.inputs import Batch as Batch
    from bcg.models import load_target as load_target
    from bcg.models import make_target as make_target
    from bcg.report import read_report as read_report
    from bcg.report import write_report as write_report
    from bcg.runner import GraphRunner as GraphRunner
    from bcg.summary import capture_report as capture_report
    from bcg.target import Target as Target
    from bcg.target import make_batch as make_batch

__version__ = "0.1.0"

_HOMES = {
    "Batch": "inputs",
    "BcgError": "errors",
    "BreakableCUDAGraph": "graph",
    "BreakableCUDAGraphCapture": "capture",
    "CaptureError": "errors",
    "CheckFailure": "errors",
    "ForwardContext": "context",
    "GraphRunner": "runner",
    "HostReadError": "errors",
    "ModelError": "errors",
    "ReplayError": "errors",
    "ReportError": "errors",
    "Target": "target",
    "UsageError": "errors",
    "assert_graph_safe": "checking",
    "break_graph": "breaks",
    "capture_report": "summary",
    "check": "checking",
    "current_capture": "breaks",
    "current_forward_context": "context",
    "default_buckets": "buckets",
    "eager_on_graph": "breaks",
    "forward_context": "context",
    "load_target": "models",
    "make_batch": "target",
    "make_target": "models",
    "parse_buckets": "buckets",
    "read_report": "report",
    "write_report": "report",
}

__all__ = sorted([*_HOMES, "__version__"])


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'bcg' has no attribute {name!r}")
    value = getattr(import_module(f"bcg.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
