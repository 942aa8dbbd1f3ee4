"""``bcg capture``: a model in, breakable CUDA graphs per token count out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import typer

from bcg.distributed.member import DEFAULT_TIMEOUT_S
from bcg.errors import BcgError, CheckFailure, UsageError
from bcg.gpus import find_gpu
from bcg.model_names import kind_of_model
from bcg.report import CaptureReport, Card, OptionValue
from bcg_cli import console
from bcg_cli.bucket_choice import choose, read_bucket_words
from bcg_cli.delivery import check_outputs, deliver, file_of, show, write
from bcg_cli.device import resolve_device
from bcg_cli.dry_run import ShapeWords, estimated_memory
from bcg_cli.dry_run import dry_run as plan_capture
from bcg_cli.loading import ModelLoader, target_words
from bcg_cli.options import (
    DEFAULT_MODEL,
    AttentionBreakOption,
    AutoBreakOption,
    BreakOption,
    Device,
    DeviceOption,
    DryRunOption,
    DtypeOption,
    ExpectBreaksOption,
    ExpertParallelOption,
    FewestBreaksOption,
    GpuOption,
    HtmlOption,
    JsonOption,
    MemoryBudgetOption,
    ModelArgument,
    NumBucketsOption,
    RankTimeoutOption,
    SeedOption,
    TensorParallelOption,
    TokensOption,
    TracebackOption,
    WorkloadOption,
)
from bcg_cli.ranks import Ranks, talks

if TYPE_CHECKING:
    from bcg.runner import GraphRunner
    from bcg.summary import CaptureLog
    from bcg.sweep import BucketCapture
    from bcg.target import Target


def capture(
    context: typer.Context,
    model: ModelArgument = DEFAULT_MODEL,
    tokens: TokensOption = None,
    device: DeviceOption = Device.auto,
    break_globs: BreakOption = None,
    attention_break: AttentionBreakOption = True,
    auto_break: AutoBreakOption = True,
    fewest_breaks: FewestBreaksOption = False,
    workload: WorkloadOption = None,
    num_buckets: NumBucketsOption = None,
    memory_budget: MemoryBudgetOption = None,
    dry_run: DryRunOption = False,
    gpu: GpuOption = None,
    dtype: DtypeOption = None,
    seed: SeedOption = 0,
    expect_breaks: ExpectBreaksOption = None,
    json: JsonOption = None,
    html: HtmlOption = None,
    tp: TensorParallelOption = None,
    ep: ExpertParallelOption = False,
    rank_timeout: RankTimeoutOption = DEFAULT_TIMEOUT_S,
    traceback: TracebackOption = False,
) -> None:
    """Capture a model per token count, and show segments, breaks, time and memory."""
    if fewest_breaks and not auto_break:
        raise UsageError("--fewest-breaks needs --auto-break: it tries which breaks are needed")
    if dry_run and fewest_breaks:
        raise UsageError("--fewest-breaks needs replays, and a dry run has none")
    if gpu is not None and not dry_run:
        raise UsageError("--gpu is about a plan", hint="add --dry-run")
    bucket_words = read_bucket_words(tokens, workload, num_buckets, memory_budget)
    check_outputs({"--json": json, "--html": html}, {"MODEL": file_of(model), "--workload": workload})
    kind_of_model(model)
    words = target_words(model, dtype, seed, attention_break, break_globs, ep)
    ranks = Ranks(tp, ep, rank_timeout)
    shapes = ShapeWords(words, auto_break, ranks.size)
    options: dict[str, OptionValue] = {
        "tokens": list(bucket_words.tokens or ()),
        "device": device.value,
        "break": [*words.break_globs],
        "attention_break": attention_break,
        "auto_break": auto_break,
        "fewest_breaks": fewest_breaks,
        "workload": None if workload is None else str(workload),
        "buckets": num_buckets,
        "memory_budget": memory_budget,
        "gpu": gpu,
        "dtype": words.dtype,
        "seed": seed,
        "expect_breaks": expect_breaks,
        "tp": tp,
        "ep": ep,
    }
    if dry_run:
        plan_capture(shapes, bucket_words, None if gpu is None else find_gpu(gpu), options, expect_breaks, json, html)
        return
    if ranks.start(context.obj):
        return
    place = resolve_device(device)
    with console.users_code():
        choice = choose(bucket_words, lambda: estimated_memory(shapes))
    with (
        console.users_code(),
        console.steps() as steps,
        ranks.joined(place) as world,
        _said_unwritten(json, html),
    ):
        steps.begin(f"making {model}")
        from bcg.diagnose import Diagnosis, failures_explained, load_with_breaks
        from bcg.runner import GraphRunner
        from bcg.summary import CaptureLog, rank_rows

        load = ModelLoader(replace(words, device=str(place)), world)

        def buckets_for(target: Target) -> Sequence[int]:
            return choice.for_model(place.type, target.max_tokens)

        if auto_break:
            target, diagnosis = load_with_breaks(load, buckets_for, attention_break, fewest_breaks, steps.begin)
        else:
            target, diagnosis = load(attention_break), Diagnosis()
        options["tokens"] = list(buckets_for(target))
        fits = choice.fits(buckets_for(target))
        runner = GraphRunner(target)
        # Explaining runs the model again, and a rank can't do that alone.
        explained = contextlib.nullcontext() if world else failures_explained(target, buckets_for(target))
        log = CaptureLog(runner)
        failure: BcgError | None = None
        try:
            with explained:
                results = _capture_buckets(runner, buckets_for(target), steps, log)
        except BcgError as error:
            if world is not None:
                raise
            failure = error
        if failure is None:
            report = log.report(options, diagnosis, fits, rank_rows(runner, results))
            runner.reset()
        else:
            report = log.report(options, diagnosis, fits)
        left = choice.left_to_eager(target.max_tokens)
    if talks(world):
        if left is not None:
            console.note(left)
        if failure is not None:
            _deliver_failed(report, failure, json, html)
            raise failure
        deliver(report, json, html)
        _judge(report, expect_breaks)


@contextlib.contextmanager
def _said_unwritten(json: Path | None, html: Path | None) -> Iterator[None]:
    """Says so if what fails in the block, or ends it, leaves nothing to write."""
    from bcg.diagnose import UncapturableError

    try:
        yield
    except (UncapturableError, KeyboardInterrupt) as error:
        why = "no capture was begun" if isinstance(error, UncapturableError) else "the capture was interrupted"
        for path in (html, json):
            if path is not None:
                console.note(f"{path} is not written: {why}")
        raise


def _deliver_failed(report: CaptureReport, failure: BcgError, json: Path | None, html: Path | None) -> None:
    """Shows what was captured before a failure, and writes it with the failure's cards, which stderr shows."""
    cards: Sequence[Card] = getattr(failure, "cards", ())
    try:
        if report.totals.num_captured:
            show(report, json)
    finally:
        write(msgspec.structs.replace(report, cards=[*report.cards, *cards]), json, html)


