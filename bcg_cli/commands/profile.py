"""``bcg profile``: what each mode gains in time and costs in start-up and memory."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from bcg.buckets import parse_buckets
from bcg.distributed.member import DEFAULT_TIMEOUT_S, this_member
from bcg.errors import CheckFailure, UsageError
from bcg.model_names import kind_of_model
from bcg.report import MODES, ModeName, ProfileReport
from bcg_cli import console
from bcg_cli.delivery import check_outputs, deliver, file_of
from bcg_cli.device import resolve_device
from bcg_cli.loading import target_words
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
from bcg_cli.ranks import Ranks


def profile(
    context: typer.Context,
    model: ModelArgument = DEFAULT_MODEL,
    tokens: TokensOption = None,
    device: DeviceOption = Device.auto,
    modes: Annotated[
        str, typer.Option("--modes", metavar="MODE,…", help=f"Which to compare: {', '.join(MODES)}.")
    ] = ",".join(MODES),
    rounds: Annotated[
        int, typer.Option("--rounds", metavar="N", min=1, help="Rounds in which the modes take turns.")
    ] = 10,
    break_globs: BreakOption = None,
    attention_break: AttentionBreakOption = True,
    dtype: DtypeOption = None,
    seed: SeedOption = 0,
    json: JsonOption = None,
    html: HtmlOption = None,
    trace: Annotated[
        Path | None,
        typer.Option("--trace", metavar="FILE", help="Write a trace for Perfetto, with segments and breaks named."),
    ] = None,
    nvtx: Annotated[
        bool, typer.Option("--nvtx/--no-nvtx", help="Give an attached profiling tool NVTX ranges, or none.")
    ] = True,
    nsys: Annotated[bool, typer.Option("--nsys", help="Print the command line for Nsight Systems, and stop.")] = False,
    ncu: Annotated[bool, typer.Option("--ncu", help="Print the command line for Nsight Compute, and stop.")] = False,
    tp: TensorParallelOption = None,
    ep: ExpertParallelOption = False,
    rank_timeout: RankTimeoutOption = DEFAULT_TIMEOUT_S,
    traceback: TracebackOption = False,
) -> None:
    """Compare the ways to execute a model: latency, start-up and memory per token count."""
    chosen = _parse_modes(modes)
    buckets = None if tokens is None else parse_buckets(tokens)
    check_outputs({"--json": json, "--html": html, "--trace": trace}, {"MODEL": file_of(model)})
    kind_of_model(model)
    older = _written_at(trace)
    ranks = Ranks(tp, ep, rank_timeout)
    if nsys or ncu:
        if not nvtx:
            raise UsageError("--nsys and --ncu need the NVTX ranges", hint="leave out --no-nvtx")
        _print_commands(_words_for_tools(context.obj), chosen, nsys=nsys, ncu=ncu)
        return
    if ranks.start(context.obj):
        return
    member = this_member()
    talks = member is None or member.rank == 0
    place = resolve_device(device)
    with console.users_code(), console.steps() as steps:
        from bcg.profile.plan import Plan
        from bcg.profile.run import ProfileInterrupted, run_profile

        words = target_words(model, dtype, seed, attention_break, break_globs, ep)
        plan = Plan(
            words=replace(words, device=str(place)),
            buckets=buckets or (),
            modes=chosen,
            num_rounds=rounds,
            nvtx=nvtx,
            trace=None if trace is None else str(trace.resolve()),
            num_ranks=None if member is None else member.size,
            rank_timeout_s=rank_timeout,
        )
        interrupted: ProfileInterrupted | None = None
        try:
            with contextlib.nullcontext() if member else _interrupted_by_termination():
                report = run_profile(plan, steps.begin)
        except ProfileInterrupted as error:
            report, interrupted = error.report, error
    if not talks:
        return
    deliver(report, json, html)
    if interrupted is not None:
        raise interrupted
    if trace is not None and _written_at(trace) != older:
        console.note(f"trace written to {trace}; open it at ui.perfetto.dev")
    _judge(report)


@contextlib.contextmanager
def _interrupted_by_termination() -> Iterator[None]:
    """Let SIGTERM, such as that of a CI's time limit, do what Ctrl-C does: what was measured is kept."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _judge(report: ProfileReport) -> None:
    """Raises what a mode with wrong results means for the exit code."""
    rows = [(bucket.tokens, row) for bucket in report.buckets for row in bucket.modes]
    wrong = [(tokens, row) for tokens, row in rows if row.status == "wrong"]
    if wrong:
        tokens, row = wrong[0]
        raise CheckFailure(
            f"{len(wrong)} of {len(rows)} rows have no time, because their results differ from eager's: first "
            f"{row.mode} at {tokens:,} tokens",
            hint="bcg replay-check finds where replays begin to differ",
        )


def _written_at(path: Path | None) -> int | None:
    return None if path is None or not path.is_file() else path.stat().st_mtime_ns


def _parse_modes(text: str) -> tuple[ModeName, ...]:
    names = [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in MODES]
    if unknown:
        raise UsageError(f"--modes: there is no mode {unknown[0]!r}", hint=f"modes: {', '.join(MODES)}")
    return tuple(mode for mode in MODES if mode in names)


def _words_for_tools(words: Sequence[str]) -> list[str]:
    """The words of this command without those that the run under a tool has of its own."""
    kept, rest = [], iter(words[1:])
    for word in rest:
        option, equals, _ = word.partition("=")
        if option in ("--modes", "--rounds"):
            if not equals:
                next(rest)
        elif word not in ("--nsys", "--ncu"):
            kept.append(word)
    return kept


def _print_commands(words: Sequence[str], modes: tuple[ModeName, ...], *, nsys: bool, ncu: bool) -> None:
    from bcg.profile.run import traced_mode
    from bcg.profile.tools import ncu_command, nsys_command

    mode = traced_mode(modes)
    if nsys:
        console.raw_data(f"{nsys_command(words, mode)}\n".encode())
    if ncu:
        console.raw_data(f"{ncu_command(words, mode)}\n".encode())
