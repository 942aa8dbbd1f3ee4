"""Eager passes over a target: every size surveyed twice, with other values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from bcg.alignment import Dropped
from bcg.checking.compare import are_near
from bcg.collectives import in_step
from bcg.context import ForwardContext, forward_context
from bcg.diagnose.cards import cards_of
from bcg.diagnose.survey import Finding, Survey, changed_state, frozen_numbers, host_state, survey
from bcg.errors import BcgError
from bcg.hazards import HAZARDS
from bcg.inputs import Batch
from bcg.report import Card
from bcg.target import Target, first_line, make_batch

_SEEDS = (101, 102)


def survey_all(target: Target, sizes: Sequence[int]) -> tuple[list[Finding], list[Card]]:
    """Survey every size twice with other values.

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
        for seed in _SEEDS:
            found = _survey_once(target, tokens, seed)
            surveys.append(found)
            for finding in found.findings:
                findings.setdefault(finding.site, finding)
            for question in found.questions:
                questions.setdefault(question.site, question)
        if found.changed and not state_cards:
            state_cards.append(_state_card(found.changed))
        difference = frozen_numbers(*surveys)
        if difference is not None:
            frozen.append(difference)
    return list(findings.values()) or frozen[:1], state_cards + cards_of(questions.values())


def runnable(target: Target, sizes: Sequence[int]) -> list[int]:
    """Leave out the sizes at which the forward itself fails: the capture reports those."""
    return [tokens for tokens in sizes if not _on_any_rank(target, not _runs(target, tokens))]


def _runs(target: Target, tokens: int) -> bool:
    ranks = target.alignment
    batch = _batch(target, tokens, _SEEDS[0])
    if ranks is not None:
        ranks.begin(f"the first forward of {tokens} tokens")
    try:
        with forward_context(ForwardContext((tokens,))), in_step(ranks, "running eagerly"):
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


def _batch(target: Target, tokens: int, seed: int) -> Batch:
    return make_batch(target, (tokens,), torch.Generator(target.device).manual_seed(seed))


def _survey_once(target: Target, tokens: int, seed: int) -> Survey:
    """Run the target as it is, then under a survey, and compare: who asks, and gets another answer, may differ."""
    batch = _batch(target, tokens, seed)
    ranks = target.alignment
    given: list[Any] = []
    if ranks is not None:
        ranks.begin(f"the survey of {tokens} tokens")
    with forward_context(ForwardContext((tokens,))):
        before = host_state(target.module)
        with in_step(ranks, "running eagerly"):
            plain = target(batch.inputs)
        keeps_state = not changed_state(before, host_state(target.module))
        with in_step(ranks, "being surveyed"):
            found = survey(
                lambda: given.append(target(batch.inputs)),
                target.device,
                notes_numbers=True,
                state=None if keeps_state else lambda: host_state(target.module),
                passes_on=() if ranks is None else (BcgError,),
            )
            if ranks is not None and not given:
                ranks.meet(found.findings[-1].reason)  # what fails on every rank may get a break
        is_other = bool(found.questions and given) and not are_near(plain, given[0])
        if _on_any_rank(target, is_other):
            with in_step(ranks, "running eagerly again"):
                again = target(batch.inputs)
            if is_other and are_near(plain, again):
                found.findings += found.questions  # whoever asked computed something else
                is_other = False
    if not is_other:
        found.questions.clear()
    return found


def _state_card(changed: list[str]) -> Card:
    hazard = HAZARDS["S12"]
    shown = ", ".join(changed[:4]) + (f" and {len(changed) - 4} more" if len(changed) > 4 else "")
    return Card(
        hazard="S12",
        title=f"the forward changes {shown}",
        cause=hazard.cause,
        module=changed[0].rpartition(".")[0],
        remedy=hazard.remedy,
    )
