"""What to profile, and what each mode's process told about it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from bcg.buckets import default_buckets
from bcg.distributed.member import DEFAULT_TIMEOUT_S
from bcg.errors import BcgError
from bcg.modes.base import Counts
from bcg.profile.messages import AllPrepared, Loaded, Looked, Measured
from bcg.report import ModeName
from bcg.words import TargetWords


@dataclass(frozen=True)
class Plan:
    """What to profile.

    Attributes:
        words: What the target of each mode is made from.
        buckets: Token counts; none for the defaults of the device that the model takes.
        steps_per_round: Measured steps of each mode and bucket in a round.
        nvtx: Whether an attached tool gets NVTX ranges.
        trace: Where to write a trace of one step of each bucket, if anywhere.
        num_ranks: Processes that a torch launcher started for each mode; None without one. They run the modes one
            after another, so that they need not agree on what fits.
        rank_timeout_s: After which a rank without progress ends its mode.
    """

    words: TargetWords
    buckets: tuple[int, ...]
    modes: tuple[ModeName, ...]
    num_rounds: int = 10
    steps_per_round: int = 5
    nvtx: bool = True
    trace: str | None = None
    num_ranks: int | None = None
    rank_timeout_s: float = DEFAULT_TIMEOUT_S

    def for_model(self, max_tokens: int | None) -> Plan:
        """Return the plan with its buckets, for a model that takes at most so many tokens."""
        return replace(self, buckets=self.buckets or default_buckets(self.words.device_type, max_tokens))


@dataclass
class ModeRun:
    """All that one mode's process told.

    Attributes:
        unavailable: Why it can't exist on this device at all; then nothing is told.
        error: What ended the mode; what was measured before stays.
        in_turns: Whether it takes turns with the others in every round, instead of running alone.
        rounds: By bucket, a measurement a round.
    """

    mode: ModeName
    unavailable: str | None = None
    error: BcgError | None = None
    in_turns: bool = False
    loaded: Loaded | None = None
    prepared: AllPrepared | None = None
    rounds: dict[int, list[Measured]] = field(default_factory=dict)
    looks: dict[int, Looked] = field(default_factory=dict)
    counts: Counts = field(default_factory=Counts)

    @property
    def failure(self) -> str | None:
        """What ended the mode, in words."""
        if self.error is None:
            return None
        return f"{self.error.message}: {self.error.hint}" if self.error.hint else self.error.message

    def ready(self) -> list[int]:
        """The token counts that can be measured, the smallest first."""
        if self.error is not None or self.prepared is None:
            return []
        preparations = [one.preparation for one in self.prepared.buckets]
        return sorted(one.tokens for one in preparations if one.status == "measured")
