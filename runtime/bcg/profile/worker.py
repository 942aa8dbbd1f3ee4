"""The process of one mode: what it does at each command."""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec

from bcg.child import serve
from bcg.distributed.failure import Failure
from bcg.distributed.member import this_member
from bcg.profile.messages import (
    AllLooked,
    AllPrepared,
    Closed,
    Command,
    Load,
    Loaded,
    Look,
    Looked,
    Measured,
    Prepare,
    Prepared,
    Reply,
    Round,
    Trace,
    Traced,
)

if TYPE_CHECKING:
    from bcg.distributed.watch import Watch
    from bcg.distributed.world import World

NUM_SETTLING_STEPS = 2
"""Unmeasured steps at the start of a round or a look: another process had the device in between."""


class Worker:
    """One mode of one target.

    Args:
        command: What to load.
    """

    def __init__(self, command: Load) -> None:
        from bcg.device.meter import find_meter
        from bcg.models import load_from_words
        from bcg.modes import make_mode, prepare_process
        from bcg.ranges import Ranges, show

        prepare_process(command.mode)
        self._world, self._watch = _join(command)
        words = command.words
        if self._world is not None:
            words = replace(words, device=str(self._world.device))
        self._target = load_from_words(words, self._world)
        self._mode = make_mode(command.mode, self._target)
        self._meter = find_meter(self._target.device)
        self._ranges = Ranges(command.nvtx)
        show(self._ranges)
        self._batches: dict[int, Any] = {}
        self._throughs: dict[int, Any] = {}
        self._measuring = ExitStack()
        self._is_measuring = False

    def tick(self) -> None:
        """Note that this rank makes progress."""
        if self._world is not None:
            self._world.tick()

    def loaded(self) -> Loaded:
        """Describe the target."""
        from bcg.environment import environment

        return Loaded(
            environment=environment(self._target.device),
            model=self._target.info,
            warnings=self._target.warnings,
            max_tokens=self._target.max_tokens,
            weight_bytes=self._target.info.weight_bytes,
            free_bytes=self._meter.free_bytes(),
        )

    def prepare(self, command: Prepare) -> AllPrepared:
        """Compute what eager gives, make every bucket ready, and compare the first replays."""
        from bcg.device import find_device

        with find_device(self._target.device).as_recorded():
            return self._prepare(command)

    def _prepare(self, command: Prepare) -> AllPrepared:
        from bcg.modes.base import bucket_batch
        from bcg.profile.checks import check_notes, checked, make_checks

        checks = make_checks(self._target, self._mode.name, command.buckets)
        self._batches = {tokens: bucket_batch(self._target, tokens) for tokens in command.buckets}
        self._break_where_needed(command.buckets)
        started = time.perf_counter()
        preparations = self._mode.prepare(command.buckets)
        self._meter.synchronize()
        startup_s = time.perf_counter() - started
        with self._ranges.make("check", "check")():
            buckets = [checked(one, self._mode.run, checks) for one in preparations]
        warnings = check_notes(self._mode.name, buckets, checks)
        buckets = self._agreed(buckets)
        self._name_steps()
        return AllPrepared(buckets=buckets, startup_s=startup_s, capture=self._capture(), warnings=warnings)

    def _break_where_needed(self, buckets: Sequence[int]) -> None:
        """Give the breakable mode the automatic breaks of `bcg capture`; where none help, its capture says why."""
        if self._mode.name != "breakable" or self._world is not None:
            return
        from bcg.diagnose import UncapturableError, break_where_needed

        with suppress(UncapturableError):
            break_where_needed(self._target, buckets)

    def round(self, command: Round) -> Measured:
        """Run steps of one bucket, each timed on its own from an idle device."""
        self._begin_measuring()
        batch, meter = self._batches[command.tokens], self._meter
        self._settle(command.tokens)
        step_ms, host_us = [], []
        with meter.peak_of() as peak, self._ranges.make("round", "replay", command.tokens)():
            for _ in range(command.num_steps):
                meter.synchronize()
                start = meter.mark()
                began = time.perf_counter()
                self._run(command.tokens, batch)
                returned = time.perf_counter()
                end = meter.mark()
                meter.synchronize()
                step_ms.append(meter.elapsed_ms(start, end))
                host_us.append((returned - began) * 1e6)
        return Measured(step_ms=step_ms, host_us=host_us, peak_bytes=peak[0] if peak else None)

    def _settle(self, tokens: int) -> None:
        for _ in range(NUM_SETTLING_STEPS):
            self._run(tokens, self._batches[tokens])

    def look(self, command: Look) -> AllLooked:
        """Look into one step of each bucket.

        After all rounds, and every timed replay before the first with a profiler: that leaves traces in the launch
        path, which make all later launches of the process slower.
        """
        self._end_measuring()
        looked = [self._timed(tokens) for tokens in command.buckets]
        if self._meter.is_device and not self._ranges.active:
            looked = [self._counted(tokens, one) for tokens, one in zip(command.buckets, looked, strict=True)]
        return AllLooked(buckets=looked)

    def _timed(self, tokens: int) -> Looked:
        from bcg.profile.steps import split_of, timed_replays
        from bcg.report import Timeline

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
        from bcg.profile.launches import device_activity

        self._settle(tokens)
        activity = device_activity(lambda: self._mode.run(self._batches[tokens]), num_steps=3)
        if activity is None:
            return timed
        # A launch through cuda-python may escape the profiler; what the graphs counted themselves is certain.
        launches = activity.graph_launches if timed.graph_launches is None else timed.graph_launches
        return msgspec.structs.replace(
            timed, busy_ms=activity.busy_ms, graph_launches=launches, kernel_launches=activity.kernel_launches
        )

    def trace(self, command: Trace) -> Traced:
        """Write one step of each bucket as a trace in which segments and breaks are named; of ranks, the first's."""
        from torch.profiler import ProfilerActivity, profile, record_function

        from bcg.profile.steps import named_for_trace, replay_within

        self._end_measuring()
        runner = self._mode.runner
        activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if self._meter.is_device else [])
        with profile(activities=activities) as profiler:
            for tokens in command.buckets:
                batch = self._batches[tokens]
                with record_function(f"{self._mode.name}: {tokens} tokens"):
                    if runner is None:
                        self._mode.run(batch)
                    else:
                        graph = runner.graphs[tokens]
                        runner.replay(batch, through=replay_within(named_for_trace(graph)))
                    self._meter.synchronize()
        if self._world is None or self._world.rank == 0:
            profiler.export_chrome_trace(command.path)
        return Traced()

    def close(self) -> Closed:
        """Free everything and say what was counted."""
        self._end_measuring()
        counts = self._mode.counts()
        self._mode.close()
        if self._world is not None and self._watch is not None:
            gc.collect()  # graphs that hold collectives go before the communicators
            self._world.close()
            self._watch.stop()
        return Closed(counts=counts)

    def _agreed(self, buckets: list[Prepared]) -> list[Prepared]:
        """Leave out what another rank can't measure."""
        if self._world is None:
            return buckets
        agreed = []
        answers = self._world.exchange([(one.preparation.status, one.preparation.reason) for one in buckets])
        for one, told in zip(buckets, zip(*answers, strict=True), strict=True):
            others = [(rank, *answer) for rank, answer in enumerate(told) if answer[0] != "measured"]
            if one.preparation.status == "measured" and others:
                rank, status, reason = others[0]
                left_out = replace(one.preparation, status=status, reason=f"rank {rank}: {reason or status}")
                agreed.append(msgspec.structs.replace(one, preparation=left_out))
            else:
                agreed.append(one)
        return agreed

    def _capture(self) -> Any:
        from bcg.modes.captured import Captured
        from bcg.summary import capture_report

        if not isinstance(self._mode, Captured) or not self._mode.runner.graphs:
            return None
        return capture_report(self._mode.runner, self._mode.results, {})

    def _name_steps(self) -> None:
        """With a tool attached, replays take the way on which each step is inside its range."""
        from bcg.profile.steps import named_for_nvtx, replay_within

        runner = self._mode.runner
        if runner is None or not self._ranges.active:
            return
        for tokens, graph in runner.graphs.items():
            within = replay_within(named_for_nvtx(graph, self._ranges))
            whole = self._ranges.make(f"replay {tokens}", "replay", tokens)

            def through(graph: Any, within: Any = within, whole: Any = whole) -> None:
                with whole():
                    within(graph)

            self._throughs[tokens] = through

    def _run(self, tokens: int, batch: Any) -> Any:
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

    def _end_measuring(self) -> None:
        self._measuring.close()
        self._is_measuring = False


