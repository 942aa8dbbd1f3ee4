"""What replays showed about each bucket, and what that means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from bcg.checking.compare import Comparison
from bcg.checking.plan import Trial
from bcg.checking.spread import Spread
from bcg.errors import BcgError, Place
from bcg.report import Verdict
from bcg.segment_tape import FirstRead
from bcg.state import Change


@dataclass
class BucketVerdict:
    """What was found about one bucket.

    Attributes:
        tokens: The bucket.
        comparison: The worst of its comparisons of replay with eager.
        num_replays: Replays that were compared.
        num_launches: Segments that they launched.
        failed: Trials that did not match.
        moved: Trials that were not replayed, because a tensor that the graph reads was freed or got other memory.
        errors: What replays raised, first lines.
        hazard: The row of the catalogue that the first of these named.
        place: Where it was raised.
        is_empty: The graph has no step at all.
        leaks: Trials in which what padding holds reached real rows.
        resized: Trials whose real rows depend on how many rows there are, whatever padding holds.
        constants: Trials in which what stands beside the tensors of the result depends on how many rows there are.
        state_changes: State that replay left otherwise than eager did.
        kept_outputs: Attribute paths where a tensor of the graph's pool, or a static input, is left: the next replay
            overwrites it.
        padded_state: State that padding rows change, so that a later forward gives something else, and in which trial.
        unsteady: Trials in which eager differs from itself, with how far replay is from eager: nothing can be told.
        without_numbers: Trials for which eager gives nothing but NaN.
        doubts: Why else nothing can be told.
    """

    tokens: int
    comparison: Comparison = field(default_factory=Comparison)
    num_replays: int = 0
    num_launches: int = 0
    failed: list[Trial] = field(default_factory=list)
    moved: dict[Trial, tuple[torch.Tensor, FirstRead]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    hazard: str | None = None
    place: Place = field(default_factory=Place)
    is_empty: bool = False
    leaks: list[Trial] = field(default_factory=list)
    resized: list[Trial] = field(default_factory=list)
    constants: list[Trial] = field(default_factory=list)
    state_changes: list[Change] = field(default_factory=list)
    kept_outputs: list[str] = field(default_factory=list)
    padded_state: dict[str, Trial] = field(default_factory=dict)
    unsteady: dict[Trial, float] = field(default_factory=dict)
    without_numbers: list[Trial] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> Verdict:
        """Match only if everything matched and something was replayed."""
        of_rows = self.leaks or self.resized or self.constants
        of_state = self.state_changes or self.kept_outputs or self.padded_state
        if self.failed or self.moved or of_rows or of_state:
            return "mismatch"
        told = self.num_launches and not (self.doubts or self.unsteady or self.without_numbers)
        return "match" if told else "inconclusive"


@dataclass
class Verification:
    """What `verify` found.

    Attributes:
        buckets: Verdicts, ascending.
        fails_alone: By batch sizes at which eager fails without padding, what it raises: there nothing tells whether
            padding reaches real rows.
        undrawn: Names of random generators of the host that eager draws from and replays do not.
        spread: How far eager runs of the same batch are apart.
        eager_ms: Wall time of the eager runs.
        replay_ms: Wall time of the replays and comparisons.
    """

    buckets: list[BucketVerdict]
    fails_alone: dict[int, str] = field(default_factory=dict)
    undrawn: dict[str, None] = field(default_factory=dict)
    spread: Spread = field(default_factory=Spread)
    eager_ms: float = 0.0
    replay_ms: float = 0.0

    @property
    def verdict(self) -> Verdict:
        """Mismatch if one bucket mismatches; match only if all match."""
        return joined_verdict([bucket.verdict for bucket in self.buckets])

    @property
    def matches(self) -> bool:
        """Whether every bucket matches, and something was replayed."""
        return self.verdict == "match"


class LostDeviceError(BcgError):
    """An error took the device from this process: nothing more can be run on it.

    Attributes:
        verification: What had been found before.
    """

    def __init__(self, message: str, verification: Verification) -> None:
        super().__init__(
            f"the device is lost to this process: {message}",
            hint="run it again with CUDA_LAUNCH_BLOCKING=1 to see where, or leave out the bucket",
        )
        self.verification = verification


def joined_verdict(verdicts: Sequence[Verdict]) -> Verdict:
    """Join verdicts: mismatch if one is; match only if all are, and there is one."""
    if "mismatch" in verdicts:
        return "mismatch"
    return "match" if set(verdicts) == {"match"} else "inconclusive"


def worst_trial(trials: Sequence[Trial]) -> Trial | None:
    """Return the smallest failed trial: the cheapest one to look into."""
    return min(trials, key=lambda trial: (trial.tokens, trial.num_tokens), default=None)
