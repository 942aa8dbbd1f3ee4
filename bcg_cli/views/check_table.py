"""A replay check's report as text for the terminal: verdicts by bucket, prompts, findings, where the time went."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.text import Text

from bcg.report import CheckBucket, CheckReport, Divergence, PromptCheck, Verdict
from bcg_cli.views.findings import found_parts
from bcg_cli.views.ranks import VERDICT_STYLE, verdict_lines
from bcg_cli.views.ruled_table import RuledTable
from bcg_cli.views.text_parts import header_text
from bcg_cli.views.words import format_error


def check_view(report: CheckReport) -> RenderableType:
    """Returns all that ``bcg replay-check`` shows.

    Args:
        report: The report; nothing else is read.
    """
    parts: list[RenderableType] = [
        header_text(report.model, report.environment, len(report.ranks)),
        Text(),
        _bucket_table(report),
        *_notes(report),
    ]
    parts += verdict_lines(report.ranks, report.assembled)
    parts += found_parts(report.automatic_breaks, warnings=report.warnings, cards=report.findings)
    return Group(*parts)


def verdict_words(verdict: Verdict, bitwise: bool, max_rel_error: float | None) -> str:
    """Returns a verdict with what kind of match it is: ``match (bitwise)``, ``match (within 3e-07)``."""
    if verdict != "match":
        return verdict
    return "match (bitwise)" if bitwise else f"match (within {format_error(max_rel_error)})"


def divergence_words(place: Divergence) -> str:
    """Returns where replay and eager part: ``the output of layers.0 (model.py:13) differs first``."""
    source = f" ({place.source_line})" if place.source_line else ""
    return f"the {place.part} of {place.module or 'the root'}{source} differs first"


def spread_words(spread: float | None) -> str:
    """Returns what an eager that differs from itself means for the check."""
    by = "NaN or infinity" if spread is None else f"{spread:.1e}"
    return f"Eager differs from itself by {by}: no bits are compared."


def prompts_words(prompts: PromptCheck) -> str:
    """Returns which prompts were replayed, and how many next tokens are the same; not the verdict."""
    num_same = prompts.num_next_tokens - prompts.num_other_next_tokens
    tokens = f", {num_same} of {prompts.num_next_tokens} next tokens the same" if prompts.num_next_tokens else ""
    return (
        f"{prompts.num_replayed} of {prompts.num_prompts} replayed, {prompts.num_tokens:,} tokens in "
        f"{prompts.num_batches} batch{'' if prompts.num_batches == 1 else 'es'}{tokens}"
    )


def _bucket_table(report: CheckReport) -> RuledTable:
    table = RuledTable(show_footer=True)
    num_replays = sum(bucket.num_replays for bucket in report.buckets)
    num_launches = sum(bucket.num_launches for bucket in report.buckets)
    for header, footer in (
        ("tokens", "total"),
        ("replays", f"{num_replays:,}"),
        ("launches", f"{num_launches:,}"),
        ("max error", ""),
        ("relative", ""),
    ):
        table.add_column(header, footer, justify="right", vertical="top")
    num_matches = sum(bucket.verdict == "match" for bucket in report.buckets)
    table.add_column("verdict", f"{num_matches} of {len(report.buckets)} match")
    for bucket in report.buckets:
        table.add_row(*_bucket_cells(bucket))
    return table


def _bucket_cells(bucket: CheckBucket) -> list[Text]:
    words = verdict_words(bucket.verdict, bucket.bitwise, bucket.max_rel_error)
    return [
        Text(f"{bucket.tokens:,}"),
        Text(f"{bucket.num_replays:,}"),
        Text(f"{bucket.num_launches:,}"),
        Text(format_error(bucket.max_abs_error)),
        Text(format_error(bucket.max_rel_error)),
        Text(words, VERDICT_STYLE[bucket.verdict]),
    ]


def _notes(report: CheckReport) -> Iterator[Text]:
    for bucket in report.buckets:
        for reason in bucket.reasons:
            yield Text(f"{bucket.tokens:,} tokens: {reason}", VERDICT_STYLE[bucket.verdict])
        if bucket.first_divergence is not None:
            yield Text(f"{bucket.tokens:,} tokens: {divergence_words(bucket.first_divergence)}")
    if report.spread != 0:
        yield Text(spread_words(report.spread), "yellow")
    if report.prompts is not None:
        words = verdict_words(report.prompts.verdict, report.prompts.bitwise, report.prompts.max_rel_error)
        yield Text.assemble(
            f"Prompts: {prompts_words(report.prompts)}: ", (words, VERDICT_STYLE[report.prompts.verdict])
        )
    timing = report.timing
    yield Text(
        f"Model {timing.model_ms:,.0f} ms, capture {timing.capture_ms:,.0f} ms, eager {timing.eager_ms:,.0f} ms, "
        f"replays {timing.replay_ms:,.0f} ms"
        + (f", prompts {timing.prompts_ms:,.0f} ms" if timing.prompts_ms else "")
        + (f", locating {timing.locate_ms:,.0f} ms" if timing.locate_ms >= 1 else "")
        + ".",
        "dim",
    )
    if report.on_host:
        yield Text("Checked on the host device: the same rules as a GPU's, not its kernels.", "dim")
