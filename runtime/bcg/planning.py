"""A dry run: what a capture would come to, from shapes alone.

The forward runs under `FakeTensorMode`: a survey finds segments, breaks, externals and hazards, what can't be captured
gets the smallest break that a survey is content with, and a rehearsal
gives the order in which a capture would allocate and free. The pool is then laid out as a runner lays it out
(`bcg.layout`), so that estimate and capture share one model of the allocator.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from typing import TypeVar

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from bcg.attention import learning_rows
from bcg.context import forward_context
from bcg.device import find_device
from bcg.diagnose import UncapturableError, break_where_found
from bcg.diagnose.cards import cards_of
from bcg.diagnose.survey import Finding, Survey
from bcg.environment import environment
from bcg.errors import BcgError, ModelError, first_line
from bcg.guesses import Guesses
from bcg.input_makers import PROBE_SIZES
from bcg.inputs import InputSpec
from bcg.layout import PoolEvent, peak_bytes, plan_arenas, reserved_bytes
from bcg.models.build import quiet
from bcg.probe import find_output_dims, hint_about_inputs
from bcg.rehearsal import rehearse, rehearsed_lengths
from bcg.report import (
    AutomaticBreak,
    InputRow,
    OptionValue,
    PlanBucket,
    PlanReport,
    PlanTotals,
    number_steps,
    step_name,
)
from bcg.rules import refuse_unmet
from bcg.structure import local_part, storage_key, tensors_in
from bcg.summary import break_row, segment_row
from bcg.target import Target, make_batch
from bcg.warmup import cut_to, distinct_prefixes
from bcg.whereabouts import users_line

_Result = TypeVar("_Result")

GRAPH_BYTES = 2**19
"""Driver memory of one instantiated graph: about 0.5 MiB on an H200 for Qwen3-8B and NemotronH-8B, more for others."""

NOT_REPLAYED = "a dry run replays nothing; a capture tries them, and may need larger ones"

UNKNOWN = (
    "values: branches and shapes that depend on data, beyond the host reads that are named",
    "kernels, their number and their time; libraries' workspaces, and the context of the driver",
    "transient memory of breaks and warm-ups, which lies outside the pool",
    "whether replays equal eager: `bcg replay-check` tells",
)
UNKNOWN_MIXERS = "whether the GPU runs recurrent mixers with kernels that tell requests apart: there they are no breaks"


def plan(
    target: Target,
    mode: FakeTensorMode,
    buckets: Sequence[int],
    options: Mapping[str, OptionValue],
    gpu: tuple[str, int] | None = None,
    on_step: Callable[[str], None] = lambda _: None,
    *,
    auto_break: bool = True,
) -> PlanReport:
    """Plan the capture of a target that has only shapes.

    Args:
        target: From `bcg.models.shapes.load_shapes`.
        mode: The mode that it was made under.
        buckets: Token counts.
        options: Of the run, for the record.
        gpu: Name and bytes of the GPU on which it should fit.
        on_step: Told what happens next.
        auto_break: Break where the model can't be captured; or say why it can't.

    Raises:
        UncapturableError: Something can't be captured, and no break below the root helps, or none is wanted.
        UsageError: A function or operation that was to be a break is none.
        ModelError: The forward fails, or returns what a capture would refuse.
    """
    ordered = sorted(set(buckets), reverse=True)
    on_step(f"surveying {ordered[0]} tokens")
    if auto_break:
        automatic, found = break_from_shapes(target, mode, ordered[0])
    else:
        automatic, found = [], _survey(target, mode, ordered[0])
    _refuse_findings(target, found)
    refuse_unmet(target.break_rules, (step.label for step in found.breaks), target.name)
    _refuse_outputs(target, mode)
    rows = []
    for tokens in ordered:
        on_step(f"laying out the pool for {tokens} tokens")
        rows.append(_bucket(target, mode, tokens, found, ordered[0]))
    inputs = [_input_row(spec, ordered[0]) for spec in target.input_specs]
    return PlanReport(
        environment=environment(target.device),
        model=target.info,
        options=dict(options),
        buckets=rows,
        totals=_totals(target, rows, inputs, found, gpu),
        inputs=inputs,
        map_tokens=ordered[0],
        map=[step_name(*step) for step in number_steps(found.steps)],
        segments=[segment_row(index, tape) for index, tape in enumerate(found.segments)],
        breaks=[break_row(index, step) for index, step in enumerate(found.breaks)],
        warnings=list(target.warnings),
        automatic_breaks=automatic,
        unknown=[*UNKNOWN, *([UNKNOWN_MIXERS] if target.break_rules.mixers else [])],
    )


def break_from_shapes(target: Target, mode: FakeTensorMode, tokens: int) -> tuple[list[AutomaticBreak], Survey]:
    """Put the smallest breaks around what a survey finds; they are left in effect on the target.

    Returns:
        The breaks, and the survey with them, which finds nothing any more.

    Raises:
        UncapturableError: No break below the root helps.
        ModelError: The forward fails.
    """
    surveys: list[Survey] = []

    def look() -> list[Finding]:
        surveys.append(_survey(target, mode, tokens))
        return surveys[-1].findings

    automatic = break_where_found(target, look, NOT_REPLAYED)
    return automatic, surveys[-1]


def _refuse_findings(target: Target, found: Survey) -> None:
    if found.findings:
        first = found.findings[0]
        raise UncapturableError(
            f"{target.name} can't be captured: {first.operation} at {first.source}: {first.reason}",
            cards_of(found.findings),
            hint="break there, as the card says, or leave --no-auto-break away",
        )


def _refuse_outputs(target: Target, mode: FakeTensorMode) -> None:
    """Refuse what the first forwards of a capture would refuse: outputs whose rows can't be told."""

    def run(inputs: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
        with _cut(target) as shorter:
            return tensors_in(target.run(shorter, inputs))

    small, large = (_from_shapes(target, mode, tokens, run) for tokens in PROBE_SIZES)
    find_output_dims(target.name, small, large)


def pool_bytes(target: Target, mode: FakeTensorMode, tokens: int) -> int:
    """Estimate the pool whose largest bucket has that many tokens, laid out as a runner does."""
    events = _events(target, mode, tokens)
    return reserved_bytes(events, plan_arenas(events))


def graph_bytes(target: Target, mode: FakeTensorMode) -> int:
    """Estimate what the driver takes for the instantiated graphs of one bucket."""
    return GRAPH_BYTES * len(_survey(target, mode, PROBE_SIZES[0]).segments)


def _survey(target: Target, mode: FakeTensorMode, tokens: int) -> Survey:
    def run(inputs: Mapping[str, torch.Tensor]) -> Survey:
        found = Survey(find_device(target.device), records_collectives=True)  # as the GPU does that it plans for
        with found.following():
            target(inputs)
        return found

    return _from_shapes(target, mode, tokens, run)


def _from_shapes(
    target: Target, mode: FakeTensorMode, tokens: int, run: Callable[[Mapping[str, torch.Tensor]], _Result]
) -> _Result:
    """Call `run` with inputs that have only shapes, after what a capture does before it; guess the values it reads.

    Raises:
        ModelError: The forward fails, whichever way a condition goes.
    """
    guesses = Guesses()
    while True:
        try:
            with mode, guesses, quiet(), _unlogged(), learning_rows():
                batch = make_batch(target, (tokens,), torch.Generator("cpu"))
                with forward_context(batch.context()):
                    _warm_up(target, batch.copied_inputs())
                    return run(batch.inputs)
        except BcgError:
            raise
        except Exception as error:
            if guesses.deny_last():
                continue
            line = users_line(error)
            raise ModelError(
                f"the forward of {target.name} fails on shapes alone{f' at {line}' if line else ''}: "
                f"{type(error).__name__}: {first_line(error)}",
                hint=_hint(target, error),
            ) from error


def _hint(target: Target, error: Exception) -> str:
    if "mat_a" in str(error):  # the grouped product's own word for its first argument, in all versions of torch
        return "torch's grouped product of experts does not take this dtype: give --dtype bfloat16"
    about_inputs = hint_about_inputs(target.module)
    return about_inputs or "a dry run has no values to read: capture it with weights, or see --traceback"


@contextlib.contextmanager
def _unlogged() -> Iterator[None]:
    """Keep torch from logging a traceback for an operation that fails on shapes: what it raises says all."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _bucket(target: Target, mode: FakeTensorMode, tokens: int, found: Survey, largest: int) -> PlanBucket:
    events = _events(target, mode, tokens)
    whole = sum(step.boundary_bytes for step in found.breaks)
    return PlanBucket(
        tokens=tokens,
        pool_bytes=reserved_bytes(events, plan_arenas(events)),
        used_bytes=peak_bytes(events),
        boundary_bytes=whole * tokens // largest,
    )


def _events(target: Target, mode: FakeTensorMode, tokens: int) -> list[PoolEvent]:
    """Rehearse, as a runner does before it makes the pool."""
    layers = distinct_prefixes(target.module)
    return _from_shapes(
        target,
        mode,
        tokens,
        lambda inputs: rehearse(lambda short: target.run(short, inputs), target.module, target.device.type, layers),
    )


def _warm_up(target: Target, inputs: Mapping[str, torch.Tensor]) -> None:
    """Run the target once where a capture would find something after its warm-up.

    The first time that the operations of a sharded model meet a shape they work out how it is sharded, by operations
    of their own; and values are pinned from the forward before.
    """
    if target.warms_up_whole:
        target(inputs)
    elif any(local_part(parameter) is not parameter for parameter in target.module.parameters()):
        with _cut(target) as shorter:
            target.run(shorter, inputs)


def _cut(target: Target) -> contextlib.AbstractContextManager[torch.nn.Module]:
    """Give the target's module with the few layers of each list that a rehearsal runs."""
    return cut_to(target.module, rehearsed_lengths(distinct_prefixes(target.module)))


def _totals(
    target: Target,
    rows: Sequence[PlanBucket],
    inputs: Sequence[InputRow],
    found: Survey,
    gpu: tuple[str, int] | None,
) -> PlanTotals:
    held = map(local_part, (*target.module.parameters(), *target.module.buffers()))
    tensors = {storage_key(tensor): tensor for tensor in held}
    weight_bytes = sum(tensor.untyped_storage().nbytes() for tensor in tensors.values())
    input_bytes = sum(row.num_bytes for row in inputs)
    largest_pool = max(row.pool_bytes for row in rows)
    all_graphs = GRAPH_BYTES * len(found.segments) * len(rows)
    return PlanTotals(
        weight_bytes=weight_bytes,
        input_bytes=input_bytes,
        pool_bytes=largest_pool,
        graph_bytes=all_graphs,
        needed_bytes=weight_bytes + input_bytes + largest_pool + all_graphs,
        gpu=gpu[0] if gpu else None,
        gpu_bytes=gpu[1] if gpu else None,
    )


def _input_row(spec: InputSpec, tokens: int) -> InputRow:
    return InputRow(
        name=spec.name,
        dtype=str(spec.dtype).removeprefix("torch."),
        shape=list(spec.shape),
        num_bytes=prod(spec.shape_for(tokens)) * spec.dtype.itemsize,
    )
