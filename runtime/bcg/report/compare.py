"""Two reports of one kind against each other: what changed, and whether the measured spread can tell."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from bcg.errors import UsageError
from bcg.report.capture import CaptureReport
from bcg.report.common import OptionValue, option_words
from bcg.report.file import Report
from bcg.report.profile import ModeSummary, ProfileReport

Verdict: TypeAlias = Literal["FASTER", "SLOWER", "SMALLER", "LARGER", "SAME", "UNCLEAR"]

SMALLEST_CHANGE = 0.01
"""Times that changed by less are neither FASTER nor SLOWER: two runs of one program differ by as much."""

_MEDIAN_FROM_QUARTILES = 1.96 * math.sqrt(math.pi / 2) / 1.349
"""Half the 95 % interval of a median of n normal samples, in interquartile ranges over the root of n: such a range is
1.349 standard deviations, and a median's standard error the root of pi/2 times that of a mean."""

STEP = "step ms"
"""The one quantity whose spread is measured, round by round."""

_FACTS = ("device", "driver", "cuda", "torch", "cuda_python", "transformers", "bcg", "python")
_TOLD_ELSEWHERE = {
    *("tokens", "workload", "buckets", "memory_budget", "modes", "device", "dtype"),
    *("rounds", "expect_breaks", "gpu"),
}
"""Options that rows and facts tell better, or that change no number."""


@dataclass(frozen=True)
class Change:
    """One quantity of both reports.

    Attributes:
        what: Whose quantity, such as ``breakable, 16 tokens``.
        quantity: What was measured, with its unit: ``step ms``, ``pool bytes``.
        change: New over old, minus 1; 0 where both are 0, infinite where only the old one is.
        uncertainty: Half the width of the 95 % interval of `change`: 0 for bytes and counts, which are exact; None
            where there is no spread to tell.
        verdict: FASTER, SLOWER for times; SMALLER, LARGER for bytes and counts; SAME where a time changed by no more
            than the gate with all its uncertainty; UNCLEAR where it may have changed by more, or the spread is unknown.
    """

    what: str
    quantity: str
    old: float
    new: float
    change: float
    uncertainty: float | None
    verdict: Verdict

    def is_regression(self, gate: float) -> bool:
        """Whether it became slower or larger by more than this part."""
        return self.verdict in ("SLOWER", "LARGER") and self.change > gate


@dataclass(frozen=True)
class Comparison:
    """All changes from an old to a new report.

    Attributes:
        lost: Rows that the old report measured and the new one did not, and why, in words.
        remarks: What else is in one of the two only, or can't be compared, in words.
        differences: Facts of the two runs that make their numbers hard to compare, in words.
    """

    changes: list[Change]
    lost: list[str]
    remarks: list[str]
    differences: list[str]

    @property
    def unclear(self) -> list[Change]:
        """The changes that could not be judged."""
        return [change for change in self.changes if change.verdict == "UNCLEAR"]


def compare_reports(old: Report, new: Report, *, gate: float) -> Comparison:
    """Compare two reports of the same kind.

    Args:
        old: What it was.
        new: What it is.
        gate: The smallest change that matters, as a part: 0.05 is 5 %.

    Raises:
        UsageError: They are of different kinds, of a kind without quantities, of two models, or the new one has no
            row that was measured in the old one.
    """
    kinds = [report.__struct_config__.tag for report in (old, new)]
    if type(old) is not type(new):
        raise UsageError(
            f"a {kinds[1]} report can't be compared with a {kinds[0]} report", hint="give two of the same kind"
        )
    before, after = _rows(old), _rows(new)
    models = [(report.model.architecture, report.model.num_parameters) for report in (old, new)]
    if models[0] != models[1]:
        names = [
            f"{report.model.name} ({report.model.architecture}, {report.model.num_parameters:,} parameters)"
            for report in (old, new)
        ]
        raise UsageError(f"the old report is of {names[0]}, the new one of {names[1]}", hint="give two of one model")
    if not any(row.quantities and what in after for what, row in before.items()):
        raise UsageError(
            "the two reports have no row in common: other token counts or modes, or nothing measured",
            hint="give both runs the same --tokens and --modes",
        )
    old_totals, new_totals = _totals(old), _totals(new)
    same = [what for what, row in new_totals.items() if what in old_totals and row.tokens == old_totals[what].tokens]
    return Comparison(
        changes=[
            *_changes(before, after, gate),
            *_changes({what: old_totals[what] for what in same}, new_totals, gate),
        ],
        lost=list(_lost(before, after)),
        remarks=[*_gained(before, after), *_apart(old_totals, new_totals, same)],
        differences=list(_differences(old, new)),
    )


