"""Eager passes over a target: every size surveyed twice, with other values and requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from bcg.alignment import Dropped
from bcg.cards import make_card
from bcg.checking.compare import are_near
from bcg.checking.places import attribute_line, modules_around, split_path
from bcg.checking.seeding import find_seeding
from bcg.collectives import in_step
from bcg.context import forward_context
from bcg.diagnose.cards import cards_of
from bcg.diagnose.survey import BY_DRAWING, BY_INPUTS, BY_THE_HOST, Finding, Survey, frozen_numbers, survey
from bcg.errors import BcgError, first_line
from bcg.holdings import changed_paths
from bcg.inputs import Batch
from bcg.report import Card
from bcg.state import ModelState, have_drawn
from bcg.target import Target, make_batch

_SEEDS = (101, 102)


def survey_all(target: Target, sizes: Sequence[int]) -> tuple[list[Finding], list[Card]]:
    """Survey every size twice, with other values, and other requests where several may share a batch.

    Returns:
        Findings that a break may help with; what Python froze counts only where the host reads nothing. And cards of
        what may make a replay wrong: state that changes outside of breaks, and questions whether the code is captured
        where eager differs from itself, so that nobody can tell what the answer does.
    """
    findings: dict[tuple[str, str, str], Finding] = {}
    frozen: list[Finding] = []
    state_cards: list[Card] = []
    questions: dict[tuple[str, str, str], Finding] = {}
    for tokens in sizes:
        surveys = []
        several = (1, tokens - 1) if target.packs_requests and tokens > 1 else (tokens,)
        for seed, request_lengths in zip(_SEEDS, ((tokens,), several), strict=True):
            found, changed = _survey_once(target, _batch(target, request_lengths, seed))
            surveys.append(found)
            for finding in found.findings:
                findings.setdefault(finding.site, finding)
            for question in found.questions:
                questions.setdefault(question.site, question)
        if changed and not state_cards:
            state_cards.append(_state_card(target.module, changed))
        difference = frozen_numbers(*surveys, by=BY_INPUTS)
        if difference is not None:
            frozen.append(_moving_number(target, tokens) or difference)
    if sizes and target.alignment is None and (seeding := _seeding(target, min(sizes))) is not None:
        findings.setdefault(seeding.site, seeding)
    return list(findings.values()) or frozen[:1], state_cards + cards_of(questions.values())


def _moving_number(target: Target, tokens: int) -> Finding | None:
    """Return the first number that two forwards of one batch, from one state, are given differently.

    It was drawn, or where no generator has moved, it is of the host: a counter that no module holds, or a clock.
    """
    if target.alignment is not None:
        return None
    state = ModelState(target.module)
    base = state.save()
    surveys = []
    for _ in _SEEDS:
        batch = _batch(target, (tokens,), _SEEDS[0])
        with forward_context(batch.context()):
            surveys.append(survey(lambda: target(batch.inputs), target.device, notes_numbers=True))  # noqa: B023
        state.restore(base, generators=False)
    return frozen_numbers(*surveys, by=BY_DRAWING if have_drawn(base) else BY_THE_HOST)


def _seeding(target: Target, tokens: int) -> Finding | None:
    """Return where the forward sets the state of a generator of torch's, if it does.

    What Python's own generators give is frozen in the graph, and after a seed it is what eager draws again.
    """
    batch = _batch(target, (tokens,), _SEEDS[0])
    with forward_context(batch.context()):
        found = find_seeding(lambda: target(batch.inputs), (torch.Generator,))
    if found is None:
        return None
    reason = "it sets the state of a random generator"
    modules = modules_around(target.module, found.module if found.module in dict(target.module.named_modules()) else "")
    return Finding("L9", found.name, reason, modules, f"{found.file}:{found.line}")


def runnable(target: Target, sizes: Sequence[int]) -> list[int]:
    """Leave out the sizes at which the forward itself fails: the capture reports those."""
    return [tokens for tokens in sizes if not _on_any_rank(target, not _runs(target, tokens))]


def _runs(target: Target, tokens: int) -> bool:
    ranks = target.alignment
    batch = _batch(target, (tokens,), _SEEDS[0])
    if ranks is not None:
        ranks.begin(f"the first forward of {tokens} tokens")
    try:
        with forward_context(batch.context()), in_step(ranks, "running eagerly"):
            target(batch.inputs)
    except Dropped:
        return False
    except Exception as error:  # whatever the user's code raises, the capture will meet it again
        if ranks is not None:
            if isinstance(error, BcgError):
                raise
            ranks.drop(first_line(error))
        return False
    return True


def _on_any_rank(target: Target, here: bool) -> bool:
    return here if target.alignment is None else any(target.alignment.exchange(here))


def _batch(target: Target, request_lengths: tuple[int, ...], seed: int) -> Batch:
    return make_batch(target, request_lengths, torch.Generator(target.device).manual_seed(seed))


def _survey_once(target: Target, batch: Batch) -> tuple[Survey, list[str]]:
    """Run the target as it is, then under a survey, and compare: who asks, and gets another answer, may differ.

    Returns:
        The survey, and the state that changes outside of breaks.
    """
    ranks = target.alignment
    given: list[Any] = []
    passes_on: tuple[type[Exception], ...] = () if ranks is None else (BcgError,)
    if ranks is not None:
        ranks.begin(f"the survey of {batch.num_tokens} tokens")
    with forward_context(batch.context()):
        with in_step(ranks, "running eagerly"):
            plain = target(batch.copied_inputs())
        state, inputs = ModelState(target.module), batch.copied_inputs()
        before = state.look()
        with in_step(ranks, "being surveyed"):
            found = survey(lambda: given.append(target(inputs)), target.device, notes_numbers=True, passes_on=passes_on)
            if ranks is not None and not given:
                ranks.meet(found.findings[-1].reason)  # what fails on every rank may get a break
        changed = changed_paths(before, state.look()) if given else []
        if _on_any_rank(target, bool(changed)):
            with in_step(ranks, "being surveyed again"):
                changed = _changed_outside_breaks(target, batch, state, passes_on)
        is_other = bool(found.questions and given) and not are_near(plain, given[0])
        if _on_any_rank(target, is_other):
            with in_step(ranks, "running eagerly again"):
                again = target(batch.copied_inputs())
            if is_other and are_near(plain, again):
                found.findings += found.questions  # whoever asked computed something else
                is_other = False
    if not is_other:
        found.questions.clear()
    return found, changed


def _changed_outside_breaks(
    target: Target, batch: Batch, state: ModelState, passes_on: tuple[type[Exception], ...]
) -> list[str]:
    """Run another forward; return the state that it changes and that a replay of its segments would not."""
    before, inputs = state.look(), batch.copied_inputs()
    found = survey(lambda: target(inputs), target.device, state=state, passes_on=passes_on)
    return [path for path in changed_paths(before, state.look()) if path not in found.changed_in_breaks]


def _state_card(root: nn.Module, changed: list[str]) -> Card:
    shown = ", ".join(changed[:4]) + (f" and {len(changed) - 4} more" if len(changed) > 4 else "")
    module, attribute = split_path(root, changed[0])
    line = attribute_line(root, module, attribute)
    return make_card("S12", f"the forward changes {shown}, a replay does not", module=module, source_line=line)
