"""A survey: one eager forward under the tape that finds what a capture would stumble over, or freeze.

Nothing is recorded and nothing can be poisoned: the tape's refusals are noted instead of raised, breaks run as
they would, and everything else runs as it is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch

from bcg.breaks import BreakLabel, running_breaks
from bcg.checking.trace import numbers_in
from bcg.device import find_device
from bcg.device.asking import pretend_capturing, telling_the_truth
from bcg.device.base import Device
from bcg.device.bystander import Bystander
from bcg.errors import first_line
from bcg.functions import FunctionReference, functions_around, is_forward
from bcg.holdings import changed_paths
from bcg.host_reads import PINS
from bcg.report import StepKind
from bcg.segment_tape import SegmentTape
from bcg.state import ModelState
from bcg.structure import is_sparse, storage_key, tensors_in, whole_tensors_in
from bcg.tape import Tape
from bcg.whereabouts import line_of, users_frame, users_line

_Errors = tuple[type[Exception], ...]


@dataclass(frozen=True)
class Finding:
    """Something in a forward that a graph can't hold, or would freeze.

    Attributes:
        hazard: Row of the catalogue.
        operation: Name of the operation.
        reason: Why, in a few words.
        modules: Paths of the modules around it, the innermost first, the root left out.
        source: ``file:line`` of the innermost line that is neither torch's nor bcg's.
        functions: Functions between it and the innermost module's forward, the innermost first.
        driver_text: What the device's driver said, where a capture failed at it.
    """

    hazard: str
    operation: str
    reason: str
    modules: tuple[str, ...]
    source: str
    functions: tuple[FunctionReference, ...] = ()
    driver_text: str = ""

    @property
    def module(self) -> str:
        """Path of the innermost module; empty for the root."""
        return self.modules[0] if self.modules else ""

    @property
    def site(self) -> tuple[str, str, str]:
        """What tells it from other findings."""
        return (self.operation, self.source, self.module)


@dataclass(frozen=True)
class SurveyedBreak:
    """A break that the surveyed forward has.

    Attributes:
        function: What it runs.
        boundary_bytes: Memory that its result will need in the pool.
    """

    label: BreakLabel
    function: Callable[..., Any]
    boundary_bytes: int


@dataclass(frozen=True)
class _Numbers:
    """The Python numbers that one operation was given."""

    operation: str
    values: tuple[Any, ...]
    finding: Callable[[str, str], Finding]


class Survey:
    """Follows one forward and notes what is found.

    Args:
        device: The device that would capture.
        records_collectives: Whether segments hold collectives, where that is not as on `device`.
        notes_numbers: Keep the Python numbers that operations are given, for `frozen_numbers`.
        state: Look at it before and after every break, for `changed_in_breaks`; that takes time.

    Attributes:
        findings: In program order, one a line of code and module.
        questions: Lines that asked whether they are being captured, to compute something else then.
        segments: What each would-be segment reads and does.
        breaks: The breaks between them.
        steps: Their kinds, in order.
        changed_in_breaks: Paths of state that breaks changed: a replay does so too.
    """

    def __init__(
        self,
        device: Device,
        *,
        notes_numbers: bool = False,
        state: ModelState | None = None,
        records_collectives: bool | None = None,
    ) -> None:
        self.findings: list[Finding] = []
        self.questions: list[Finding] = []
        self.segments: list[SegmentTape] = []
        self.breaks: list[SurveyedBreak] = []
        self.steps: list[StepKind] = []
        self.changed_in_breaks: set[str] = set()
        self.numbers: list[_Numbers] | None = [] if notes_numbers else None
        self._state = state
        self._tape = _SurveyTape(device, self)
        if records_collectives is not None:
            self._tape.records_collectives = records_collectives
        self._seen: set[tuple[str, str]] = set()

    @contextlib.contextmanager
    def following(self) -> Iterator[None]:
        """Follow the forward that runs in the block."""
        with running_breaks(self), self._tape.watching(), contextlib.ExitStack() as stack:
            stack.callback(pretend_capturing, False)
            pretend_capturing(True, self._note_question)
            self._tape.begin_segment()
            yield
            self._end_segment()

    def run_break(
        self, function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], label: BreakLabel
    ) -> Any:
        """Run a break of the forward, unseen."""
        if label.module is None:
            label = dataclasses.replace(label, module=self._tape.module_path)
        self._end_segment()
        with self._tape.looking_away(), telling_the_truth():
            before = self._state.look() if self._state is not None else None
            result = function(*args, **kwargs)
            if self._state is not None and before is not None:
                self.changed_in_breaks.update(changed_paths(before, self._state.look()))
        if any(map(is_sparse, whole_tensors_in(result))):
            self._note_sparse_result(label)
        given = {storage_key(tensor) for tensor in tensors_in((args, kwargs))}
        boundary_bytes = 0
        for tensor in tensors_in(result):
            if self._tape.is_on_device(tensor) and storage_key(tensor) not in given and not self._tape.made(tensor):
                self._tape.add_made(tensor)
                boundary_bytes += tensor.untyped_storage().nbytes()
        self.steps.append("break")
        self.breaks.append(SurveyedBreak(label, function, boundary_bytes))
        self._tape.begin_segment()
        return result

    def note(self, hazard: str, operation: str, reason: str) -> None:
        """Note a finding at the line of the user's code that is running."""
        finding = self.finding_here(hazard, operation, reason)
        if (finding.source, finding.module) not in self._seen:
            self._seen.add((finding.source, finding.module))
            self.findings.append(finding)

    def _note_sparse_result(self, label: BreakLabel) -> None:
        found = self.finding_here("S9", f"break {label.name}", "it returns a sparse tensor, which has no fixed address")
        outside = found.modules[found.modules.index(label.module) + 1 :] if label.module in found.modules else ()
        self.findings.append(dataclasses.replace(found, modules=outside))

    def _note_question(self) -> None:
        frame = _asking_frame(sys._getframe(1))
        reason = "the code asks whether it is being captured"
        functions = tuple(functions_around(frame)) if frame is not None else ()
        operation = "torch.cuda.is_current_stream_capturing"
        finding = Finding("S3", operation, reason, self._tape.module_paths, line_of(frame), functions)
        if finding not in self.questions:
            self.questions.append(finding)

    def note_failure(self, error: Exception) -> None:
        """Note that the forward raised, as code may that asks whether it is being captured."""
        reason = f"{type(error).__name__} while captured: {first_line(error)}"
        self.findings.append(Finding("L1", "", reason, self._tape.failed_in, users_line(error)))

    def finding_here(self, hazard: str, operation: str, reason: str) -> Finding:
        source = line_of(users_frame(sys._getframe(1)))
        return Finding(
            hazard, operation, reason, self._tape.module_paths, source, tuple(functions_around(sys._getframe(1)))
        )

    def _end_segment(self) -> None:
        segment = self._tape.end_segment()
        if segment.operations:
            self.steps.append("segment")
            self.segments.append(segment)


