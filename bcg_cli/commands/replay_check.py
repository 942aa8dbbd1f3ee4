"""``bcg replay-check``: prove that replay equals eager, and name what is wrong when it doesn't."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from bcg.buckets import default_buckets, parse_buckets
from bcg.distributed.member import DEFAULT_TIMEOUT_S
from bcg.errors import UsageError
from bcg.model_names import kind_of_model
from bcg.prompts import read_prompts, refuse_without_tokenizer
from bcg.report import OptionValue
from bcg_cli import console
from bcg_cli.delivery import check_outputs, deliver, file_of
from bcg_cli.device import resolve_device
from bcg_cli.loading import ModelLoader, target_words
from bcg_cli.options import (
    DEFAULT_MODEL,
    AttentionBreakOption,
    BreakOption,
    Device,
    DeviceOption,
    DtypeOption,
    ExpertParallelOption,
    HtmlOption,
    JsonOption,
    ModelArgument,
    RankTimeoutOption,
    SeedOption,
    TensorParallelOption,
    TokensOption,
    TracebackOption,
)
from bcg_cli.ranks import Ranks, talks


def replay_check(
    context: typer.Context,
    model: ModelArgument = DEFAULT_MODEL,
    tokens: TokensOption = None,
    device: DeviceOption = Device.auto,
    break_globs: BreakOption = None,
    attention_break: AttentionBreakOption = True,
    auto_break: Annotated[
        bool,
        typer.Option(
            "--auto-break/--no-auto-break",
            help="Check with the automatic breaks of `bcg capture` in place; or the model as it is.",
        ),
    ] = False,
    rounds: Annotated[
        int, typer.Option("--rounds", metavar="N", min=1, help="How often every batch is replayed, in other orders.")
    ] = 2,
    locate: Annotated[
        bool,
        typer.Option(
            "--locate/--no-locate",
            help="After a mismatch in one process, find the first module that differs, and why.",
        ),
    ] = True,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            metavar="FILE",
            help="Replay these texts too: one a line, or JSON lines with `prompt`; for a model with a tokenizer.",
        ),
    ] = None,
    rtol: Annotated[
        float | None,
        typer.Option(
            "--rtol",
            metavar="X",
            help="Difference that still matches, relative to the tensor's largest magnitude.",
            show_default="by dtype",
        ),
    ] = None,
    atol: Annotated[float, typer.Option("--atol", metavar="X", help="Absolute difference that still matches.")] = 0.0,
    dtype: DtypeOption = None,
    seed: SeedOption = 0,
    json: JsonOption = None,
    html: HtmlOption = None,
    tp: TensorParallelOption = None,
    ep: ExpertParallelOption = False,
    rank_timeout: RankTimeoutOption = DEFAULT_TIMEOUT_S,
    traceback: TracebackOption = False,
) -> None:
    """Replay every bucket with other inputs, compare with eager, and name what is wrong where they differ."""
    buckets = None if tokens is None else parse_buckets(tokens)
    for name, value in (("--rtol", rtol), ("--atol", atol)):
        if value is not None and not 0 <= value < float("inf"):
            raise UsageError(f"{name} must be a number of at least 0, got {value:g}")
    texts = None if prompts is None else read_prompts(prompts)
    check_outputs({"--json": json, "--html": html}, {"MODEL": file_of(model), "--prompts": prompts})
    kind = kind_of_model(model)
    if texts is not None:
        refuse_without_tokenizer(model, kind)
    ranks = Ranks(tp, ep, rank_timeout)
    if ranks.start(context.obj):
        return
    place = resolve_device(device)
    words = replace(target_words(model, dtype, seed, attention_break, break_globs, ep), device=str(place))
    options: dict[str, OptionValue] = {
        "tokens": list(buckets or ()),
        "device": device.value,
        "break": [*words.break_globs],
        "attention_break": attention_break,
        "auto_break": auto_break,
        "rounds": rounds,
        "locate": locate,
        "prompts": None if prompts is None else str(prompts),
        "rtol": rtol,
        "atol": atol,
        "dtype": words.dtype,
        "seed": seed,
        "tp": tp,
        "ep": ep,
    }
    with console.users_code(), console.steps() as steps, ranks.joined(place) as world:
        steps.begin(f"making {model}")
        from bcg.checking import UnfinishedCheckError, check, check_ranks, failure_of
        from bcg.diagnose import Diagnosis, failures_explained, load_with_breaks
        from bcg.target import Target

        load = ModelLoader(words, world)

        def buckets_for(target: Target) -> tuple[int, ...]:
            return buckets or default_buckets(place.type, target.max_tokens)

        started = time.perf_counter()
        if auto_break:
            target, diagnosis = load_with_breaks(load, buckets_for, attention_break, False, steps.begin)
        else:
            target, diagnosis = load(attention_break), Diagnosis()
        model_ms = (time.perf_counter() - started) * 1e3
        options["tokens"] = list(buckets_for(target))
        unfinished = None
        try:
            # Explaining runs the model again, and a rank can't do that alone.
            explained = contextlib.nullcontext() if world else failures_explained(target, buckets_for(target))
            with _pointing_to_automatic_breaks(auto_break), explained:
                report = check(
                    target,
                    buckets=buckets_for(target),
                    num_rounds=rounds,
                    # Locating runs forwards that a rank can't run alone.
                    locates=locate and world is None,
                    prompts=texts,
                    rtol=rtol,
                    atol=atol,
                    options=options,
                    on_step=steps.begin,
                )
        except UnfinishedCheckError as error:
            if world is not None:
                raise
            report, unfinished = error.report, error
        if world is not None:
            whole = None if target.info.source == "factory" else lambda: load.whole(attention_break)
            report = check_ranks(target, report, whole)
    report = msgspec.structs.replace(
        report,
        timing=msgspec.structs.replace(report.timing, model_ms=model_ms),
        automatic_breaks=diagnosis.automatic_breaks,
    )
    if not talks(world):
        return
    deliver(report, json, html)
    failure = unfinished or failure_of(report)
    if failure is not None:
        raise failure


@contextlib.contextmanager
def _pointing_to_automatic_breaks(has_them: bool) -> Iterator[None]:
    """Let a failed capture say that breaks could be found by themselves, as `bcg capture` does by default."""
    from bcg.errors import CaptureError

    try:
        yield
    except CaptureError as error:
        if not has_them:
            hint = "give --auto-break to check with the breaks of `bcg capture`"
            error.hint = f"{hint}; or {error.hint}" if error.hint else hint
        raise
