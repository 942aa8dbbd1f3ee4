"""Warnings of a check: what may make replays wrong, or could not be looked for."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from bcg.cards import counted, hazard_warning
from bcg.checking.places import hooks_of
from bcg.checking.verdicts import Verification
from bcg.report import ReportWarning
from bcg.whereabouts import source_line_of


def advanced_warning(path: str) -> ReportWarning:
    """Warn of a tensor that captures changed in place, which only the tensor itself shows (S13)."""
    return hazard_warning("S13", f"{path} has moved on before the first replay; no result depends on it")


def outside_warning(name: str) -> ReportWarning:
    """Warn of a tensor outside of the module tree that forwards write: nobody knows what it was before (S13)."""
    return hazard_warning(
        "S13", f"{name}, which no module holds, is written by the forward; loading and captures have moved it on"
    )


def hook_warnings(root: nn.Module, in_breaks: Iterable[str] = ()) -> list[ReportWarning]:
    """Warn of hooks, of modules and of all modules at once, which don't run in a replay (S18).

    Args:
        root: The module tree.
        in_breaks: Paths of modules that run as breaks: their hooks run.
    """
    inside = tuple(f"{path}." for path in in_breaks)
    hooked = [(path, hook) for path, hook in hooks_of(root) if path is None or not path.startswith(inside)]
    if not hooked:
        return []
    path, hook = hooked[0]
    where = "every module" if path is None else path or "the root module"
    message = (
        f"{counted(len(hooked), 'forward hook')} will not run in a replay, the first on {where} at "
        f"{source_line_of(hook)}"
    )
    return [hazard_warning("S18", message)]


def padding_warnings(verification: Verification) -> list[ReportWarning]:
    """Warn of batch sizes at which eager fails without padding, so that a leak (S10) could not be looked for."""
    if not verification.fails_alone:
        return []
    size, error = next(iter(sorted(verification.fails_alone.items())))
    return [
        ReportWarning(
            code="padding-not-compared",
            message=f"eager fails for {counted(size, 'token')} without padding: {error}",
            cause="so nothing tells whether padding reaches real rows in a batch of that size",
            remedy="let the forward run at every size that is served, or never serve that one",
        )
    ]


def draw_warnings(verification: Verification) -> list[ReportWarning]:
    """Warn of random generators of the host that eager draws from inside segments, where a replay does not (S16)."""
    if not verification.undrawn:
        return []
    names = " and ".join(verification.undrawn)
    return [
        hazard_warning("S16", f"eager draws from {names}, a replay does not: harmless only where nothing depends on it")
    ]