@dataclass(frozen=True)
class _Quantity:
    """One value with its samples: none for a time that was measured once, and exact values need none."""

    value: float
    is_time: bool
    samples: Sequence[float] = ()

    @property
    def half_width(self) -> float | None:
        """Half the 95 % interval of the median, by the quartiles of samples taken as normal; a part of the value."""
        if not self.is_time:
            return 0.0
        if len(self.samples) < 4 or self.value <= 0:
            return None
        low, _, high = statistics.quantiles(self.samples, n=4)
        return _MEDIAN_FROM_QUARTILES * (high - low) / math.sqrt(len(self.samples)) / self.value


@dataclass(frozen=True)
class _Row:
    """What was measured about one thing.

    Attributes:
        tokens: The token counts that it is about.
        status: What became of it, with the reason if there is one.
        quantities: None where it was not measured.
    """

    tokens: tuple[int, ...]
    status: str = "measured"
    quantities: Mapping[str, _Quantity] = field(default_factory=dict)


def _rows(report: Report) -> dict[str, _Row]:
    """Return a row for each token count, of each mode."""
    if isinstance(report, ProfileReport):
        return dict(_profile_rows(report))
    if isinstance(report, CaptureReport):
        return dict(_capture_rows(report))
    raise UsageError(
        f"reports of kind {report.__struct_config__.tag} have nothing to compare",
        hint="give two of `bcg capture`, or two of `bcg profile`; `bcg report FILE` shows each of these",
    )


def _totals(report: Report) -> dict[str, _Row]:
    """Return a row for each sum over token counts."""
    if isinstance(report, ProfileReport):
        return dict(_profile_totals(report))
    assert isinstance(report, CaptureReport)
    return {"all buckets": _capture_total(report)}


def _capture_rows(report: CaptureReport) -> Iterator[tuple[str, _Row]]:
    for bucket in report.buckets:
        quantities = {
            "capture ms": _Quantity(bucket.capture_ms, is_time=True),
            "segments": _Quantity(bucket.num_segments, is_time=False),
            "breaks": _Quantity(bucket.num_breaks, is_time=False),
            "operations" if report.on_host else "kernels": _Quantity(bucket.num_kernels, is_time=False),
        }
        row = _Row((bucket.tokens,), quantities=quantities)
        if bucket.status != "captured":
            row = _Row((bucket.tokens,), _status(bucket.status, bucket.error))
        yield f"{bucket.tokens} tokens", row


def _capture_total(report: CaptureReport) -> _Row:
    totals = report.totals
    return _Row(
        tuple(bucket.tokens for bucket in report.buckets if bucket.status == "captured"),
        quantities={
            "pool bytes": _Quantity(totals.pool_bytes, is_time=False),
            "driver bytes": _Quantity(totals.driver_bytes, is_time=False),
            "boundary bytes": _Quantity(totals.boundary_bytes, is_time=False),
        },
    )


def _profile_rows(report: ProfileReport) -> Iterator[tuple[str, _Row]]:
    for bucket in report.buckets:
        for row in bucket.modes:
            what = f"{row.mode}, {bucket.tokens} tokens"
            if row.p50_ms is None:
                yield what, _Row((bucket.tokens,), _status(row.status, row.reason))
            else:
                step = _Quantity(row.p50_ms, is_time=True, samples=row.round_ms)
                yield what, _Row((bucket.tokens,), quantities={STEP: step})


