"""What the device did in a step: launches and busy time, read from a trace of torch's profiler."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

_WORK = {"kernel", "gpu_memcpy", "gpu_memset"}
_CALLS = {"cuda_runtime", "cuda_driver"}
_COLLECTIVE = "nccl"
"""What the names of NCCL's kernels begin with: they run while they wait for the other ranks, most of an eager step."""


@dataclass(frozen=True)
class Activity:
    """What one step launched, and how long it kept the device busy, collectives between ranks left out."""

    busy_ms: float
    graph_launches: float
    kernel_launches: float


def device_activity(run: Callable[[], Any], num_steps: int) -> Activity | None:
    """Run some steps under torch's profiler and return what one of them did; None where the profiler sees nothing."""
    run()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        for _ in range(num_steps):
            run()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    return read_activity(events, num_steps)


def read_activity(events: Iterable[dict[str, Any]], num_steps: int) -> Activity | None:
    """Sum up the events of a trace that covers `num_steps` steps."""
    spans: list[tuple[float, float]] = []
    graphs = kernels = 0
    for event in events:
        category, name = event.get("cat"), str(event.get("name"))
        if category in _WORK and not name.startswith(_COLLECTIVE):
            spans.append((float(event["ts"]), float(event["ts"]) + float(event["dur"])))
        elif category in _CALLS:
            graphs += "GraphLaunch" in name
            kernels += "LaunchKernel" in name
    if not spans:
        return None
    return Activity(_union(spans) / num_steps / 1e3, graphs / num_steps, kernels / num_steps)


def _union(spans: list[tuple[float, float]]) -> float:
    """Return how much is covered by at least one span."""
    covered, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        covered += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return covered
