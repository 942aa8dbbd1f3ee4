"""Tables of numbers on the terminal."""

from __future__ import annotations

from rich.box import Box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Column, Table

MAX_WIDTH = 1000
RULED = Box("    \n    \n ── \n    \n    \n ── \n    \n    \n")


class RuledTable(Table):
    """A table of numbers under a rule, whose last column may hold words.

    No cell is cut or folded inside a word or number: where the terminal is narrower, lines are longer.
    """

    def __init__(self, *, show_footer: bool = False) -> None:
        super().__init__(
            box=RULED, show_edge=False, padding=0, show_footer=show_footer, header_style="bold", footer_style=""
        )

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for column in self.columns[:-1]:
            column.no_wrap = True
        needed = sum(self._least(column, console, options) for column in self.columns) + len(self.columns) - 1
        return super().__rich_console__(console, options.update(width=max(options.max_width, needed)))

    def _least(self, column: Column, console: Console, options: ConsoleOptions) -> int:
        wide = options.update(width=MAX_WIDTH)
        cells = (column.header, column.footer, *column.cells)
        widths = [Measurement.get(console, wide, cell) for cell in cells]
        return max(width.maximum if column.no_wrap else width.minimum for width in widths)
