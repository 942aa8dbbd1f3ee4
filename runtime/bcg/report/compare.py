"""Two reports of one kind against each other: what changed, and whether the measured spread can tell."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from bcg.errors import UsageError
from bcg.report.capture import CaptureReport
from bcg.report.file import Report
from bcg.report.profile import ModeRow, ModeSummary, ProfileReport

Verdict: TypeAlias = Literal["FASTER", "SLOWER", "SMALLER", "LARGER", "SAME", "UNCLEAR"]

SMALLEST_CHANGE = 0.01
"""Changes below this part are called SAME: two runs of one program differ by as much."""


@dataclass(frozen=True)
class Change:
    """One quantity of both reports.

    Attributes:
        what: Whose quantity, such as ``breakable, 16 tokens``.
        quantity: What was measured, with its unit: ``step ms``, ``pool bytes``.
        change: New over old, minus 1; 0 where both are 0, infinite where only the old one is.
        uncertainty: Half the width of the 95 % interval of `change`; None where there is no spread to tell.
        verdict: FASTER, SLOWER for times; SMALLER, LARGER for bytes and counts; SAME; UNCLEAR where the spread
            is too wide, or unknown, to tell a change of the gate's size from none.
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
        missing: Rows that only one of the two has, in words.
        differences: Facts of the two runs that make their numbers hard to compare, in words.
    """

    changes: list[Change]
    missing: list[str]
    differences: list[str]


def compare_reports(old: Report, new: Report, *, gate: float) -> Comparison:
    """Compare two reports of the same kind.

    Args:
        old: What it was.
        new: What it is.
        gate: The smallest change that matters, as a part: 0.05 is 5 %. A row whose spread is wider is UNCLEAR.

    Raises:
        UsageError: They are of different kinds, of a kind without quantities, or have no row in common.
    """
    kinds = [report.__struct_config__.tag for report in (old, new)]
    if type(old) is not type(new):
        raise UsageError(
            f"a {kinds[1]} report can't be compared with a {kinds[0]} report", hint="give two of the same kind"
        )
    before, after = _quantities(old), _quantities(new)
    common = [key for key in after if key in before]
    if not common:
        raise UsageError("the two reports have no row in common: other token counts or modes, or nothing measured")
    return Comparison(
        changes=[_change(*key, before[key], after[key], gate) for key in common],
        missing=[*_only_in("old", before, after), *_only_in("new", after, before)],
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
        """Half the 95 % interval of the median (McGill, Tukey and Larsen 1978), as a part of the value."""
        if not self.is_time:
            return 0.0
        if len(self.samples) < 4 or self.value <= 0:
            return None
        low, _, high = statistics.quantiles(self.samples, n=4)
        return 1.57 * (high - low) / math.sqrt(len(self.samples)) / self.value


def _quantities(report: Report) -> dict[tuple[str, str], _Quantity]:
    if isinstance(report, ProfileReport):
        pairs = _profile_quantities(report)
    elif isinstance(report, CaptureReport):
        pairs = _capture_quantities(report)
    else:
        raise UsageError(f"reports of kind {report.__struct_config__.tag} have nothing to compare")
    return {(what, quantity): value for what, quantity, value in pairs}


def _only_in(
    which: str, these: dict[tuple[str, str], _Quantity], others: dict[tuple[str, str], _Quantity]
) -> Iterator[str]:
    for what, quantity in these:
        if (what, quantity) not in others:
            yield f"{what}: {quantity} is only in the {which} report"


def _capture_quantities(report: CaptureReport) -> Iterator[tuple[str, str, _Quantity]]:
    for bucket in report.buckets:
        if bucket.status == "captured":
            what = f"{bucket.tokens} tokens"
            yield what, "capture ms", _Quantity(bucket.capture_ms, is_time=True)
            yield what, "segments", _Quantity(bucket.num_segments, is_time=False)
            yield what, "kernels", _Quantity(bucket.num_kernels, is_time=False)
    totals = report.totals
    yield "all buckets", "pool bytes", _Quantity(totals.pool_bytes, is_time=False)
    yield "all buckets", "driver bytes", _Quantity(totals.driver_bytes, is_time=False)
    yield "all buckets", "boundary bytes", _Quantity(totals.boundary_bytes, is_time=False)


def _profile_quantities(report: ProfileReport) -> Iterator[tuple[str, str, _Quantity]]:
    for bucket in report.buckets:
        for row in bucket.modes:
            if row.p50_ms is not None:
                yield f"{row.mode}, {bucket.tokens} tokens", "step ms", _step(row, row.p50_ms)
    for mode in report.modes:
        if mode.status == "measured" and mode.mode != "eager":
            yield from _costs(mode)


def _step(row: ModeRow, p50_ms: float) -> _Quantity:
    return _Quantity(p50_ms, is_time=True, samples=row.round_ms)


def _costs(mode: ModeSummary) -> Iterator[tuple[str, str, _Quantity]]:
    yield mode.mode, "start-up s", _Quantity(mode.startup_s, is_time=True)
    yield mode.mode, "memory bytes", _Quantity(mode.memory_bytes, is_time=False)


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
    if abs(change) > max(uncertainty, SMALLEST_CHANGE):
        if is_time:
            return "SLOWER" if change > 0 else "FASTER"
        return "LARGER" if change > 0 else "SMALLER"
    return "UNCLEAR" if uncertainty > gate else "SAME"


def _differences(old: Report, new: Report) -> Iterator[str]:
    facts = {
        "model": (old.model.name, new.model.name),
        "weights": (f"{old.model.num_parameters} {old.model.dtype}", f"{new.model.num_parameters} {new.model.dtype}"),
        "device": (old.environment.device, new.environment.device),
        "driver": (old.environment.driver, new.environment.driver),
        "torch": (old.environment.torch, new.environment.torch),
    }
    for fact, (before, after) in facts.items():
        if before != after:
            yield f"{fact}: {before} before, {after} now"
