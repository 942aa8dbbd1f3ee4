"""What the modes that use torch's compiler share: its settings, and what it admits to have done."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module

import torch
import torch._dynamo
import torch._inductor.config
import torch.fx.experimental._config
from torch._dynamo.utils import counters
from torch._inductor import cudagraph_utils

RECOMPILE_LIMIT = 256
"""One compilation a bucket and layer kind must fit; torch's default of 8 falls back to eager without a word."""


@dataclass(frozen=True)
class CompilerCounts:
    """What the compiler counted.

    Attributes:
        graphs: Graphs compiled.
        breaks: Places where a compiled function was cut.
        skips: CUDA graphs that it gave up on.
        notes: Its reasons for the cuts, each once.
    """

    graphs: int
    breaks: int
    skips: int
    notes: list[str] = field(default_factory=list)

    def since(self, earlier: CompilerCounts) -> CompilerCounts:
        """Return what was counted after an earlier reading."""
        return CompilerCounts(
            self.graphs - earlier.graphs,
            self.breaks - earlier.breaks,
            self.skips - earlier.skips,
            [note for note in self.notes if note not in earlier.notes],
        )


def start_compiler() -> None:
    """Load the compiler and start its worker processes, which takes seconds that can pass while a model is loaded.

    A kernel that comes before they are ready is compiled in this process, one after the other.
    """
    workers = import_module("torch._inductor.async_compile")
    if hasattr(workers, "maybe_warm_pool"):
        workers.maybe_warm_pool()
    import_module("torch._inductor.compile_fx")


def compiler_settings(**inductor: object) -> None:
    """Set the compiler up for a process that runs one mode.

    Sizes that happen to be equal in the first batch are not taken for one size: with as many tokens as the hidden size
    (4096 of both for Qwen3-8B) that would compile a static forward first, and once more for the other buckets.
    """
    torch.fx.experimental._config.use_duck_shape = False
    torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
    torch._dynamo.config.accumulated_recompile_limit = 4 * RECOMPILE_LIMIT
    if hasattr(torch._dynamo.config, "nested_graph_breaks"):  # fewer, larger pieces around a break
        torch._dynamo.config.nested_graph_breaks = True
    for name, value in inductor.items():
        setattr(torch._inductor.config, name, value)


def without_nested_breaks() -> bool:
    """Forget what was compiled and compile in smaller pieces from now on; return whether that is new."""
    if not getattr(torch._dynamo.config, "nested_graph_breaks", False):
        return False
    torch._dynamo.config.nested_graph_breaks = False
    torch._dynamo.reset()
    return True


def read_counts() -> CompilerCounts:
    """Read the compiler's counters."""
    reasons = counters["graph_break"]
    return CompilerCounts(
        graphs=counters["stats"]["unique_graphs"],
        breaks=sum(reasons.values()),
        skips=counters["inductor"]["cudagraph_skips"],
        notes=[" ".join(reason.split("\n")[0].split())[:160] for reason in reasons if "disable()" not in reason],
    )


class _Reasons(logging.Handler):
    def __init__(self, reasons: list[str]) -> None:
        super().__init__()
        self._reasons = reasons

    def emit(self, record: logging.LogRecord) -> None:
        self._reasons.append(" ".join(record.getMessage().split())[:240])


@contextmanager
def skip_reasons() -> Iterator[list[str]]:
    """Collect the compiler's reasons for skipping CUDA graphs in the block."""
    logger = getattr(cudagraph_utils, "cudagraphs_log", None) or getattr(cudagraph_utils, "perf_hint_log", None)
    reasons: list[str] = []
    if logger is None:
        yield reasons
        return
    handler, level, propagate = _Reasons(reasons), logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    try:
        yield reasons
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
