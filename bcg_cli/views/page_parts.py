"""What pages of several kinds show: the model and the device, warnings, automatic breaks, cards, options, versions."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from bcg.report import (
    AutomaticBreak,
    BucketFitRow,
    Card,
    Environment,
    ModelInfo,
    OptionValue,
    ReportWarning,
    option_words,
)
from bcg_cli.views.findings import FIT_COLUMNS, card_head, card_rows, chosen_words, fit_cells
from bcg_cli.views.page import fold, section, table
from bcg_cli.views.words import device_words, model_words, version_words


def about_lines(model: ModelInfo, environment: Environment, num_ranks: int) -> list[str]:
    """Returns the model and the device in words."""
    return [model_words(model), device_words(environment, num_ranks)]


def warning_sections(warnings: Sequence[ReportWarning]) -> list[str]:
    """Returns a card for each warning, with its cause and remedy."""
    return [
        section(
            warning.message,
            "",
            f"<dl><dt>cause</dt><dd>{escape(warning.cause)}</dd><dt>remedy</dt><dd>{escape(warning.remedy)}</dd></dl>",
            style="warning",
        )
        for warning in warnings
    ]


def options_section(options: dict[str, OptionValue]) -> str:
    """Returns the options of the run, closed at first."""
    rows = []
    for name, value in options.items():
        words = option_words(value, if_none="default")
        rows.append([escape(name.replace("_", " ")), f"<code>{escape(words)}</code>"])
    return section("This run", "", fold("options", table(["option", "value"], rows, prose_columns=(1,))))


def footer(environment: Environment, *, on_host: bool) -> str:
    """Returns the versions, and on the host device what its times are worth."""
    host = "Measured on the host device: its times say nothing about a GPU. " if on_host else ""
    return f"<footer>{host}{escape(version_words(environment, with_python=True))}</footer>"


def automatic_sections(breaks: Sequence[AutomaticBreak]) -> list[str]:
    """Returns the section of the breaks that nobody asked for, if there are any."""
    if not breaks:
        return []
    rows = [
        [
            f'<span class="break-name">{escape(row.size)}</span> <code>{escape(row.module)}</code> {escape(row.name)}',
            "<br>".join(
                f"{escape(card.hazard)}: {escape(card.title)} <code>{escape(card.source_line)}</code>"
                for card in (row.card, *row.other_cards)
            ),
            "<br>or ".join(f"<code>{escape(words)}</code>" for words in (row.option, row.decorator) if words),
        ]
        for row in breaks
    ]
    content = table(["break", "why", "explicit"], rows, text_columns=(), prose_columns=(0, 1, 2))
    doubt = next((row.doubt for row in breaks if row.doubt), "")
    verified = f"not verified: {doubt}" if doubt else "replays of full buckets with other inputs showed them right"
    return [section("Automatic breaks", f"Nobody asked for these; {verified}.", content)]


def card_sections(cards: Sequence[Card]) -> list[str]:
    """Returns a section for each card, with all that it says."""
    return [
        section(
            "".join(card_head(card)),
            "",
            table((), [(name, escape(value)) for name, value in card_rows(card)], prose_columns=(1,)),
            style="finding",
        )
        for card in cards
    ]


def workload_sections(rows: Sequence[BucketFitRow]) -> list[str]:
    """Returns what bucket lists do to the workload that the first one was chosen for, if there is one."""
    if not rows:
        return []
    cells = [[escape(cell) for cell in fit_cells(row)] for row in rows]
    steps = f"What lists of token counts do to the {rows[0].num_steps:,} steps that were observed."
    chosen = f'<p class="muted"><code>{escape(chosen_words(rows))}</code></p>'
    return [section("Workload", steps, table(FIT_COLUMNS, cells) + chosen)]
