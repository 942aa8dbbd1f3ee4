"""From a command's words about the model to the target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bcg.words import TargetWords
from bcg_cli.options import Dtype

if TYPE_CHECKING:
    from bcg.distributed.world import World
    from bcg.target import Target


def target_words(
    model: str,
    dtype: Dtype | None,
    seed: int,
    attention_break: bool,
    break_globs: Sequence[str] | None,
    expert_parallel: bool,
) -> TargetWords:
    """Returns what a command's options say about the model; on which device it is decided later."""
    return TargetWords(
        model,
        dtype=None if dtype is None else dtype.value,
        seed=seed,
        attention_break=attention_break,
        break_globs=tuple(break_globs or ()),
        expert_parallel=expert_parallel,
    )


@dataclass(frozen=True)
class ModelLoader:
    """Loads the model that a command names; every call makes it anew.

    Attributes:
        words: What the command says about it; each rank has a device of its own.
        world: The ranks that it is sharded over.
    """

    words: TargetWords
    world: World | None

    def __call__(self, attention_break: bool) -> Target:
        """Loads this rank's part, or the model."""
        return self._load(attention_break, self.world)

    def whole(self, attention_break: bool) -> Target:
        """Loads the model unsharded, on this rank's device."""
        return self._load(attention_break, None)

    def _load(self, attention_break: bool, ranks: World | None) -> Target:
        from bcg.models import load_from_words

        device = self.words.device if self.world is None else str(self.world.device)
        return load_from_words(replace(self.words, device=device, attention_break=attention_break), ranks)
