"""`full`: one graph for the whole forward, its breaks captured like everything else."""

from __future__ import annotations

from contextlib import AbstractContextManager

from bcg.breaks import inline_breaks
from bcg.modes.captured import Captured
from bcg.report import ModeName


class Full(Captured):
    """The target captured without breaks: the same functions as `breakable` runs, inside the graph.

    What depends on the live batch (request lengths, masks) is frozen in such a graph, so it serves batches of one
    request only; it is here to tell what the breaks cost.
    """

    name: ModeName = "full"

    def surroundings(self) -> AbstractContextManager[None]:
        return inline_breaks()
