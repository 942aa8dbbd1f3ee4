"""What goes into a target: described inputs, and batches of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch

from bcg.context import ForwardContext
from bcg.errors import ReplayError

POSITIONS = "position_ids"
"""The input that tells a row's place in its request."""

MASK = "attention_mask"
"""The input that tells a model of transformers which rows are real."""

SEQUENCE_INDEX = "seq_idx"
"""The input that tells recurrent kernels which request a row belongs to: transformers' name for it, and mamba-ssm's."""


@dataclass(frozen=True)
class InputSpec:
    """One named input of a target.

    Attributes:
        shape: Sizes, with -1 at the token dimension.
        token_dim: The dimension that grows with the number of tokens; None if the input has none.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    token_dim: int | None

    @property
    def is_mask(self) -> bool:
        """Whether it tells real rows from padding: then zeros are what its padding holds."""
        return self.dtype == torch.bool or "mask" in self.name

    def shape_for(self, num_tokens: int) -> tuple[int, ...]:
        """Return the shape of this input for that many tokens."""
        return tuple(num_tokens if size == -1 else size for size in self.shape)


@dataclass(frozen=True)
class Batch:
    """The inputs of one forward, for one or more requests packed along the token dimension.

    Attributes:
        inputs: By name.
        request_lengths: Tokens of each request.
        extras: What breaks find in the forward context, such as block tables: as it is for this batch, not copied.
    """

    inputs: dict[str, torch.Tensor]
    request_lengths: tuple[int, ...]
    extras: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def num_tokens(self) -> int:
        """Real tokens of all requests."""
        return sum(self.request_lengths)

    def context(self) -> ForwardContext:
        """Make the forward context that breaks read."""
        return ForwardContext(self.request_lengths, self.extras)

    def copied_inputs(self) -> dict[str, torch.Tensor]:
        """Return copies of the inputs for one forward, which may change them in place."""
        return {name: tensor.clone() for name, tensor in self.inputs.items()}


def with_numbers(
    inputs: Mapping[str, torch.Tensor], request_lengths: Sequence[int], device: torch.device
) -> dict[str, torch.Tensor]:
    """Return inputs with `SEQUENCE_INDEX` among them: the number of each row's request, ``[1, n]`` in int32."""
    if len(request_lengths) == 1:
        return {**inputs, SEQUENCE_INDEX: torch.zeros(1, *request_lengths, dtype=torch.int32, device=device)}
    numbers = torch.arange(len(request_lengths), dtype=torch.int32).repeat_interleave(torch.tensor(request_lengths))
    return {**inputs, SEQUENCE_INDEX: numbers.unsqueeze(0).to(device)}


def refuse_unlike(specs: Sequence[InputSpec], inputs: Mapping[str, torch.Tensor], num_tokens: int) -> None:
    """Refuse inputs that are not as described.

    Raises:
        ReplayError: A name, dtype or shape is another one for that many tokens.
    """
    expected = [spec.name for spec in specs]
    if inputs.keys() != set(expected):
        raise ReplayError(f"wrong inputs: expected {', '.join(expected)}, got {', '.join(inputs) or 'none'}")
    for spec in specs:
        value, shape = inputs[spec.name], spec.shape_for(num_tokens)
        if not isinstance(value, torch.Tensor):
            raise ReplayError(f"wrong input {spec.name!r}: expected a tensor, got {type(value).__name__}")
        if value.dtype != spec.dtype or tuple(value.shape) != shape:
            raise ReplayError(
                f"wrong input {spec.name!r}: expected {_describe(spec.dtype, shape)}, "
                f"got {_describe(value.dtype, tuple(value.shape))}"
            )


def _describe(dtype: torch.dtype, shape: tuple[int, ...]) -> str:
    return f"{str(dtype).removeprefix('torch.')} {list(shape)}"
