"""`check`: is replay equal to eager, and what is wrong when it isn't? From a model to a report."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import torch
from torch import nn

from bcg.attention_interface import attention_kept
from bcg.buckets import check_buckets, default_buckets, token_counts
from bcg.checking.compare import Tolerance, finite
from bcg.checking.explain import Explanation, explain
from bcg.checking.outcome import bucket_row, failure_of, overall_verdict
from bcg.checking.prompts import (
    check_prompts,
    headless_warning,
    is_language_model,
    language_model_head,
    tokenize,
)
from bcg.checking.spread import Spread
from bcg.checking.verdicts import LostDeviceError, Verification
from bcg.checking.verification import CHECK_SEED, verify
from bcg.checking.warnings import draw_warnings, hook_warnings, outside_warning, padding_warnings
from bcg.checking.writes import written_by_segments, written_input_warnings, written_parameters
from bcg.compilations import late_compilation_warnings
from bcg.device import find_device
from bcg.environment import environment
from bcg.errors import BcgError, UsageError
from bcg.input_makers import MakeExtras, MakeInputs
from bcg.report import (
    CheckReport,
    CheckTiming,
    OptionValue,
    PromptCheck,
    ReportWarning,
)
from bcg.rules import forwards_kept
from bcg.runner import GraphRunner
from bcg.state import ModelState, Snapshot
from bcg.sweep import BucketCapture
from bcg.target import Target


def check(
    model: Target | nn.Module | str,
    *,
    buckets: Sequence[int] | None = None,
    make_inputs: MakeInputs | None = None,
    make_extras: MakeExtras | None = None,
    device: str | torch.device = "cpu",
    num_rounds: int = 2,
    locates: bool = True,
    prompts: Sequence[str] | None = None,
    rtol: float | None = None,
    atol: float = 0.0,
    options: Mapping[str, OptionValue] | None = None,
    on_step: Callable[[str], None] = lambda _: None,
) -> CheckReport:
    """Capture a model, replay every bucket with other inputs, compare with eager, and name what is wrong.

    Args:
        model: A target, a module, or what the command line takes as MODEL.
        buckets: Token counts; by default those of the device.
        make_inputs: Makes a module's inputs, by default token ids; a target, or a model that is named, has its own.
        make_extras: Makes what a module's breaks find in the forward context, such as block tables.
        device: Where a module, which is back on its own afterwards, or the model that is named, runs; a target has its
            own.
        num_rounds: How often every batch is replayed.
        locates: After a mismatch, capture again to find the first module that differs, and why.
        prompts: Texts for a model with a tokenizer: packed into batches, replayed and compared with eager, and for a
            causal language model the greedy next token of each as well.
        rtol: Largest difference that counts as a match, relative to the tensor's largest magnitude; by default
            that of the dtype: 1e-6 for float32, 1.6e-2 for bfloat16, 2e-3 for float16.
        atol: Absolute difference that counts as a match in any case.
        options: For the report.
        on_step: Told what happens next.

    Raises:
        UsageError: A bucket, the tolerances or the number of rounds make no sense, the model is none of the three,
            takes no prompts or has inputs of its own, or there is no such device.
        CaptureError: The capture failed.
        ModelError: The model could not be made, or its eager forward fails.
        UnfinishedCheckError: A replay took the device from this process; it holds the report so far.
    """
    tolerance = _tolerance(rtol, atol)
    if num_rounds < 1:
        raise UsageError(f"a check needs at least one round, got {num_rounds}")
    if not isinstance(model, (Target, nn.Module, str)):
        raise UsageError(
            f"a model must be a module, a target or a name, got {type(model).__name__}",
            hint="give a torch.nn.Module that calls it",
        )
    for what, given_one in (("make_inputs", make_inputs), ("make_extras", make_extras)):
        if given_one is not None and not isinstance(model, nn.Module):
            name = model if isinstance(model, str) else model.name
            raise UsageError(f"{what} is for a module: {name} has inputs of its own", hint="leave it out")
    given = None if buckets is None else check_buckets(token_counts(buckets))
    if not isinstance(model, Target):
        device = _place(device)
    with _left_as_it_was(model, device):
        if isinstance(model, nn.Module):
            model.to(device)
        target = _target(model, make_inputs, make_extras, device)
        wanted = given or default_buckets(target.device.type, target.max_tokens)
        encoded = None if prompts is None else tokenize(target, prompts)
        with find_device(target.device).as_recorded():
            return _Check(target, tolerance, on_step).run(wanted, num_rounds, locates, encoded, dict(options or {}))


def assert_graph_safe(model: Target | nn.Module | str, **options: Any) -> CheckReport:
    """Check a model and raise unless every bucket matches: "my model is graph-safe" as one line of a test.

    Args:
        model: As for `check`.
        options: As for `check`.

    Raises:
        CheckFailure: Something does not match, or nothing can be told; the message names it.
    """
    report = check(model, **options)
    failure = failure_of(report)
    if failure is not None:
        raise failure
    return report


def _tolerance(rtol: float | None, atol: float) -> Tolerance:
    for name, value in (("rtol", rtol), ("atol", atol)):
        if value is not None and not (value >= 0 and math.isfinite(value)):
            raise UsageError(f"{name} must be a number of at least 0, got {value}")
    return Tolerance(rtol, atol)


@contextlib.contextmanager
def _left_as_it_was(model: Target | nn.Module | str, device: str | torch.device) -> Iterator[None]:
    """Leave a module as it was: state, training flags, what needs gradients, forwards, attention, and its device."""
    if not isinstance(model, nn.Module):
        yield
        return
    state = ModelState(model)
    base = state.save()
    training = [module for module in model.modules() if module.training]
    parameters = list(model.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    places = [(tensor, tensor.data) for tensor in (*parameters, *gradients)]
    try:
        with attention_kept(model), forwards_kept(model):
            yield
    except Exception:
        if not find_device(device).is_lost():
            state.restore(base)
        raise
    else:
        state.restore(base)
    finally:
        for module in training:
            module.training = True
        for tensor, data in places:
            if tensor.device != data.device:
                tensor.data = data
        for parameter in trained:
            with torch.inference_mode(parameter.is_inference()):
                parameter.requires_grad_(True)


def _target(
    model: Target | nn.Module | str,
    make_inputs: MakeInputs | None,
    make_extras: MakeExtras | None,
    device: str | torch.device,
) -> Target:
    if isinstance(model, Target):
        return model
    from bcg.models import load_target, make_target

    if isinstance(model, str):
        return load_target(model, device=device)
    return make_target(model, make_inputs, make_extras, device=device)


def _place(device: str | torch.device) -> torch.device:
    try:
        return find_device(device).torch_device
    except RuntimeError as error:
        raise UsageError(f"there is no device {device!r}", hint="use 'cpu' or 'cuda'") from error


class UnfinishedCheckError(BcgError):
    """A check that could not be ended, because the device was lost.

    Attributes:
        report: What had been found before.
    """

    def __init__(self, error: LostDeviceError, report: CheckReport) -> None:
        super().__init__(error.message, hint=error.hint)
        self.report = report


def _since(started: float) -> float:
    return (time.perf_counter() - started) * 1e3


class _Check:
    """One run of `check`."""

    def __init__(self, target: Target, tolerance: Tolerance, on_step: Callable[[str], None]) -> None:
        self._target = target
        self._tolerance = tolerance
        self._on_step = on_step
        self._state = ModelState(target.module)
        self._runner = GraphRunner(target)
        self._warnings: list[ReportWarning] = []

    def run(
        self,
        buckets: Sequence[int],
        num_rounds: int,
        locates: bool,
        encoded: Sequence[Sequence[int]] | None,
        options: dict[str, OptionValue],
    ) -> CheckReport:
        self._state.extra.update(written_parameters(self._target))
        before = self._state.save()
        started = time.perf_counter()
        results = self._runner.capture(buckets, on_bucket=lambda done: self._on_step(f"captured {done.tokens} tokens"))
        timing = CheckTiming(capture_ms=_since(started))
        after = self._state.save()
        try:
            verification = verify(
                self._runner, num_rounds=num_rounds, tolerance=self._tolerance, seed=CHECK_SEED, on_step=self._on_step
            )
        except LostDeviceError as error:
            report = self._report(results, error.verification, Explanation(), timing, options)
            raise UnfinishedCheckError(error, report) from error
        try:
            started = time.perf_counter()
            prompts = None if encoded is None else self._check_prompts(encoded, after, verification.spread)
            timing = msgspec.structs.replace(timing, prompts_ms=_since(started) if encoded else 0.0)
            started = time.perf_counter()
            explanation = explain(
                self._runner,
                verification,
                self._state,
                before,
                after,
                self._tolerance,
                locates=locates,
                on_step=self._on_step,
            )
            timing = msgspec.structs.replace(timing, locate_ms=_since(started))
        finally:
            self._state.restore(before)
        return self._report(results, verification, explanation, timing, options, prompts)

    def _report(
        self,
        results: Sequence[BucketCapture],
        verification: Verification,
        explanation: Explanation,
        timing: CheckTiming,
        options: dict[str, OptionValue],
        prompts: PromptCheck | None = None,
    ) -> CheckReport:
        if any(warning.code == "inputs-not-seeded" for warning in self._target.warnings):
            for bucket in verification.buckets:
                bucket.doubts.append("make_inputs draws from elsewhere: replay and eager were given different batches")
        rows = [bucket_row(verification, result, explanation.divergences) for result in results]
        verdicts = [row.verdict for row in rows] + ([prompts.verdict] if prompts else [])
        return CheckReport(
            environment=environment(self._target.device),
            model=self._target.info,
            options=options,
            verdict=overall_verdict(verdicts, explanation.cards),
            buckets=sorted(rows, key=lambda row: row.tokens),
            spread=finite(verification.spread.largest),
            prompts=prompts,
            findings=explanation.cards,
            warnings=[
                *self._target.warnings,
                *self._warnings,
                *explanation.warnings,
                *padding_warnings(verification),
                *draw_warnings(verification),
                *written_input_warnings(self._runner),
                *self._what_to_know(results),
            ],
            timing=msgspec.structs.replace(timing, eager_ms=verification.eager_ms, replay_ms=verification.replay_ms),
        )

    def _check_prompts(self, encoded: Sequence[Sequence[int]], base: Snapshot, spread: Spread) -> PromptCheck:
        self._on_step("replaying prompts")
        head = language_model_head(self._target)
        if head is None and is_language_model(self._target):
            self._warnings.append(headless_warning(self._target))
        found = check_prompts(self._runner, encoded, head, self._state, base, self._tolerance, spread)
        if found.num_eager:
            largest = max(self._runner.graphs)
            self._warnings.append(
                ReportWarning(
                    code="prompts-not-replayed",
                    message=f"{found.num_eager} of {found.num_prompts} prompts are longer than {largest} tokens: they "
                    "ran eagerly and prove nothing",
                    cause="the largest bucket does not hold them",
                    remedy="give larger --tokens, or shorter prompts",
                )
            )
        return found

    def _what_to_know(self, results: Sequence[BucketCapture]) -> list[ReportWarning]:
        rules = self._target.break_rules
        in_breaks = [*rules.mixers, *(path for paths in rules.globs.values() for path in paths)]
        warnings = hook_warnings(self._target.module, in_breaks)
        held = dict(self._target.module.named_parameters())
        warnings += [outside_warning(name) for name in written_by_segments(self._runner) if name not in held]
        warnings += late_compilation_warnings((result.tokens, result.compiled_at) for result in results)
        for result in results:
            if result.status != "captured":
                warnings.append(
                    ReportWarning(
                        code="L13",
                        message=f"the bucket of {result.tokens} tokens was not captured, and so not checked",
                        cause=result.error or result.status,
                        remedy="leave out that bucket",
                    )
                )
        return warnings
