"""The forward context: the live facts of one batch that breaks read at replay.

A captured graph freezes everything that Python computed, so whatever changes from batch to batch
(how many requests, how long each is) reaches the breaks through here, not through their arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from types import MappingProxyType
from typing import Any, TypeVar

import torch

from bcg.errors import ReplayError

T = TypeVar("T")


@dataclass(frozen=True)
class ForwardContext:
    """The requests that one forward serves, one after the other along the token dimension.

    Whoever serves the batch makes one and drops it afterwards; the graphs keep no reference to it.

    Attributes:
        request_lengths: Real tokens of each request, all positive. Their sum may be smaller than the
            bucket; the rows after it are padding.
        extras: Further facts for breaks of one's own (an open record).
    """

    request_lengths: tuple[int, ...]
    extras: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    _made: dict[object, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "request_lengths", tuple(self.request_lengths))
        if not self.request_lengths or min(self.request_lengths) < 1:
            raise ReplayError(f"a forward context needs requests of at least one token, got {self.request_lengths}")

    @cached_property
    def num_tokens(self) -> int:
        """Real tokens of the batch, padding not counted."""
        return sum(self.request_lengths)

    @cached_property
    def max_length(self) -> int:
        """Tokens of the longest request."""
        return max(self.request_lengths)

    def is_whole_request(self, num_rows: int) -> bool:
        """Tell whether the batch is one request of `num_rows` tokens: nothing to tell apart, no padding."""
        return self.request_lengths == (num_rows,)

    def offsets(self) -> tuple[int, ...]:
        """Row at which each request starts, and after the last one the number of real tokens."""
        return self.once("offsets", lambda: (0, *accumulate(self.request_lengths)))

    def cu_seqlens(self, device: torch.device | str) -> torch.Tensor:
        """Return `offsets` as an int32 tensor on `device`, copied there once for the whole forward."""
        return self.once(
            ("cu_seqlens", str(device)),
            lambda: torch.tensor(self.offsets(), dtype=torch.int32, device=device),
        )

    def once(self, key: object, make: Callable[[], T]) -> T:
        """Return what `make` gives, made at the first call with this key and kept as long as the context.

        Breaks use it for what every layer needs again, such as attention masks.
        """
        try:
            return self._made[key]  # type: ignore[no-any-return]
        except KeyError:
            made = self._made[key] = make()
            return made


_current: ContextVar[ForwardContext | None] = ContextVar("bcg_forward_context", default=None)


@contextmanager
def forward_context(context: ForwardContext | None) -> Iterator[None]:
    """Make `context` the one that breaks of this thread see inside the `with` block."""
    token = _current.set(context)
    try:
        yield
    finally:
        _current.reset(token)


def current_forward_context() -> ForwardContext | None:
    """Return the context of the batch being run, or None outside of one."""
    return _current.get()


def check_fits(context: ForwardContext, num_rows: int) -> None:
    """Refuse a context that describes more tokens than a break was given rows.

    Called before a break launches anything: past this point a wrong length is an illegal access.

    Raises:
        ReplayError: If the request lengths sum to more than `num_rows`.
    """
    if context.num_tokens > num_rows:
        raise ReplayError(
            f"the forward context describes {context.num_tokens} tokens in {len(context.request_lengths)} "
            f"requests, but the batch has only {num_rows} rows",
            hint="make the context from the same batch that is replayed",
        )
