"""Compiled code inside a capture: which modules run it, and compilations that come too late (hazard L10)."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn
from torch._dynamo.callback import callback_handler
from torch._dynamo.eval_frame import OptimizedModule

from bcg.breaks import is_in_break
from bcg.cards import hazard_warning
from bcg.report import ReportWarning
from bcg.whereabouts import from_search_path, line_of, users_frame


def runs_compiled_code(root: nn.Module) -> bool:
    """Tell whether a module in `root` was compiled, by `torch.compile` or its own `compile`.

    A forward that the compiler leaves alone, such as that of a break, carries the compiler's marks too.
    """
    return any(
        isinstance(part, OptimizedModule)
        or part._compiled_call_impl is not None
        or (hasattr(part.forward, "_torchdynamo_orig_callable") and not hasattr(part.forward, "_torchdynamo_disable"))
        for part in root.modules()
    )


@contextlib.contextmanager
def noted_compilations() -> Iterator[list[str]]:
    """Collect the lines of code, ``file:line``, that make torch's compiler work inside the block, breaks left out."""
    lines: list[str] = []

    def note(*_: Any) -> None:
        frame = users_frame(sys._getframe(1))
        if frame is not None and not is_in_break():
            lines.append(from_search_path(line_of(frame)))

    callback_handler.register_start_callback(note)
    try:
        yield lines
    finally:
        if note in callback_handler.start_callbacks:  # a reset of the compiler has dropped all of them
            callback_handler.remove_start_callback(note)


def late_compilation_warnings(compiled_at: Iterable[tuple[int, tuple[str, ...]]]) -> list[ReportWarning]:
    """Warn of each bucket in whose capture the compiler worked.

    Args:
        compiled_at: Token counts, and the lines of code that made it work.
    """
    return [
        hazard_warning("L10", f"torch's compiler worked inside the capture of {tokens} tokens, at {', '.join(lines)}")
        for tokens, lines in compiled_at
        if lines
    ]