class _SurveyTape(Tape):
    """Notes what the tape of a capture would refuse, and what only a survey looks for."""

    def __init__(self, device: Device, survey: Survey) -> None:
        super().__init__(device, Bystander())
        self._survey = survey

    def refuse(self, name: str, reason: str) -> None:
        self._survey.note("L2" if reason == PINS else "L1", name, reason)

    def run(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.is_recording:
            if kwargs.get("generator") is not None:
                self._survey.note("L8", str(function), "it draws from a generator that the graph does not know")
            if self._survey.numbers is not None:
                self._note_numbers(function, args, kwargs)
        return super().run(function, args, kwargs)

    def _note_numbers(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        assert self._survey.numbers is not None
        values = tuple(numbers_in((args, tuple(kwargs.values()))))
        name = str(function)
        source = line_of(users_frame(sys._getframe(1)))
        modules = self.module_paths
        self._survey.numbers.append(
            _Numbers(name, values, lambda hazard, reason: Finding(hazard, name, reason, modules, source))
        )


def _asking_frame(frame: FrameType | None) -> FrameType | None:
    """Return the line that wants to know: where a helper of another file asks, the line that calls the helper."""
    asking = caller = users_frame(frame)
    while caller is not None and asking is not None and caller.f_code.co_filename == asking.f_code.co_filename:
        if is_forward(caller):
            return asking
        caller = users_frame(caller.f_back)
    return caller or asking


def survey(
    forward: Callable[[], Any],
    device: torch.device,
    *,
    notes_numbers: bool = False,
    state: ModelState | None = None,
    passes_on: _Errors = (),
) -> Survey:
    """Run `forward` once, eagerly, and return what was found on the way; errors are findings, but for `passes_on`."""
    found = Survey(find_device(device), notes_numbers=notes_numbers, state=state)
    try:
        with found.following():
            forward()
    except passes_on:
        raise
    except Exception as error:  # noqa: BLE001 - it ran without a survey just before
        found.note_failure(error)
    return found


@dataclass(frozen=True)
class Difference:
    """What two surveys of the same shapes differ in, and so what makes Python decide differently.

    Attributes:
        branch: Row of the catalogue where another operation ran.
        number: The same where an operation was given another number.
        takes_another: How the first is told.
        others: Where the other number is from.
    """

    branch: str
    number: str
    takes_another: str
    others: str


BY_INPUTS = Difference("S1", "S2", "other inputs take another branch", "with other inputs")
BY_DRAWING = Difference("S16", "S16", "a random number decides the branch", "in the next forward, drawn anew,")
BY_THE_HOST = Difference("S12", "S12", "the next forward takes another branch", "in the next forward")


def frozen_numbers(first: Survey, second: Survey, *, by: Difference) -> Finding | None:
    """Compare two surveys of the same shapes: the first thing that Python decided differently.

    Args:
        first: One survey.
        second: Another.
        by: What they differ in.

    Returns:
        What it is called; None if Python did the same in both.
    """
    assert first.numbers is not None
    assert second.numbers is not None
    for one, other in zip(first.numbers, second.numbers, strict=False):
        if one.operation != other.operation:
            return one.finding(by.branch, f"{by.takes_another}: {other.operation}")
        if one.values != other.values and not _same(one.values, other.values):
            reason = f"its numbers are {_show(one.values)}, {by.others} {_show(other.values)}"
            return one.finding(by.number, reason)
    if len(first.numbers) != len(second.numbers) and first.numbers:
        shorter = min(first.numbers, second.numbers, key=len)
        if shorter:
            return shorter[-1].finding(by.branch, f"{by.takes_another} after it")
    return None


def _same(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    return repr(one) == repr(other)


def _show(values: tuple[Any, ...]) -> str:
    return ", ".join(f"{value:.6g}" if isinstance(value, float) else str(value) for value in values[:6])
