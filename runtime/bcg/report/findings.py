"""What a capture found out besides its graphs, as plain data inside its report."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

BreakSize: TypeAlias = Literal["pin", "operation", "function", "module"]


class BucketFitRow(msgspec.Struct, frozen=True, kw_only=True):
    """What a bucket list does to an observed workload.

    Attributes:
        name: ``chosen``, or whose list it is.
        padded_tokens: Rows computed for nothing.
        real_tokens: Rows computed for a request.
        replayed_steps: Steps of the workload that a bucket holds.
        used_buckets: Buckets that are ever replayed.
        memory_bytes: Estimate of the pool and the graphs of all buckets, if one was made.
    """

    name: str
    buckets: list[int]
    padded_tokens: int
    real_tokens: int
    replayed_steps: int
    num_steps: int
    used_buckets: int
    memory_bytes: int | None = None


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """A diagnosis: what can't be captured or can't be trusted, where, why, and what to do.

    Attributes:
        hazard: Row of the catalogue, such as ``L1``.
        title: What happens there, in one line.
        cause: The catalogue's cause.
        operation: Such as ``aten._local_scalar_dense.default``.
        module: Path of the innermost module whose forward was running; empty for the root.
        source_line: ``file:line`` in the user's or the architecture's file.
        driver_text: What the driver said, if it was asked.
        remedy: What to change in the code.
        break_option: What to add to the command line; empty where no module but the root is around it.
        occurrences: How many operations the card stands for.
    """

    hazard: str
    title: str
    cause: str
    operation: str = ""
    module: str = ""
    source_line: str = ""
    driver_text: str = ""
    remedy: str = ""
    break_option: str = ""
    occurrences: int = 1


class AutomaticBreak(msgspec.Struct, frozen=True, kw_only=True):
    """A break, or a pinned constant, that nobody asked for.

    Replays with other inputs showed that it is right, or `doubt` says why they could not.

    Attributes:
        size: ``pin`` is a value computed once, which costs no break.
        name: Of the operation, function or module class.
        module: Path of the module that it runs in, or that it is.
        option: Command-line words that make it explicit; empty for a pin.
        decorator: Line of code that makes it explicit, and where to put it; empty where no function is around it.
        card: Why it is there: what was found first.
        other_cards: What else was found that it helps with.
        doubt: Why replays could not show that it is right.
    """

    size: BreakSize
    name: str
    module: str
    option: str
    decorator: str
    card: Card
    other_cards: list[Card] = []
    doubt: str = ""
