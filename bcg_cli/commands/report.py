"""``bcg report``: a saved report shown again, as a page, or against an older one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bcg.errors import CheckFailure, UsageError
from bcg.report import read_report
from bcg.report.compare import STEP, Comparison, compare_reports
from bcg_cli import console
from bcg_cli.delivery import check_outputs, deliver
from bcg_cli.options import HtmlOption, TracebackOption

DEFAULT_RESOLUTION = 0.05


def report(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A report that a command wrote with --json.")],
    html: HtmlOption = None,
    against: Annotated[
        Path | None, typer.Option("--against", metavar="OLD", help="Compare with this older report of the same kind.")
    ] = None,
    gate: Annotated[
        float | None,
        typer.Option(
            "--gate",
            metavar="PCT",
            help="With --against: exit with 3 if anything regressed by more, or is not measured any more.",
        ),
    ] = None,
    traceback: TracebackOption = False,
) -> None:
    """Show a saved report again, make a page of it, or compare it with an older one."""
    check_outputs({"--html": html}, {"FILE": file, "OLD": against})
    if gate is not None and against is None:
        raise UsageError("--gate needs --against", hint="give the older report to compare with")
    if html is not None and against is not None:
        raise UsageError("--html makes the page of one report; a comparison has none", hint="leave out --against")
    if gate is not None and not 0 <= gate <= 1000:
        raise UsageError(f"--gate is a percentage from 0 to 1000, got {gate:g}", hint="such as --gate 5")
    saved = read_report(file)
    if against is None:
        deliver(saved, None, html)
    else:
        _compare(file, against, gate)


def _compare(file: Path, against: Path, gate: float | None) -> None:
    from bcg_cli.views.comparison import comparison_view

    resolution = DEFAULT_RESOLUTION if gate is None else gate / 100
    comparison = compare_reports(read_report(against), read_report(file), gate=resolution)
    console.data(comparison_view(comparison, str(against), str(file)))
    if comparison.differences:
        console.warning(
            f"the two runs differ in more than what is measured: {'; '.join(comparison.differences)}",
            hint="compare runs of one device, with the same versions and options",
        )
    if gate is not None:
        _warn_of_unclear(comparison)
        _judge(comparison, gate)


def _warn_of_unclear(comparison: Comparison) -> None:
    """Says which rows a gate passes because nothing is known about them."""
    unclear = comparison.unclear
    steps = [change for change in unclear if change.quantity == STEP]
    once = sorted({change.quantity for change in unclear if change.quantity != STEP})
    if steps:
        console.warning(
            f"the gate can't judge {len(steps)} step times: their rounds are too few or too far apart",
            hint="profile both again with more --rounds",
        )
    if once:
        console.warning(
            f"the gate can't judge {' and '.join(once)}: measured once, so there is no spread to tell a change by"
        )


def _judge(comparison: Comparison, gate: float) -> None:
    """Raises what the comparison means for the exit code."""
    from bcg_cli.views.comparison import change_in_words

    lost = comparison.lost
    if lost:
        raise CheckFailure(
            f"{len(lost)} measured rows of the old report are not measured in the new one, first {lost[0]}",
            hint="the lines under the table say which and why",
        )
    worse = [change for change in comparison.changes if change.is_regression(gate / 100)]
    if worse:
        worst = max(worse, key=lambda change: change.change)
        raise CheckFailure(
            f"{len(worse)} of {len(comparison.changes)} rows regressed by more than {gate:g} %, worst: "
            f"{change_in_words(worst)}",
            hint="rows that say UNCLEAR need more --rounds to tell",
        )
    steps = [change for change in comparison.changes if change.quantity == STEP]
    if steps and all(change.verdict == "UNCLEAR" for change in steps):
        raise CheckFailure(
            f"none of {len(steps)} step times could be judged", hint="profile both again with more --rounds"
        )
