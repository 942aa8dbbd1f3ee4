"""What reports of several kinds show on the terminal: their head, and warnings."""

from __future__ import annotations

from rich.text import Text

from bcg.report import Environment, ModelInfo, ReportWarning
from bcg_cli.views.words import device_words, model_words, version_words


def header_text(model: ModelInfo, environment: Environment, num_ranks: int) -> Text:
    """Returns the model in one line, and what it was run on in another."""
    return Text("\n").join(
        [
            Text.assemble((model.name, "bold"), ": ", model_words(model)),
            Text.assemble((device_words(environment, num_ranks), "bold"), ": ", version_words(environment)),
        ]
    )


def warning_text(warning: ReportWarning) -> Text:
    """Returns a warning with its cause and remedy."""
    return Text.assemble(
        ("warning: ", "bold yellow"),
        warning.message,
        ("\n  cause:  ", "dim"),
        warning.cause,
        ("\n  remedy: ", "dim"),
        warning.remedy,
    )
