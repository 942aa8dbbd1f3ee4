"""``bcg capture``: a model in, breakable CUDA graphs per token count out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bcg.buckets import default_buckets, parse_buckets
from bcg.errors import BcgError, CheckFailure
from bcg.report import CaptureReport, OptionValue
from bcg_cli import console
from bcg_cli.delivery import check_outputs, deliver
from bcg_cli.device import resolve_device
from bcg_cli.options import (
    DEFAULT_MODEL,
    AttentionBreakOption,
    BreakOption,
    Device,
    DeviceOption,
    DtypeOption,
    ExpectBreaksOption,
    HtmlOption,
    JsonOption,
    ModelArgument,
    SeedOption,
    TokensOption,
    TracebackOption,
)

if TYPE_CHECKING:
    from bcg.runner import BucketCapture, GraphRunner


def capture(
    model: ModelArgument = DEFAULT_MODEL,
    tokens: TokensOption = None,
    device: DeviceOption = Device.auto,
    break_globs: BreakOption = None,
    attention_break: AttentionBreakOption = True,
    dtype: DtypeOption = None,
    seed: SeedOption = 0,
    expect_breaks: ExpectBreaksOption = None,
    json: JsonOption = None,
    html: HtmlOption = None,
    traceback: TracebackOption = False,
) -> None:
    """Capture a model per token count, and show segments, breaks, time and memory."""
    buckets = None if tokens is None else parse_buckets(tokens)
    check_outputs(json, html)
    place = resolve_device(device)
    globs = list(break_globs or ())
    options: dict[str, OptionValue] = {
        "tokens": list(buckets or ()),
        "device": device.value,
        "break": [*globs],
        "attention_break": attention_break,
        "dtype": None if dtype is None else dtype.value,
        "seed": seed,
        "expect_breaks": expect_breaks,
    }
    with console.users_code(), console.steps() as steps:
        steps.begin(f"making {model}")
        from bcg.models import load_target
        from bcg.runner import GraphRunner
        from bcg.summary import capture_report

        target = load_target(
            model,
            device=place,
            dtype=None if dtype is None else dtype.value,
            seed=seed,
            attention_break=attention_break,
            break_globs=globs,
        )
        if buckets is None:
            buckets = default_buckets(place.type, target.max_tokens)
            options["tokens"] = list(buckets)
        runner = GraphRunner(target)
        report = capture_report(runner, _capture_buckets(runner, buckets, steps), options)
    deliver(report, json, html)
    _judge(report, expect_breaks)


def _capture_buckets(runner: GraphRunner, buckets: Sequence[int], steps: console.Steps) -> list[BucketCapture]:
    steps.begin(f"capturing {max(buckets)} tokens", total=len(buckets))
    pending = sorted(buckets, reverse=True)

    def show_next(_captured: object) -> None:
        pending.pop(0)
        steps.advance(f"capturing {pending[0]} tokens" if pending else "measuring")

    return runner.capture(buckets, on_bucket=show_next)


def _judge(report: CaptureReport, expect_breaks: int | None) -> None:
    """Raises what the report's findings mean for the exit code."""
    failed = [bucket for bucket in report.buckets if bucket.status == "failed"]
    if failed:
        raise BcgError(f"the capture of {failed[0].tokens} tokens failed: {failed[0].error}")
    captured = [bucket for bucket in report.buckets if bucket.status == "captured"]
    if not captured:
        raise BcgError("no bucket was captured: none fits into memory", hint="give smaller --tokens")
    if expect_breaks is None:
        return
    others = [
        f"{bucket.num_breaks} at {bucket.tokens} tokens" for bucket in captured if bucket.num_breaks != expect_breaks
    ]
    if others:
        raise CheckFailure(
            f"expected {expect_breaks} breaks in every bucket, got {', '.join(others)}",
            hint="the map names each break and its module",
        )