def _capture_buckets(
    runner: GraphRunner, buckets: Sequence[int], steps: console.Steps, log: CaptureLog
) -> list[BucketCapture]:
    steps.begin(f"capturing {max(buckets)} tokens", total=len(buckets))
    pending = sorted(buckets, reverse=True)

    def show_next(result: BucketCapture) -> None:
        log.add(result)
        pending.pop(0)
        steps.advance(f"capturing {pending[0]} tokens" if pending else "measuring")

    return runner.capture(buckets, on_bucket=show_next)


def _judge(report: CaptureReport, expect_breaks: int | None) -> None:
    """Raises what the report's findings mean for the exit code."""
    captured = [bucket for bucket in report.buckets if bucket.status == "captured"]
    if not captured:
        raise BcgError("no bucket was captured: none fits into memory", hint="give smaller --tokens")
    if not any(bucket.num_segments for bucket in captured):
        raise BcgError(
            f"a capture of {report.model.name} holds no segment: everything in it runs as a break",
            hint="break at less of the model",
        )
    if expect_breaks is None:
        return
    others = [
        f"{bucket.num_breaks} at {bucket.tokens} tokens"
        if bucket in captured
        else f"{bucket.status} at {bucket.tokens} tokens"
        for bucket in report.buckets
        if bucket not in captured or bucket.num_breaks != expect_breaks
    ]
    if others:
        raise CheckFailure(
            f"expected {expect_breaks} breaks in every bucket, got {', '.join(others)}",
            hint="the map names breaks and modules, of layers that are alike the first (--json FILE has all), and the "
            "table says why a bucket was not captured",
        )
