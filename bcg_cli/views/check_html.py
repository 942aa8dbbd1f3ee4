"""A replay check's report as an HTML page."""

from __future__ import annotations

from html import escape

from bcg.report import Card, CheckReport
from bcg_cli.views.check_table import format_error, verdict_words
from bcg_cli.views.html import about_lines, footer, options_section, warning_sections
from bcg_cli.views.page import header, page, section, table, tiles
from bcg_cli.views.ranks import verdicts_section


def check_page(report: CheckReport) -> str:
    """Returns all that a replay check's report holds as one page.

    Args:
        report: The report; nothing else is read.
    """
    body = [
        header("replay check", report.model.name, about_lines(report.model, report.environment)),
        tiles(_facts(report)),
        *warning_sections(report.warnings),
        *(_finding(card) for card in report.findings),
        section("Token counts", "Every replay against eager on the same inputs.", _bucket_table(report)),
        *([verdicts_section(report.ranks, report.assembled)] if report.ranks else []),
        section("Time", "Wall time of the parts of the check.", _timing(report)),
        options_section(report.options),
        footer(report.environment, on_host=report.on_host),
    ]
    return page(f"{report.model.name}: bcg replay-check", body, {})


def _facts(report: CheckReport) -> list[tuple[str, str]]:
    num_matches = sum(bucket.verdict == "match" for bucket in report.buckets)
    facts = [
        (report.verdict, "verdict"),
        (f"{num_matches} of {len(report.buckets)}", "token counts match"),
        (f"{sum(bucket.num_replays for bucket in report.buckets):,}", "replays compared"),
        (f"{sum(bucket.num_launches for bucket in report.buckets):,}", "segments launched"),
    ]
    if report.prompts is not None:
        facts.append((f"{report.prompts.num_replayed} of {report.prompts.num_prompts}", "prompts replayed"))
    return facts


def _finding(card: Card) -> str:
    rows = (
        ("module", card.module),
        ("operation", card.operation),
        ("line", card.source_line),
        ("driver", card.driver_text),
        ("cause", card.cause),
        ("remedy", card.remedy),
    )
    cells = [(escape(name), escape(value)) for name, value in rows if value]
    return section(f"{card.hazard or 'Unknown cause'}: {card.title}", "", table((), cells, prose_columns=(1,)))


def _bucket_table(report: CheckReport) -> str:
    rows = [
        (
            f"{bucket.tokens:,}",
            f"{bucket.num_replays:,}",
            f"{bucket.num_launches:,}",
            format_error(bucket.max_abs_error),
            format_error(bucket.max_rel_error),
            escape(verdict_words(bucket.verdict, bucket.bitwise, bucket.max_rel_error)),
            escape("; ".join(bucket.reasons)),
        )
        for bucket in report.buckets
    ]
    head = ("tokens", "replays", "launches", "max error", "relative", "verdict", "why")
    return table(head, rows, text_columns=(5,), prose_columns=(6,))


def _timing(report: CheckReport) -> str:
    timing = report.timing
    rows = [
        ("model", f"{timing.model_ms:.0f} ms"),
        ("capture", f"{timing.capture_ms:.0f} ms"),
        ("eager", f"{timing.eager_ms:.0f} ms"),
        ("replays", f"{timing.replay_ms:.0f} ms"),
        ("prompts", f"{timing.prompts_ms:.0f} ms"),
        ("locating", f"{timing.locate_ms:.0f} ms"),
    ]
    return table(("part", "time"), rows)
