"""A mode that is ready, on the bench: its steps timed in rounds, looked into one by one, and traced."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import msgspec
from torch.profiler import ProfilerActivity, profile, record_function

from bcg.device.meter import Meter
from bcg.graph import BreakableCUDAGraph
from bcg.inputs import Batch
from bcg.modes.base import Mode
from bcg.profile.launches import device_activity
from bcg.profile.messages import Looked, Measured
from bcg.profile.steps import named_for_nvtx, named_for_trace, replay_within, split_of, timed_replays
from bcg.ranges import Range, Ranges
from bcg.report import Timeline

NUM_SETTLING_STEPS = 2
"""Unmeasured steps at the start of a round or a look: another process had the device in between."""


class Bench:
    """A mode that is ready, and the batches that it is measured with.

    Args:
        mode: Every bucket of which has been prepared.
        batches: By token count, one that fills the bucket.
        meter: Of its device.
        ranges: With a tool attached, replays take the way on which each step is inside its range.
    """

    def __init__(self, mode: Mode, batches: Mapping[int, Batch], meter: Meter, ranges: Ranges) -> None:
        self._mode = mode
        self._batches = batches
        self._meter = meter
        self._ranges = ranges
        graphs = mode.runner.graphs if mode.runner is not None and ranges.active else {}
        self._throughs = {tokens: _named(graph, tokens, ranges) for tokens, graph in graphs.items()}
        self._measuring = ExitStack()
        self._is_measuring = False

    def round(self, tokens: int, num_steps: int) -> Measured:
        """Run steps of one bucket, each timed on its own from an idle device."""
        self._begin_measuring()
        batch, meter = self._batches[tokens], self._meter
        self._settle(tokens)
        step_ms, host_us = [], []
        with meter.peak_of() as peak, self._ranges.make("round", "replay", tokens)():
            for _ in range(num_steps):
                meter.synchronize()
                start = meter.mark()
                began = time.perf_counter()
                self._run(tokens, batch)
                returned = time.perf_counter()
                end = meter.mark()
                meter.synchronize()
                step_ms.append(meter.elapsed_ms(start, end))
                host_us.append((returned - began) * 1e6)
        return Measured(step_ms=step_ms, host_us=host_us, peak_bytes=peak[0] if peak else None)

    def look(self, buckets: Sequence[int]) -> list[Looked]:
        """Look into one step of each bucket.

        After all rounds, and every timed replay before the first with a profiler: that leaves traces in the launch
        path, which make all later launches of the process slower.
        """
        self.end_measuring()
        looked = [self._timed(tokens) for tokens in buckets]
        if self._meter.is_device and not self._ranges.active:
            looked = [self._counted(tokens, one) for tokens, one in zip(buckets, looked, strict=True)]
        return looked

    def _timed(self, tokens: int) -> Looked:
        runner = self._mode.runner
        if runner is None:
            return Looked()
        self._settle(tokens)
        replays = timed_replays(runner, self._batches[tokens], self._meter)
        return Looked(
            graph_launches=float(runner.graphs[tokens].num_segments),
            split=split_of(replays),
            timeline=Timeline(mode=self._mode.name, tokens=tokens, steps=replays[len(replays) // 2]),
        )

    def _counted(self, tokens: int, timed: Looked) -> Looked:
        self._settle(tokens)
        activity = device_activity(lambda: self._mode.run(self._batches[tokens]), num_steps=3)
        if activity is None:
            return timed
        # A launch through cuda-python may escape the profiler; what the graphs counted themselves is certain.
        launches = activity.graph_launches if timed.graph_launches is None else timed.graph_launches
        return msgspec.structs.replace(
            timed, busy_ms=activity.busy_ms, graph_launches=launches, kernel_launches=activity.kernel_launches
        )

    def trace(self, buckets: Sequence[int]) -> profile:
        """Run one step of each bucket under torch's profiler, in which segments and breaks are named."""
        self.end_measuring()
        runner = self._mode.runner
        activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if self._meter.is_device else [])
        profiler = profile(activities=activities)
        with profiler:
            for tokens in buckets:
                batch = self._batches[tokens]
                with record_function(f"{self._mode.name}: {tokens} tokens"):
                    if runner is None:
                        self._mode.run(batch)
                    else:
                        runner.replay(batch, through=replay_within(named_for_trace(runner.graphs[tokens])))
                    self._meter.synchronize()
        return profiler

    def _settle(self, tokens: int) -> None:
        for _ in range(NUM_SETTLING_STEPS):
            self._run(tokens, self._batches[tokens])

    def _run(self, tokens: int, batch: Batch) -> Any:
        through = self._throughs.get(tokens)
        if through is None:
            return self._mode.run(batch)
        assert self._mode.runner is not None
        return self._mode.runner.replay(batch, through=through)

    def _begin_measuring(self) -> None:
        """Open the region that ``nsys --nvtx-capture=profile@bcg`` and ``--capture-range=cudaProfilerApi`` record."""
        if not self._is_measuring:
            self._measuring.enter_context(self._ranges.make("profile", "replay")())
            self._measuring.enter_context(self._meter.tool_range())
            self._is_measuring = True

    def end_measuring(self) -> None:
        """Close the region that the first round opened, if one did."""
        self._measuring.close()
        self._is_measuring = False


def _named(graph: BreakableCUDAGraph, tokens: int, ranges: Ranges) -> Callable[[BreakableCUDAGraph], None]:
    """Return a replay, for `GraphRunner.replay`, that is inside a range as a whole and in each step."""
    within = replay_within(named_for_nvtx(graph, ranges))
    whole: Range = ranges.make(f"replay {tokens}", "replay", tokens)

    def through(graph: BreakableCUDAGraph) -> None:
        with whole():
            within(graph)

    return through
