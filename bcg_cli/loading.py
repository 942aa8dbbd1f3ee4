"""From a command's words about the model to the target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from bcg.distributed.world import World
    from bcg.target import Target


@dataclass(frozen=True)
class ModelLoader:
    """Loads the model that a command names; every call makes it anew.

    Attributes:
        place: Where it goes if there are no ranks; each rank has a device of its own.
        world: The ranks that it is sharded over.
    """

    model: str
    place: torch.device
    dtype: str | None
    seed: int
    globs: Sequence[str]
    expert_parallel: bool
    world: World | None

    def __call__(self, attention_break: bool) -> Target:
        """Loads this rank's part, or the model."""
        return self._load(attention_break, self.world)

    def whole(self, attention_break: bool) -> Target:
        """Loads the model unsharded, on this rank's device."""
        return self._load(attention_break, None)

    def _load(self, attention_break: bool, ranks: World | None) -> Target:
        from bcg.models import load_target

        return load_target(
            self.model,
            device=self.place if self.world is None else self.world.device,
            dtype=self.dtype,
            seed=self.seed,
            attention_break=attention_break,
            break_globs=self.globs,
            ranks=ranks,
            expert_parallel=self.expert_parallel,
        )
