"""Which batches a check replays: sizes at the edges of every bucket, other request splits than at capture."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from bcg.input_makers import made_inputs
from bcg.inputs import Batch
from bcg.target import Target, make_batch

MAX_REQUESTS = 8
"""Requests that a batch is split into at most."""

_PADDING_SEED = 1 << 20


@dataclass(frozen=True)
class Trial:
    """One batch to be replayed and compared.

    Attributes:
        tokens: The bucket that it goes to.
        request_lengths: Its requests; their sum is the batch's size.
        seed: Of its values; never the capture's.
    """

    tokens: int
    request_lengths: tuple[int, ...]
    seed: int

    @property
    def num_tokens(self) -> int:
        """Real tokens."""
        return sum(self.request_lengths)

    @property
    def num_padding(self) -> int:
        """Padding rows."""
        return self.tokens - self.num_tokens


def plan_trials(buckets: Sequence[int], *, packs_requests: bool, seed: int) -> list[Trial]:
    """Plan the trials of every bucket: b, b-1, one above the bucket below, and 1 in the smallest.

    Args:
        buckets: Captured token counts.
        packs_requests: Whether a batch may hold several requests.
        seed: Of splits and values.
    """
    chance = random.Random(seed)
    seeds = itertools.count(seed + 1)
    trials = []
    below = 0
    for tokens in sorted(buckets):
        sizes = sorted({tokens, max(tokens - 1, below + 1), below + 1}, reverse=True)
        for index, size in enumerate(sizes):
            wanted = (2 + index) if packs_requests and index < 2 else 1
            trials.append(Trial(tokens, _split(size, wanted, chance), next(seeds)))
        below = tokens
    return trials


def _split(size: int, num_requests: int, chance: random.Random) -> tuple[int, ...]:
    cuts = sorted(chance.sample(range(1, size), min(num_requests, MAX_REQUESTS, size) - 1))
    return tuple(end - start for start, end in itertools.pairwise([0, *cuts, size]))


def shuffled_rounds(trials: Sequence[Trial], num_rounds: int, seed: int) -> Iterator[tuple[int, Trial]]:
    """Yield every trial once a round, each round in an order of its own, over all buckets."""
    chance = random.Random(seed)
    for number in range(num_rounds):
        yield from ((number, trial) for trial in chance.sample(list(trials), len(trials)))


def batch_of(trial: Trial, target: Target) -> Batch:
    """Make the batch of a trial."""
    return make_batch(target, trial.request_lengths, _generator(target, trial.seed))


def poisoned_padding(trial: Trial, target: Target) -> dict[str, torch.Tensor] | None:
    """Make values for the padding rows that a leak would show in: valid ones, fractions a hundred times too large.

    Masks hold zeros there, as in every replay: they are how a model knows padding.

    Returns:
        Inputs for the padding rows; None where there are none.
    """
    if trial.num_padding == 0:
        return None
    generator = _generator(target, trial.seed + _PADDING_SEED)
    inputs = made_inputs(target.make_inputs, trial.num_padding, target.device, generator)
    masks = {spec.name for spec in target.input_specs if spec.is_mask}
    return {
        name: torch.zeros_like(value) if name in masks else _enlarged(value) if _has_fractions(value) else value
        for name, value in inputs.items()
    }


def without_whole_numbers(padding: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Put zeros in place of whole numbers, as in every replay: by ids or slots of 0 a model may know padding too."""
    return {name: value if _has_fractions(value) else torch.zeros_like(value) for name, value in padding.items()}


def _enlarged(value: torch.Tensor) -> torch.Tensor:
    """Multiply by a hundred; a dtype of 8 bits has no product of its own."""
    return value * 100 if value.element_size() > 1 else (value.float() * 100).to(value.dtype)


def _has_fractions(value: torch.Tensor) -> bool:
    return value.is_floating_point() or value.is_complex()


def _generator(target: Target, seed: int) -> torch.Generator:
    return torch.Generator(target.device).manual_seed(seed)
