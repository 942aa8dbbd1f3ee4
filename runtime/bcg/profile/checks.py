"""The first replays of a mode, compared with eager: a mode that is wrong gets no time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from bcg.checking.compare import are_alike, has_numbers
from bcg.checking.writes import written_parameters
from bcg.checking.yardstick import Exact, exact_results
from bcg.inputs import Batch
from bcg.modes import has_own_kernels
from bcg.modes.base import Preparation, bucket_batch
from bcg.modes.eager import Eager
from bcg.profile.agreement import Agreement, agreement
from bcg.profile.messages import Errors, Prepared
from bcg.profile.notes import held_to_limits
from bcg.report import ModeName, ReportWarning
from bcg.state import ModelState, restore_generators
from bcg.structure import map_tensors, same_bits, tensors_in
from bcg.target import Target

CHECK_SEEDS = (1, 2)
"""Inputs of the first two replays that are checked: a frozen result can't be right for both."""


@dataclass(frozen=True)
class Checks:
    """Batches, and what a mode has to make of them.

    Attributes:
        batches: By bucket, one a seed.
        eager: What eager gives for them; nothing for a bucket in which it does not fit.
        again: What it gives for the first of them once more, from the state that the last one left.
        put_back: Brings state and random generators to where they were before each of these runs.
        put_back_generators: Brings only the generators there, before a run from the state of the last one.
        exact: What eager gives in a wider dtype; empty for modes that run eager's own kernels.
    """

    batches: dict[int, list[Batch]]
    eager: dict[int, list[Any]]
    again: dict[int, Any]
    put_back: Callable[[], None]
    put_back_generators: Callable[[], None]
    exact: Exact = field(default_factory=Exact)


def make_checks(target: Target, mode: ModeName, buckets: Sequence[int]) -> Checks:
    """Run eager for what the first replays are compared with; before the mode is prepared, which takes the target over.

    Args:
        target: What is profiled; left as it was.
        mode: Whose replays are checked.
        buckets: Token counts.
    """
    batches = {tokens: [bucket_batch(target, tokens, seed * 1_000_003) for seed in CHECK_SEEDS] for tokens in buckets}
    eager, expected, again = Eager(target), {}, {}
    state = ModelState(target.module, written_parameters(target))
    with state.kept():
        for given in batches.values():  # what the first forward of a size makes for later ones is there in every run
            with suppress(torch.OutOfMemoryError):
                eager.run(_copy(given[0]))
        base = state.save()
        put_back, put_back_generators = partial(state.restore, base), partial(restore_generators, base)

        def run(batch: Batch) -> Any:
            put_back()
            return eager.run(_copy(batch))

        for tokens, given in batches.items():
            with suppress(torch.OutOfMemoryError):
                results = [map_tensors(torch.clone, run(batch)) for batch in given]
                put_back_generators()
                once_more = eager.run(_copy(given[0]))
                is_same = are_alike(results[0], once_more) and all(
                    map(same_bits, tensors_in(results[0]), tensors_in(once_more))
                )
                again[tokens] = results[0] if is_same else map_tensors(torch.clone, once_more)
                expected[tokens] = results
        exact = exact_results(target, run, batches, expected) if has_own_kernels(mode) else Exact()
    return Checks(batches, expected, again, put_back, put_back_generators, exact)


def _copy(batch: Batch) -> Batch:
    """Copy the inputs, which a forward may change in place."""
    return replace(batch, inputs=batch.copied_inputs())


def checked(one: Preparation, run: Callable[[Batch], Any], checks: Checks) -> Prepared:
    """Compare a bucket's first replays with eager.

    Args:
        one: How the bucket was made ready.
        run: Runs a batch in the mode.
        checks: The batches, and what eager gave for them.
    """
    if one.status != "measured":
        return Prepared(preparation=one)
    if one.tokens not in checks.eager:
        return Prepared(preparation=replace(one, status="out of memory", reason="eager itself does not fit"))
    batches, eager, again = checks.batches[one.tokens], checks.eager[one.tokens], checks.again[one.tokens]
    if not all(map(has_numbers, eager)):
        reason = "eager gives nothing but NaN: nothing can be compared"
        return Prepared(preparation=replace(one, status="failed", reason=reason))
    exact = checks.exact.results.get(one.tokens, [None] * len(batches))
    first = later = Agreement()
    try:
        for batch, result, exactly in zip(batches, eager, exact, strict=True):
            checks.put_back()
            first = first.joined(agreement(result, run(_copy(batch)), exactly))
        if again is eager[0] or exact[0] is None:  # else nothing is known of how far it may be off
            checks.put_back_generators()
            later = agreement(again, run(_copy(batches[0])), exact[0])
        checks.put_back()
    except Exception as error:  # noqa: BLE001 - a mode that can't replay is a row of the report
        reason = f"the first replay failed: {type(error).__name__}: {error}".splitlines()[0][:300]
        return Prepared(preparation=replace(one, status="failed", reason=reason))
    found = first.joined(later)
    worst = found.worst
    if not found.within:
        one = replace(one, status="wrong", reason=_why_wrong(first, later))
    errors = Errors(
        max_abs_error=found.max_abs_error,
        relative_error=found.relative_error,
        bitwise=found.bitwise,
        error_vs_exact=None if worst is None else worst.result,
        eager_error_vs_exact=None if worst is None else worst.eager,
    )
    return Prepared(preparation=one, errors=errors)


def _why_wrong(first: Agreement, later: Agreement) -> str:
    which, found = ("first replay differs from eager", first)
    if first.within:
        which, found = ("replay from the state that others left differs from eager", later)
    return f"its {which}: {found.worst}" if found.alike else f"its {which}: relative error {found.relative_error:.2g}"


def check_notes(mode: ModeName, buckets: Sequence[Prepared], checks: Checks) -> list[ReportWarning]:
    """Say which buckets were judged by fixed limits because eager could not be run in a wider dtype, and why not."""
    hit = [
        one.preparation.tokens for one in buckets if one.errors.bitwise is False and one.errors.error_vs_exact is None
    ]
    lack = checks.exact.lack
    return [held_to_limits(mode, hit, lack.cause, lack.remedy)] if hit and lack else []
