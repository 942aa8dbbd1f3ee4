"""Fixed-address buffers that captured graphs read their inputs from."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch

from bcg.errors import ReplayError
from bcg.inputs import InputSpec, refuse_unlike


class StaticInputs:
    """Fixed-address inputs: one flat buffer an input, made for the largest bucket and shared by all.

    Captured graphs read these addresses, so the buffers live as long as this object, and whoever
    captured with it must keep it.

    Args:
        specs: The target's inputs.
        max_tokens: The largest bucket.
        device: Where the buffers are allocated.
    """

    def __init__(self, specs: tuple[InputSpec, ...], max_tokens: int, device: torch.device) -> None:
        self.specs = specs
        self.max_tokens = max_tokens
        with torch.inference_mode(False):  # they are written outside of it, too
            self._flat = {
                spec.name: torch.zeros(prod(spec.shape_for(max_tokens)), dtype=spec.dtype, device=device)
                for spec in specs
            }
        self._own_views: dict[int, dict[str, torch.Tensor]] = {}

    @property
    def buffers(self) -> tuple[torch.Tensor, ...]:
        """The flat buffers that the views of all buckets lie in."""
        return tuple(self._flat.values())

    def views(self, bucket: int) -> dict[str, torch.Tensor]:
        """Return the contiguous inputs of one bucket: new tensors over the same memory at each call.

        A forward may reshape in place what it is given, so each one is given tensors of its own.

        Raises:
            ReplayError: If the bucket is larger than the buffers.
        """
        return {name: view.view_as(view) for name, view in self._loaded(bucket).items()}

    def _loaded(self, bucket: int) -> dict[str, torch.Tensor]:
        if bucket not in self._own_views:
            if not 0 < bucket <= self.max_tokens:
                raise ReplayError(f"no static inputs for {bucket} tokens: the buffers hold at most {self.max_tokens}")
            self._own_views[bucket] = {
                spec.name: self._flat[spec.name][: prod(spec.shape_for(bucket))].view(spec.shape_for(bucket))
                for spec in self.specs
            }
        return self._own_views[bucket]

    def load(
        self,
        inputs: Mapping[str, torch.Tensor],
        bucket: int,
        num_tokens: int,
        padding: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """Copy live inputs into the buffers of a bucket, and zero the rows from `num_tokens` on.

        The inputs are checked before anything is written. The copies run on the current stream.

        Args:
            inputs: By name, for `num_tokens` tokens.
            bucket: Whose buffers.
            num_tokens: Real tokens.
            padding: What to write into the padding rows in place of zeros: inputs for the remaining tokens.

        Raises:
            ReplayError: If a name, dtype or shape is not what was captured.
        """
        views = self._loaded(bucket)
        if num_tokens > bucket:
            raise ReplayError(f"{num_tokens} tokens don't fit into the bucket of {bucket}")
        refuse_unlike(self.specs, inputs, num_tokens)
        with torch.no_grad():  # nothing of a replay is differentiated
            for spec in self.specs:
                view = views[spec.name]
                if spec.token_dim is None or num_tokens == bucket:
                    view.copy_(inputs[spec.name])
                    continue
                view.narrow(spec.token_dim, 0, num_tokens).copy_(inputs[spec.name])
                rest = view.narrow(spec.token_dim, num_tokens, bucket - num_tokens)
                if padding is None:
                    rest.zero_()
                else:
                    rest.copy_(padding[spec.name])
