"""What goes into a target: described inputs, their fixed-address buffers, and batches."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from types import MappingProxyType
from typing import Any, TypeAlias

import torch

from bcg.context import ForwardContext
from bcg.errors import BcgError, ModelError, ReplayError, UsageError
from bcg.structure import same_bits

MakeInputs: TypeAlias = Callable[[int, torch.device, torch.Generator], dict[str, torch.Tensor]]
"""Makes the inputs for that many tokens, on that device, drawn from that generator (which lives there)."""

MakeExtras: TypeAlias = Callable[[tuple[int, ...], torch.device, torch.Generator], Mapping[str, Any]]
"""Makes `Batch.extras` for requests of these lengths, on that device, drawn from that generator."""

PROBE_SIZES = (8, 16)
"""The two token counts by which token dimensions are found."""

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


def with_sequence_index(make_inputs: MakeInputs) -> MakeInputs:
    """Make an input that numbers the requests beside those of `make_inputs`, which makes one request's."""

    def make(num_tokens: int, device: torch.device, generator: torch.Generator) -> dict[str, torch.Tensor]:
        return with_numbers(make_inputs(num_tokens, device, generator), (num_tokens,), device)

    return make


def find_token_dim(
    what: str, small: tuple[int, ...], large: tuple[int, ...], sizes: tuple[int, int] = PROBE_SIZES
) -> int | None:
    """Return the dimension in which two shapes differ by the token counts that were asked for.

    Args:
        what: Name of the tensor in error messages, such as ``input 'input_ids'``.
        small: Shape for ``sizes[0]`` tokens.
        large: Shape for ``sizes[1]`` tokens.
        sizes: The two token counts.

    Returns:
        The dimension, or None if the shapes are equal.

    Raises:
        ModelError: If the token dimension can't be told.
    """
    asked = f"asked for {sizes[0]} and {sizes[1]} tokens, its shapes are {list(small)} and {list(large)}"
    if len(small) != len(large):
        raise ModelError(f"the token dimension of {what} is ambiguous: {asked}")
    differing = [dim for dim in range(len(small)) if small[dim] != large[dim]]
    if not differing:
        return None
    if len(differing) > 1 or (small[differing[0]], large[differing[0]]) != sizes:
        raise ModelError(
            f"the token dimension of {what} is ambiguous: {asked}",
            hint="exactly one dimension must be the number of tokens",
        )
    return differing[0]


def describe_inputs(make_inputs: MakeInputs, device: torch.device) -> tuple[InputSpec, ...]:
    """Describe the inputs that `make_inputs` makes, by asking it for two sizes.

    Raises:
        UsageError: If it can't be called with a number of tokens, a device and a generator.
        ModelError: If it raises, returns something other than named tensors on `device`, other names or dtypes
            for another size, or an input whose token dimension is ambiguous.
    """
    small, large = (_ask(make_inputs, size, device) for size in PROBE_SIZES)
    if small.keys() != large.keys():
        raise ModelError(
            f"make_inputs gives other inputs for {PROBE_SIZES[1]} tokens than for {PROBE_SIZES[0]}: "
            f"{sorted(large)} instead of {sorted(small)}"
        )
    specs = []
    for name, first in small.items():
        second = large[name]
        if first.dtype != second.dtype:
            raise ModelError(f"input {name!r} changes its dtype with the size: {first.dtype}, {second.dtype}")
        token_dim = find_token_dim(f"input {name!r}", tuple(first.shape), tuple(second.shape))
        shape = tuple(-1 if dim == token_dim else size for dim, size in enumerate(first.shape))
        specs.append(InputSpec(name=name, dtype=first.dtype, shape=shape, token_dim=token_dim))
    if all(spec.token_dim is None for spec in specs):
        raise ModelError(
            f"no input grows with the number of tokens: {', '.join(small) or 'make_inputs gave none'}",
            hint="make_inputs(num_tokens, device, generator) must make inputs for num_tokens tokens",
        )
    return tuple(specs)


def unseeded_inputs(make_inputs: MakeInputs, device: torch.device) -> list[str]:
    """Return the names of inputs that are other ones when they are made again from the same seed."""
    first, second = (_ask(make_inputs, PROBE_SIZES[0], device) for _ in range(2))
    return [name for name, value in first.items() if name not in second or not same_bits(value, second[name])]


def made_inputs(
    make_inputs: MakeInputs, num_tokens: int, device: torch.device, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """Call `make_inputs`.

    Raises:
        ModelError: It raises.
    """
    try:
        return make_inputs(num_tokens, device, generator)
    except BcgError:
        raise
    except Exception as error:
        raise ModelError(
            f"make_inputs raised {type(error).__name__} for {num_tokens} tokens: {error}".splitlines()[0],
            hint="--traceback shows where",
        ) from error


def _ask(make_inputs: MakeInputs, num_tokens: int, device: torch.device) -> dict[str, torch.Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    _check_signature(make_inputs, num_tokens, device, generator)
    inputs = made_inputs(make_inputs, num_tokens, device, generator)
    if not isinstance(inputs, dict):
        raise ModelError(f"make_inputs must return a dict of tensors, got {type(inputs).__name__}")
    for name, value in inputs.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise ModelError(
                f"make_inputs must return a dict from names to tensors, got {name!r}: {type(value).__name__}"
            )
        if value.device != device:
            raise ModelError(
                f"make_inputs made input {name!r} on {value.device}, expected {device}",
                hint="pass device=device where the tensor is made",
            )
    return inputs


def _check_signature(make_inputs: MakeInputs, *arguments: object) -> None:
    try:
        signature = inspect.signature(make_inputs)
    except ValueError:  # a function in C
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise UsageError(
            f"make_inputs{signature} can't be called with (num_tokens, device, generator): {error}",
            hint="define it as make_inputs(num_tokens, device, generator), returning a dict of tensors",
        ) from error


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
