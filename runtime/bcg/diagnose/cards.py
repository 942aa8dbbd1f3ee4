"""Cards: findings, remedies and errors as a report can hold them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from torch import nn

from bcg.cards import break_words, make_card
from bcg.diagnose.remedies import Remedy
from bcg.diagnose.survey import Finding
from bcg.errors import CaptureError, Place, UsageError
from bcg.functions import FunctionReference, code_of, find_function
from bcg.report import AutomaticBreak, Card
from bcg.target import Target
from bcg.whereabouts import from_search_path, is_users

_MESSAGES = (
    ("L13", r"out of memory"),
    ("L8", r"not in capture mode|[Rr]egister.*generator|unregistered generator"),
    ("L9", r"CUDAGeneratorImpl|current_seed|set_state|get_state|manual_seed.*captur"),
    ("L11", r"not initialized|NOT_INITIALIZED|calling `cu\w+Create"),
    ("L10", r"[Aa]utotun|nvrtc|cuModuleLoad|while compiling|CompilationError"),
    ("L2", r"pin_memory|pinned (host )?memory|cudaHostAlloc|cudaFreeHost|cuMem(HostAlloc|AllocHost|FreeHost)"),
    ("L7", r"cu(da)?(Event|Stream)Query|[Ee]vent\.query|[Ss]tream\.query"),
    ("L12", r"current device|invalid device ordinal|wrong device"),
    ("L4", r"\b904\b|unjoined|Unjoined"),
    ("L5", r"\b905\b|uncaptured work|StreamCaptureIsolation"),
    ("L6", r"\b906\b|legacy stream|StreamCaptureImplicit"),
    ("L1", r"\b90[01]\b|stream is capturing|previous error during capture|StreamCapture(Unsupported|Invalidated)"),
    ("L1", r"during CUDA graph capture|ended the recording"),
)
"""What the driver's and torch's messages mean, the telling ones first."""


def card_of(finding: Finding, occurrences: int = 1) -> Card:
    """Describe a finding of a survey."""
    return make_card(
        finding.hazard,
        finding.reason,
        module=finding.module,
        source_line=finding.source,
        operation=finding.operation,
        driver_text=finding.driver_text,
        occurrences=occurrences,
        offers_break=True,
    )


def cards_of(findings: Iterable[Finding]) -> list[Card]:
    """Describe findings: one card for each operation and line, however many modules run it."""
    groups: dict[tuple[str, str, str], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.hazard, finding.operation, finding.source), []).append(finding)
    return [card_of(group[0], len(group)) for group in groups.values()]


def row_of(remedy: Remedy, findings: Sequence[Finding], target: Target, doubt: str = "") -> AutomaticBreak:
    """Describe a remedy that is in effect.

    Args:
        remedy: Of the target.
        findings: What it helps with, the first found first.
        target: Whose modules.
        doubt: Why replays could not show that it is right.
    """
    first, *others = findings
    name, module = remedy.name, first.module
    if remedy.size == "module":
        name, module = type(target.module.get_submodule(remedy.name)).__name__, remedy.name
    elif remedy.function is not None:
        name = remedy.function.name
    return AutomaticBreak(
        size=remedy.size,
        name=name,
        module=module,
        option=_option(remedy, first),
        decorator=_decorator(remedy, first, target.module),
        card=card_of(first),
        other_cards=cards_of(others),
        doubt=doubt,
    )


def _option(remedy: Remedy, finding: Finding) -> str:
    """Return command-line words that make the same break; a pin is none."""
    if remedy.size == "pin":
        return ""
    words = remedy.name
    if remedy.size == "operation":
        words = remedy.place.path
    if remedy.function is not None and not _can_be_named(remedy.function):
        words = finding.module
    return break_words(words)


def _can_be_named(function: FunctionReference) -> bool:
    try:
        return find_function(function.path).code is function.code
    except UsageError:
        return False


def _decorator(remedy: Remedy, finding: Finding, root: nn.Module) -> str:
    """Return a line of code to put above the smallest function around what has to be a break, and where that is."""
    if remedy.size == "pin":
        return "none needed: make the value once, as a buffer of the module"
    around = finding.functions[0].code if finding.functions else None
    if remedy.function is not None:
        around = remedy.function.code
    if remedy.size == "module" or (around is None and finding.module):
        path = remedy.name if remedy.size == "module" else finding.module
        around = code_of(type(root.get_submodule(path)).forward)
    if around is None or not is_users(around.co_filename):
        return ""
    where = f"{from_search_path(around.co_filename)}:{around.co_firstlineno}"
    return f"@bcg.eager_on_graph  # above {around.co_name} at {where}"


def card_of_error(error: CaptureError) -> Card | None:
    """Describe a failed capture by its hazard, or by what the driver's message means; None where neither is known."""
    text = "\n".join(str(part) for part in (error, *_causes(error)))
    hazard = error.hazard or _hazard_in(f"{text}\n{error.driver_text}")
    if hazard is None:
        return None
    place = error.place or Place()
    return make_card(
        hazard,
        error.message,
        module=place.module or _module_named_in(text),
        source_line=place.source or "",
        operation=place.operation or "",
        driver_text=error.driver_text or next((line.strip() for line in text.splitlines() if "CUDA error" in line), ""),
        offers_break=True,
    )


def _hazard_in(text: str) -> str | None:
    return next((row for row, pattern in _MESSAGES if re.search(pattern, text)), None)


def _causes(error: BaseException) -> Iterable[BaseException | str]:
    cause: BaseException | None = error
    while cause is not None:
        yield from getattr(cause, "__notes__", ())
        cause = cause.__cause__
        if cause is not None:
            yield cause


def _module_named_in(text: str) -> str:
    found = re.search(r"\(module '([^']+)'\)", text)
    return found[1] if found and "." in found[1] else ""
