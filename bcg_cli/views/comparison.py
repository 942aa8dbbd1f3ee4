"""Two reports against each other, as text for the terminal."""

from __future__ import annotations

import math

from rich.console import Group, RenderableType
from rich.text import Text

from bcg.report.compare import Change, Comparison
from bcg_cli.views.ruled_table import RuledTable
from bcg_cli.views.words import format_mebibytes

_STYLES = {"FASTER": "green", "SMALLER": "green", "SLOWER": "red", "LARGER": "red", "UNCLEAR": "yellow"}


def comparison_view(comparison: Comparison, old: str, new: str) -> RenderableType:
    """Returns a table of all changes.

    Args:
        comparison: What was found.
        old: What to call the old report.
        new: What to call the new one.
    """
    table = RuledTable()
    for index, column in enumerate(("what", "quantity", "old", "new", "change", "±")):
        table.add_column(column, justify="left" if index < 2 else "right")
    table.add_column("verdict")
    for change in comparison.changes:
        table.add_row(
            change.what,
            _quantity(change),
            _value(change, change.old),
            _value(change, change.new),
            _percent(change.change, "+.1%"),
            _percent(change.uncertainty, ".1%"),
            Text(change.verdict, _STYLES.get(change.verdict, "")),
        )
    lost = [Text(line, "red") for line in comparison.lost]
    remarks = [Text(line, "yellow") for line in comparison.remarks]
    differences = [Text(f"not the same: {line}", "yellow") for line in comparison.differences]
    return Group(Text(f"{new} against {old}", "bold"), Text(), table, *lost, *remarks, *differences)


def change_in_words(change: Change) -> str:
    """Returns a change in one line, in the table's units: ``full, 16 tokens: step ms 11 before, 12.1 now``."""
    before, after = _value(change, change.old), _value(change, change.new)
    return f"{change.what}: {_quantity(change)} {before} before, {after} now"


def _quantity(change: Change) -> str:
    return change.quantity.replace("bytes", "MiB")


def _value(change: Change, value: float) -> str:
    if change.quantity.endswith("bytes"):
        return format_mebibytes(int(value))
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}"


def _percent(value: float | None, form: str) -> str:
    if value is None:
        return "–"
    return "new" if math.isinf(value) else format(value, form)
