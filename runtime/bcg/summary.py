"""From a runner that has captured to the plain data of a capture report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from bcg.checking.writes import written_input_warnings
from bcg.compilations import late_compilation_warnings
from bcg.environment import environment
from bcg.graph import Break, BreakableCUDAGraph, Segment
from bcg.report import (
    BreakRow,
    BucketFitRow,
    CaptureBucket,
    CaptureReport,
    CaptureTotals,
    OptionValue,
    RankRow,
    ReportWarning,
    SegmentRow,
    number_steps,
    step_name,
)
from bcg.runner import GraphRunner
from bcg.segment_tape import SegmentTape
from bcg.structure import local_bytes
from bcg.sweep import BucketCapture
from bcg.whereabouts import from_search_path, source_line_of

if TYPE_CHECKING:
    from bcg.diagnose import Diagnosis
    from bcg.diagnose.survey import SurveyedBreak


def capture_report(
    runner: GraphRunner,
    results: Sequence[BucketCapture],
    options: Mapping[str, OptionValue],
    diagnosis: Diagnosis | None = None,
    workload: Sequence[BucketFitRow] = (),
) -> CaptureReport:
    """Describe what `runner` captured: a row a bucket, and the map of the largest captured one.

    Args:
        runner: After its `capture`.
        results: What `capture` returned.
        options: The options of the run, for the record.
        diagnosis: What was found before the capture.
        workload: What the buckets do to the workload that they were chosen for.
    """
    log = CaptureLog(runner)
    for result in results:
        log.add(result)
    return log.report(options, diagnosis, workload, rank_rows(runner, results))


class CaptureLog:
    """Describes each bucket as soon as it is captured.

    What it holds is plain data: when a later bucket fails, even so that the device is lost to the process, the
    report of what came before can still be written.

    Args:
        runner: Captures; `add` is what it is given as `on_bucket`.
    """

    def __init__(self, runner: GraphRunner) -> None:
        self._runner = runner
        self._environment = environment(runner.target.device)
        self._rows: list[CaptureBucket] = []
        self._map: dict[str, Any] = {}
        self._warnings: list[ReportWarning] = []

    @property
    def num_captured(self) -> int:
        return sum(row.status == "captured" for row in self._rows)

    def add(self, result: BucketCapture) -> None:
        """Describe one bucket; the first captured one, which is the largest, is mapped too."""
        graph = self._runner.graphs.get(result.tokens)
        self._rows.append(_bucket_row(result, graph))
        self._warnings += late_compilation_warnings([(result.tokens, result.compiled_at)])
        if graph is not None and not self._map:
            self._warnings += written_input_warnings(self._runner)
            self._map = {
                "map_tokens": result.tokens,
                "map": [step_name(*step) for step in number_steps(step.kind for step in graph.steps)],
                "segments": [_captured_row(index, step) for index, step in enumerate(graph.segments)],
                "breaks": [break_row(index, step) for index, step in enumerate(graph.breaks)],
            }

    def report(
        self,
        options: Mapping[str, OptionValue],
        diagnosis: Diagnosis | None = None,
        workload: Sequence[BucketFitRow] = (),
        ranks: Sequence[RankRow] = (),
    ) -> CaptureReport:
        """Return the report of all buckets so far; see `capture_report`."""
        target = self._runner.target
        captured = [row for row in self._rows if row.status == "captured"]
        peaks = [row.eager_peak_bytes for row in captured if row.eager_peak_bytes is not None]
        return CaptureReport(
            environment=self._environment,
            model=target.info,
            options=dict(options),
            buckets=list(self._rows),
            totals=CaptureTotals(
                num_captured=len(captured),
                capture_ms=sum(row.capture_ms for row in captured),
                pool_bytes=sum(row.pool_bytes for row in captured),
                driver_bytes=sum(row.driver_bytes for row in captured),
                boundary_bytes=sum(row.boundary_bytes for row in captured),
                eager_peak_bytes=max(peaks, default=None),
            ),
            **self._map,
            warnings=[*target.warnings, *self._warnings],
            automatic_breaks=list(diagnosis.automatic_breaks) if diagnosis else [],
            cards=list(diagnosis.cards) if diagnosis else [],
            workload=list(workload),
            ranks=list(ranks),
        )


def rank_rows(runner: GraphRunner, results: Sequence[BucketCapture]) -> list[RankRow]:
    """Return a row from every rank that the target is sharded over; to be called on all of them.

    Args:
        runner: After its `capture`.
        results: What `capture` returned.
    """
    captured = [result for result in results if result.status == "captured"]
    target, graphs = runner.target, runner.graphs
    if target.alignment is None:
        return []
    graph = graphs.get(max(graphs, default=0))
    row = RankRow(
        rank=target.alignment.rank,
        device=environment(target.device).device,
        num_segments=graph.num_segments if graph else 0,
        num_breaks=graph.num_breaks if graph else 0,
        capture_ms=sum(result.capture_ms for result in captured),
        pool_bytes=sum(result.pool_bytes for result in captured),
        driver_bytes=sum(result.driver_bytes for result in captured),
        weight_bytes=local_bytes(target.module.parameters()),
    )
    rows: list[RankRow] = target.alignment.exchange(row)
    return rows


def _bucket_row(result: BucketCapture, graph: BreakableCUDAGraph | None) -> CaptureBucket:
    return CaptureBucket(
        tokens=result.tokens,
        status=result.status,
        num_segments=graph.num_segments if graph else 0,
        num_breaks=graph.num_breaks if graph else 0,
        num_kernels=sum(segment.contents().num_kernels for segment in graph.segments) if graph else 0,
        warmup_ms=result.warmup_ms,
        capture_ms=result.capture_ms,
        pool_bytes=result.pool_bytes,
        driver_bytes=result.driver_bytes,
        boundary_bytes=_boundary_bytes(graph) if graph else 0,
        eager_peak_bytes=result.eager_peak_bytes,
        error=result.error,
    )


def _boundary_bytes(graph: BreakableCUDAGraph) -> int:
    return sum(step.boundary_bytes for step in graph.breaks)


def _captured_row(index: int, segment: Segment) -> SegmentRow:
    row, contents = segment_row(index, segment.tape), segment.contents()
    on_host = "operation" in contents.node_counts
    return msgspec.structs.replace(
        row,
        num_operations=contents.num_kernels if on_host else row.num_operations,
        num_kernels=None if on_host else contents.num_kernels,
        kernels=contents.kernels,
        node_counts=contents.node_counts,
    )


def segment_row(index: int, tape: SegmentTape) -> SegmentRow:
    """Describe a segment of a captured or of a planned forward, as far as its tape tells."""
    return SegmentRow(
        index=index,
        modules=list(dict.fromkeys(operation.module for operation in tape.operations if operation.module)),
        num_operations=len(tape.operations),
        num_externals=len(tape.externals),
        external_bytes=tape.external_bytes,
    )


def break_row(index: int, step: Break | SurveyedBreak) -> BreakRow:
    """Describe a break of a captured or of a planned forward."""
    return BreakRow(
        index=index,
        name=step.label.name,
        module=step.label.module or "",
        source=step.label.source,
        boundary_bytes=step.boundary_bytes,
        source_line=from_search_path(source_line_of(step.function)) or None,
    )