def _join(command: Load) -> tuple[World | None, Watch | None]:
    """Join the other ranks' processes of the same mode, where a launcher has started several."""
    member = this_member()
    if member is None:
        return None, None
    import torch

    from bcg.distributed.watch import Watch
    from bcg.distributed.world import World

    world = World.join(member, torch.device(command.words.device), command.rank_timeout_s, f"bcg/{command.mode}")
    watch = Watch(world, _end)
    watch.start()
    return world, watch


def _end(failure: Failure) -> None:
    sys.stderr.write(f"{failure.message}\n")
    sys.stderr.flush()
    os._exit(1)


class _Answers:
    """Does what commands say, with the worker that the first one makes."""

    def __init__(self) -> None:
        self._worker: Worker | None = None

    def __call__(self, command: Command) -> Reply:
        if isinstance(command, Load):
            self._worker = Worker(command)
            return self._worker.loaded()
        worker = self._worker
        assert worker is not None
        worker.tick()
        if isinstance(command, Prepare):
            return worker.prepare(command)
        if isinstance(command, Round):
            return worker.round(command)
        if isinstance(command, Look):
            return worker.look(command)
        if isinstance(command, Trace):
            return worker.trace(command)
        return worker.close()


if __name__ == "__main__":
    serve(Command, _Answers(), last=Closed)
