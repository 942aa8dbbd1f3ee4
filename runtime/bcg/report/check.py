"""The report of ``bcg replay-check``."""

from __future__ import annotations

from typing import Literal

import msgspec

from bcg.report.common import ReportHead, ReportWarning, Verdict
from bcg.report.findings import AutomaticBreak, Card
from bcg.report.ranks import AssembledCheck, RankVerdict


class Divergence(msgspec.Struct, frozen=True, kw_only=True):
    """Where replay and eager part, in execution order.

    Attributes:
        module: Path of the first module that gives something else; empty for the root.
        part: ``output`` where its inputs were still the same, ``input`` where the code around it gave it others.
        call: Which call of the module in one forward, from 0.
        max_rel_error: Relative to the largest magnitude of the tensor; None where it can't be compared.
        source_line: ``file:line`` of the module's forward.
    """

    module: str
    part: Literal["input", "output"]
    call: int = 0
    max_rel_error: float | None = None
    source_line: str = ""


class CheckBucket(msgspec.Struct, frozen=True, kw_only=True):
    """What the check found about one token count.

    Attributes:
        tokens: The bucket.
        bitwise: Every bit of every compared result was the same.
        max_abs_error: Largest difference from eager; None where something couldn't be compared.
        max_rel_error: The same, relative to the largest magnitude of its tensor.
        num_replays: Replays that were compared with eager.
        num_launches: Segments that these launched.
        reasons: Why this is no match, one line each.
        first_divergence: Where the smallest failed batch parts from eager, if it was located.
    """

    tokens: int
    verdict: Verdict
    bitwise: bool
    max_abs_error: float | None = None
    max_rel_error: float | None = None
    num_replays: int = 0
    num_launches: int = 0
    reasons: list[str] = []
    first_divergence: Divergence | None = None


class PromptCheck(msgspec.Struct, frozen=True, kw_only=True):
    """What replaying real prompts told.

    Attributes:
        num_prompts: Read from the file.
        num_replayed: Compared through a graph.
        num_eager: Longer than the largest bucket: run eagerly, and not replayed.
        num_batches: Batches that they were packed into.
        num_tokens: Real tokens of the replayed prompts.
        bitwise: Every bit was the same.
        max_abs_error: Largest difference from eager; None where something couldn't be compared.
        max_rel_error: The same, relative to the largest magnitude of its tensor.
        num_next_tokens: Prompts whose greedy next token was compared; 0 for a model without a language-model head.
        num_other_next_tokens: Those of them where replay chose another token than eager.
    """

    verdict: Verdict
    num_prompts: int
    num_replayed: int
    num_eager: int
    num_batches: int
    num_tokens: int
    bitwise: bool
    max_abs_error: float | None = None
    max_rel_error: float | None = None
    num_next_tokens: int = 0
    num_other_next_tokens: int = 0


class CheckTiming(msgspec.Struct, frozen=True, kw_only=True):
    """Where the time of a check went, in milliseconds of wall time.

    Attributes:
        model_ms: Making the model; 0 where it was there already.
        capture_ms: Warm-ups and captures.
        eager_ms: The eager runs that replays are compared with.
        replay_ms: Replays and comparisons.
        prompts_ms: Prompts, eager and replayed.
        locate_ms: Finding the first divergence and its cause.
    """

    model_ms: float = 0.0
    capture_ms: float = 0.0
    eager_ms: float = 0.0
    replay_ms: float = 0.0
    prompts_ms: float = 0.0
    locate_ms: float = 0.0


class CheckReport(ReportHead, frozen=True, kw_only=True, tag_field="kind", tag="replay-check"):
    """What ``bcg replay-check`` found.

    Attributes:
        verdict: Match only if every bucket and the prompts match, and something was replayed.
        spread: How far two eager runs of one batch are apart, relative to the scale; 0 where they agree bitwise, None
            where that is no number, as with NaN in one of them.
        ranks: A row from each process that the model is sharded over; empty for one process.
        assembled: What they give together, against one process; None where that was not compared.
        findings: What is wrong, each named by its row of the catalogue where it is known.
        automatic_breaks: Those that it was checked with and nobody asked for, and why they are there.
    """

    verdict: Verdict
    buckets: list[CheckBucket]
    spread: float | None = 0.0
    prompts: PromptCheck | None = None
    findings: list[Card] = []
    warnings: list[ReportWarning] = []
    timing: CheckTiming
    ranks: list[RankVerdict] = []
    assembled: AssembledCheck | None = None
    automatic_breaks: list[AutomaticBreak] = []