def _profile_totals(report: ProfileReport) -> Iterator[tuple[str, _Row]]:
    for mode in report.modes:
        if mode.status == "measured" and mode.mode != "eager":
            yield mode.mode, _mode_total(report, mode)


def _mode_total(report: ProfileReport, mode: ModeSummary) -> _Row:
    measured = (
        bucket.tokens
        for bucket in report.buckets
        for row in bucket.modes
        if row.mode == mode.mode and row.p50_ms is not None
    )
    return _Row(
        tuple(measured),
        quantities={
            "start-up s": _Quantity(mode.startup_s, is_time=True),
            "memory bytes": _Quantity(mode.memory_bytes, is_time=False),
        },
    )


def _status(status: str, reason: str | None) -> str:
    return f"{status} ({reason})" if reason else status


def _changes(before: Mapping[str, _Row], after: Mapping[str, _Row], gate: float) -> Iterator[Change]:
    for what, row in after.items():
        old = before[what].quantities if what in before else {}
        for quantity, value in row.quantities.items():
            if quantity in old:
                yield _change(what, quantity, old[quantity], value, gate)


def _lost(before: Mapping[str, _Row], after: Mapping[str, _Row]) -> Iterator[str]:
    for what, row in before.items():
        if what not in after:
            if row.quantities:
                yield f"{what}: only in the old report"
        elif row.quantities and not after[what].quantities:
            yield f"{what}: measured before, now {after[what].status}"


def _gained(before: Mapping[str, _Row], after: Mapping[str, _Row]) -> Iterator[str]:
    for what, row in after.items():
        if what not in before:
            yield f"{what}: only in the new report"
        elif row.quantities and not before[what].quantities:
            yield f"{what}: measured now, before {before[what].status}"


def _apart(before: Mapping[str, _Row], after: Mapping[str, _Row], same: Sequence[str]) -> Iterator[str]:
    for what, row in after.items():
        if what in before and what not in same:
            names = ", ".join(quantity.rpartition(" ")[0] for quantity in row.quantities)
            yield f"{what}: {names} not compared, because the token counts differ"


def _change(what: str, quantity: str, old: _Quantity, new: _Quantity, gate: float) -> Change:
    change = _ratio(old.value, new.value)
    old_width, new_width = old.half_width, new.half_width
    if old_width is None or new_width is None:
        uncertainty = None
    else:
        width = math.hypot(old_width, new_width)
        uncertainty = width * (1 + change) if width else 0.0
    return Change(
        what=what,
        quantity=quantity,
        old=old.value,
        new=new.value,
        change=change,
        uncertainty=uncertainty,
        verdict=_verdict(change, uncertainty, gate, is_time=old.is_time),
    )


def _ratio(old: float, new: float) -> float:
    if old == new:
        return 0.0
    return new / old - 1 if old else math.copysign(math.inf, new)


def _verdict(change: float, uncertainty: float | None, gate: float, *, is_time: bool) -> Verdict:
    if uncertainty is None:
        return "UNCLEAR"
    if not is_time:
        return "LARGER" if change > 0 else "SMALLER" if change < 0 else "SAME"
    if abs(change) > max(uncertainty, SMALLEST_CHANGE):
        return "SLOWER" if change > 0 else "FASTER"
    return "SAME" if abs(change) + uncertainty <= gate else "UNCLEAR"


def _differences(old: Report, new: Report) -> Iterator[str]:
    facts: list[tuple[str, OptionValue, OptionValue]] = [
        ("model", old.model.name, new.model.name),
        ("weights", old.model.dtype, new.model.dtype),
    ]
    facts += [(fact, getattr(old.environment, fact), getattr(new.environment, fact)) for fact in _FACTS]
    shared = [option for option in old.options if option in new.options and option not in _TOLD_ELSEWHERE]
    facts += [(option, old.options[option], new.options[option]) for option in shared]
    for fact, before, after in facts:
        if before != after:
            yield f"{fact.replace('_', ' ')}: {option_words(before)} before, {option_words(after)} now"
