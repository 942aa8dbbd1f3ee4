"""Cards: findings and errors as diagnoses that a report can hold."""

from __future__ import annotations

import re
from collections.abc import Iterable

from bcg.diagnose.survey import Finding
from bcg.errors import CaptureError
from bcg.hazards import HAZARDS
from bcg.report import Card

_MESSAGES = (
    ("L13", r"out of memory"),
    ("L8", r"not in capture mode|[Rr]egister.*generator|unregistered generator"),
    ("L9", r"CUDAGeneratorImpl|current_seed|set_state|get_state|manual_seed.*captur"),
    ("L11", r"not initialized|NOT_INITIALIZED|calling `cu\w+Create"),
    ("L10", r"[Aa]utotun|nvrtc|cuModuleLoad|while compiling|CompilationError"),
    ("L2", r"pin_memory|pinned (host )?memory|cudaHostAlloc|cudaFreeHost"),
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
    hazard = HAZARDS[finding.hazard]
    return Card(
        hazard=finding.hazard,
        title=finding.reason,
        cause=hazard.cause,
        operation=finding.operation,
        module=finding.module,
        source_line=finding.source,
        remedy=hazard.remedy,
        break_option=f"--break '{finding.module}'" if finding.module else "",
        occurrences=occurrences,
    )


def cards_of(findings: Iterable[Finding]) -> list[Card]:
    """Describe findings: one card for each operation and line, however many modules run it."""
    groups: dict[tuple[str, str, str], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.hazard, finding.operation, finding.source), []).append(finding)
    return [card_of(group[0], len(group)) for group in groups.values()]


def card_of_error(error: CaptureError) -> Card | None:
    """Describe a failed capture by its hazard, or by what the driver's message means; None where neither is known."""
    text = "\n".join(str(part) for part in (error, *_causes(error)))
    code = error.hazard or next((row for row, pattern in _MESSAGES if re.search(pattern, text)), None)
    if code is None:
        return None
    hazard, place = HAZARDS[code], error.place
    module = (place.module if place else None) or _module_named_in(text)
    return Card(
        hazard=code,
        title=error.message,
        cause=hazard.cause,
        operation=(place.operation if place else None) or "",
        module=module,
        source_line=(place.source if place else None) or "",
        driver_text=next((line.strip() for line in text.splitlines() if "CUDA error" in line), ""),
        remedy=hazard.remedy,
        break_option=f"--break '{module}'" if module else "",
    )


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
