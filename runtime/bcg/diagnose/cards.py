"""Cards: findings, remedies and errors as a report can hold them."""

from __future__ import annotations

import re
from collections.abc import Iterable

from bcg.diagnose.remedies import Remedy
from bcg.diagnose.survey import Finding
from bcg.errors import CaptureError
from bcg.hazards import HAZARDS
from bcg.report import AutomaticBreak, Card
from bcg.target import Target

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
    hazard = HAZARDS[finding.hazard]
    return Card(
        hazard=finding.hazard,
        title=finding.reason,
        cause=hazard.cause,
        operation=finding.operation,
        module=finding.module,
        source_line=finding.source,
        driver_text=finding.driver_text,
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


def row_of(remedy: Remedy, finding: Finding, target: Target) -> AutomaticBreak:
    """Describe a remedy that is in effect, and the finding that it helps with."""
    card = card_of(finding)
    if remedy.size == "module":
        name = type(target.module.get_submodule(remedy.name)).__name__
        return AutomaticBreak(
            size="module",
            name=name,
            module=remedy.name,
            option=f"--break '{remedy.name}'",
            decorator=f"@eager_on_graph on {name}.forward",
            card=card,
        )
    around = finding.functions[0].path if finding.functions else ""
    if remedy.function is not None:
        name, around = remedy.function.name, remedy.function.path
        option = f"--break '{around}'"
    else:
        name = remedy.name
        option = f"--break '{around or finding.module}'" if around or finding.module else ""
    decorator = f"@eager_on_graph on {around}" if around else "@eager_on_graph on a function around this line"
    if remedy.size == "pin":
        option, decorator = "", "none needed: make the value once, as a buffer of the module"
    return AutomaticBreak(
        size=remedy.size, name=name, module=finding.module, option=option, decorator=decorator, card=card
    )


def card_of_error(error: CaptureError) -> Card | None:
    """Describe a failed capture by its hazard, or by what the driver's message means; None where neither is known."""
    text = "\n".join(str(part) for part in (error, *_causes(error)))
    code = error.hazard or _hazard_in(f"{text}\n{error.driver_text}")
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
        driver_text=error.driver_text or next((line.strip() for line in text.splitlines() if "CUDA error" in line), ""),
        remedy=hazard.remedy,
        break_option=f"--break '{module}'" if module else "",
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
