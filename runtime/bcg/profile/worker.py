"""The process of one mode: what it does at each command."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace

import msgspec
import torch

from bcg.child import serve
from bcg.device import find_device
from bcg.device.meter import find_meter
from bcg.diagnose import UncapturableError, break_where_needed
from bcg.distributed.failure import Failure
from bcg.distributed.rank import joined
from bcg.environment import environment
from bcg.models import load_from_words
from bcg.modes import make_mode, prepare_process
from bcg.modes.base import bucket_batch
from bcg.modes.captured import Captured
from bcg.profile.bench import Bench
from bcg.profile.checks import check_notes, checked, make_checks
from bcg.profile.messages import (
    AllLooked,
    AllPrepared,
    Closed,
    Command,
    Load,
    Loaded,
    Look,
    Prepare,
    Prepared,
    Reply,
    Round,
    Trace,
    Traced,
)
from bcg.ranges import Ranges, show
from bcg.report import CaptureReport
from bcg.summary import capture_report


class Worker:
    """One mode of one target.

    Args:
        command: What to load.
    """

    def __init__(self, command: Load) -> None:
        # First: the compiler's processes take seconds to start, and do so while ranks join and the model is loaded.
        prepare_process(command.mode)
        words, self._life = command.words, ExitStack()
        place, name = torch.device(words.device), f"bcg/{command.mode}"
        self._world = self._life.enter_context(joined(place, command.rank_timeout_s, _end, name))
        if self._world is not None:
            words = replace(words, device=str(self._world.device))
        self._target = load_from_words(words, self._world)
        self._mode = make_mode(command.mode, self._target)
        self._meter = find_meter(self._target.device)
        self._ranges = Ranges(command.nvtx)
        show(self._ranges)
        self._bench: Bench | None = None

    @property
    def bench(self) -> Bench:
        """The mode with every bucket ready, to be measured."""
        assert self._bench is not None
        return self._bench

    def tick(self) -> None:
        """Note that this rank makes progress."""
        if self._world is not None:
            self._world.tick()

    def loaded(self) -> Loaded:
        """Describe the target."""
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
        with find_device(self._target.device).as_recorded():
            return self._prepare(command.buckets)

    def _prepare(self, token_counts: Sequence[int]) -> AllPrepared:
        checks = make_checks(self._target, self._mode.name, token_counts)
        batches = {tokens: bucket_batch(self._target, tokens) for tokens in token_counts}
        self._break_where_needed(token_counts)
        started = time.perf_counter()
        preparations = self._mode.prepare(token_counts)
        self._meter.synchronize()
        startup_s = time.perf_counter() - started
        with self._ranges.make("check", "check")():
            buckets = [checked(one, self._mode.run, checks) for one in preparations]
        warnings = check_notes(self._mode.name, buckets, checks)
        buckets = self._agreed(buckets)
        self._bench = Bench(self._mode, batches, self._meter, self._ranges)
        return AllPrepared(buckets=buckets, startup_s=startup_s, capture=self._capture(), warnings=warnings)

    def _break_where_needed(self, token_counts: Sequence[int]) -> None:
        """Give the breakable mode the automatic breaks of `bcg capture`; where none help, its capture says why."""
        if self._mode.name != "breakable" or self._world is not None:
            return
        with suppress(UncapturableError):
            break_where_needed(self._target, token_counts)

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

    def _capture(self) -> CaptureReport | None:
        if not isinstance(self._mode, Captured) or not self._mode.runner.graphs:
            return None
        return capture_report(self._mode.runner, self._mode.results, {})

    def trace(self, command: Trace) -> Traced:
        """Write a trace of one step of each bucket; of ranks, the first's."""
        profiler = self.bench.trace(command.buckets)
        if self._world is None or self._world.rank == 0:
            profiler.export_chrome_trace(command.path)
        return Traced()

    def close(self) -> Closed:
        """Free everything and say what was counted."""
        if self._bench is not None:
            self._bench.end_measuring()
        counts = self._mode.counts()
        self._mode.close()
        self._life.close()
        return Closed(counts=counts)


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
            return worker.bench.round(command.tokens, command.num_steps)
        if isinstance(command, Look):
            return AllLooked(buckets=worker.bench.look(command.buckets))
        if isinstance(command, Trace):
            return worker.trace(command)
        return worker.close()


if __name__ == "__main__":
    serve(Command, _Answers(), last=Closed)
