"""Looking at each step of a replay: timing it, naming it for NVTX or a trace.

The plain replay knows nothing of this: `BreakableCUDAGraph.replay` puts each step into what it is given here.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bcg.device.meter import Meter
from bcg.graph import Around, Break, BreakableCUDAGraph, Segment
from bcg.inputs import Batch
from bcg.profile.messages import Split
from bcg.ranges import Range, Ranges
from bcg.report import StepKind, TimelineStep, number_steps
from bcg.runner import GraphRunner

NUM_LOOKS = 11
"""Replays in which every step is timed by itself; one alone may be twice as long as the next."""


@dataclass(frozen=True)
class StepName:
    """What a step is called everywhere: ``segment 3``, ``break 3``, and what is in it."""

    kind: StepKind
    index: int
    about: str

    def __str__(self) -> str:
        return f"{self.kind} {self.index}"


def step_names(graph: BreakableCUDAGraph) -> list[StepName]:
    """Name the steps of a graph in the order of replay."""
    numbers = number_steps(step.kind for step in graph.steps)
    return [StepName(kind, index, _about(step)) for (kind, index), step in zip(numbers, graph.steps, strict=True)]


def _about(step: Segment | Break) -> str:
    if isinstance(step, Break):
        return f"{step.label.name} {step.label.module or ''}".strip()
    modules = [operation.module for operation in step.tape.operations if operation.module]
    return " to ".join(dict.fromkeys((modules[0], modules[-1]))) if modules else ""


def replay_within(around: Sequence[Around]) -> Callable[[BreakableCUDAGraph], None]:
    """Return a replay, for `GraphRunner.replay`, that has each step inside its own context manager."""
    return functools.partial(BreakableCUDAGraph.replay, around=around)


def named_for_nvtx(graph: BreakableCUDAGraph, ranges: Ranges) -> list[Range]:
    """Prebuild an NVTX range for each step."""
    return [ranges.make(str(name), name.kind, name.index) for name in step_names(graph)]


def named_for_trace(graph: BreakableCUDAGraph) -> list[Around]:
    """Name each step for torch's profiler."""

    def named(text: str) -> Around:
        return lambda: torch.profiler.record_function(text)

    return [named(f"{name}: {name.about}" if name.about else str(name)) for name in step_names(graph)]


class _Lap:
    """Times what runs inside it; entered once for each step. A generator would be part of the time."""

    def __init__(self, clock: list[tuple[float, float]], marks: list[Any], meter: Meter) -> None:
        self._clock = clock
        self._marks = marks
        self._meter = meter
        self._started = 0.0

    def __enter__(self) -> None:
        self._marks.append(self._meter.mark())
        self._started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._clock.append((self._started, time.perf_counter()))


class Stopwatch:
    """Times every step of a replay, on the host and by the meter.

    Args:
        graph: What is replayed.
        meter: Of its device.
    """

    def __init__(self, graph: BreakableCUDAGraph, meter: Meter) -> None:
        self._names = step_names(graph)
        self._meter = meter
        self._clock: list[tuple[float, float]] = []
        self._marks: list[Any] = []

    def replay(self, graph: BreakableCUDAGraph) -> None:
        """Replay the graph; to be given to `GraphRunner.replay`."""
        self._clock.clear()
        self._marks.clear()
        lap = _Lap(self._clock, self._marks, self._meter)
        self._meter.synchronize()
        graph.replay([lambda: lap] * len(self._names))
        self._marks.append(self._meter.mark())
        self._meter.synchronize()

    def steps(self) -> list[TimelineStep]:
        """Return the last replay, step by step."""
        origin = self._clock[0][0]
        return [
            TimelineStep(
                kind=name.kind,
                index=name.index,
                name=name.about,
                host_start_us=(started - origin) * 1e6,
                host_us=(ended - started) * 1e6,
                device_start_us=self._device_us(0, number),
                device_us=self._device_us(number, number + 1),
            )
            for number, (name, (started, ended)) in enumerate(zip(self._names, self._clock, strict=True))
        ]

    def _device_us(self, start: int, end: int) -> float | None:
        if not self._meter.is_device:
            return None
        return self._meter.elapsed_ms(self._marks[start], self._marks[end]) * 1e3 if start != end else 0.0


def timed_replays(runner: GraphRunner, batch: Batch, meter: Meter) -> list[list[TimelineStep]]:
    """Replay a batch that fills a bucket several times, and return the steps of each replay, the shortest first."""
    watch = Stopwatch(runner.graphs[batch.num_tokens], meter)
    replays = []
    for _ in range(NUM_LOOKS):
        runner.replay(batch, through=watch.replay)
        replays.append(watch.steps())
    return sorted(replays, key=lambda steps: sum(map(_length_us, steps)))


def split_of(replays: Sequence[Sequence[TimelineStep]]) -> Split:
    """Return what segments take together and what breaks do, as medians over the replays."""

    def median(kind: StepKind, length: Callable[[TimelineStep], float]) -> float:
        return statistics.median(sum(length(step) for step in steps if step.kind == kind) for steps in replays)

    return Split(
        segments_ms=median("segment", _length_us) / 1e3,
        breaks_ms=median("break", _length_us) / 1e3,
        segments_host_us=median("segment", lambda step: step.host_us),
        breaks_host_us=median("break", lambda step: step.host_us),
    )


def _length_us(step: TimelineStep) -> float:
    return step.host_us if step.device_us is None else step.device_us
