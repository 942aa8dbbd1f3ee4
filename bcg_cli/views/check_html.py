"""A replay check's report as an HTML page."""

from __future__ import annotations

from bcg.report import CheckReport, PromptCheck
from bcg_cli.views.check_table import divergence_words, prompts_words, spread_words, verdict_words
from bcg_cli.views.page import Tile, bullets, header, page, section, table, tiles
from bcg_cli.views.page_parts import (
    about_lines,
    automatic_sections,
    card_sections,
    footer,
    options_section,
    warning_sections,
)
from bcg_cli.views.ranks import VERDICT_CLASS, marked, verdicts_section
from bcg_cli.views.words import format_error


def check_page(report: CheckReport) -> str:
    """Returns all that a replay check's report holds as one page.

    Args:
        report: The report; nothing else is read.
    """
    body = [
        header("replay check", report.model.name, about_lines(report.model, report.environment, len(report.ranks))),
        tiles(_facts(report)),
        *warning_sections(report.warnings),
        *card_sections(report.findings),
        section(
            "Token counts", "Every replay against eager on the same inputs.", _bucket_table(report) + _notes(report)
        ),
        *automatic_sections(report.automatic_breaks),
        *([_prompts_section(report.prompts)] if report.prompts else []),
        *([verdicts_section(report.ranks, report.assembled)] if report.ranks else []),
        section("Time", "Wall time of the parts of the check.", _timing(report)),
        options_section(report.options),
        footer(report.environment, on_host=report.on_host),
    ]
    return page(f"{report.model.name}: bcg replay-check", body, {})


def _facts(report: CheckReport) -> list[Tile]:
    num_matches = sum(bucket.verdict == "match" for bucket in report.buckets)
    facts: list[Tile] = [
        (report.verdict, "verdict", VERDICT_CLASS[report.verdict]),
        (f"{num_matches} of {len(report.buckets)}", "token counts match"),
        (f"{sum(bucket.num_replays for bucket in report.buckets):,}", "replays compared"),
        (f"{sum(bucket.num_launches for bucket in report.buckets):,}", "segments launched"),
    ]
    if report.prompts is not None:
        facts.append((f"{report.prompts.num_replayed} of {report.prompts.num_prompts}", "prompts replayed"))
    return facts


def _bucket_table(report: CheckReport) -> str:
    rows = [
        (
            f"{bucket.tokens:,}",
            marked(bucket.verdict, verdict_words(bucket.verdict, bucket.bitwise, bucket.max_rel_error)),
            f"{bucket.num_replays:,}",
            f"{bucket.num_launches:,}",
            format_error(bucket.max_abs_error),
            format_error(bucket.max_rel_error),
        )
        for bucket in report.buckets
    ]
    return table(("tokens", "verdict", "replays", "launches", "max error", "relative"), rows, text_columns=(0, 1))


def _notes(report: CheckReport) -> str:
    """Returns why a token count does not match, where it parts from eager, and what can't be compared."""
    lines = []
    for bucket in report.buckets:
        parts = [divergence_words(bucket.first_divergence)] if bucket.first_divergence else []
        lines += [f"{bucket.tokens:,} tokens: {words}" for words in (*bucket.reasons, *parts)]
    lines += [spread_words(report.spread)] if report.spread != 0 else []
    return bullets(lines)


def _prompts_section(prompts: PromptCheck) -> str:
    words = verdict_words(prompts.verdict, prompts.bitwise, prompts.max_rel_error)
    errors = f"max error {format_error(prompts.max_abs_error)}, relative {format_error(prompts.max_rel_error)}"
    return section("Prompts", prompts_words(prompts), f"<p>{marked(prompts.verdict, words)}: {errors}</p>")


def _timing(report: CheckReport) -> str:
    timing = report.timing
    rows = [
        ("model", f"{timing.model_ms:,.0f} ms"),
        ("capture", f"{timing.capture_ms:,.0f} ms"),
        ("eager", f"{timing.eager_ms:,.0f} ms"),
        ("replays", f"{timing.replay_ms:,.0f} ms"),
        ("prompts", f"{timing.prompts_ms:,.0f} ms"),
        ("locating", f"{timing.locate_ms:,.0f} ms"),
    ]
    return table(("part", "time"), rows)
