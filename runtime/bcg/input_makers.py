"""What makes the inputs of a target, and what asking it for two sizes tells of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch

from bcg.errors import BcgError, ModelError, UsageError
from bcg.inputs import InputSpec, with_numbers
from bcg.structure import same_bits

MakeInputs: TypeAlias = Callable[[int, torch.device, torch.Generator], dict[str, torch.Tensor]]
"""Makes the inputs for that many tokens, on that device, drawn from that generator (which lives there)."""

MakeExtras: TypeAlias = Callable[[tuple[int, ...], torch.device, torch.Generator], Mapping[str, Any]]
"""Makes `Batch.extras` for requests of these lengths, on that device, drawn from that generator."""

PROBE_SIZES = (8, 16)
"""The two token counts by which token dimensions are found."""


def with_sequence_index(make_inputs: MakeInputs) -> MakeInputs:
    """Make an input that numbers the requests beside those of `make_inputs`, which makes one request's."""

    def make(num_tokens: int, device: torch.device, generator: torch.Generator) -> dict[str, torch.Tensor]:
        return with_numbers(make_inputs(num_tokens, device, generator), (num_tokens,), device)

    return make


def find_token_dim(what: str, small: tuple[int, ...], large: tuple[int, ...]) -> int | None:
    """Return the dimension in which two shapes differ by the token counts that were asked for, `PROBE_SIZES`.

    Args:
        what: Name of the tensor in error messages, such as ``input 'input_ids'``.
        small: Shape for the lesser.
        large: Shape for the other.

    Returns:
        The dimension, or None if the shapes are equal.

    Raises:
        ModelError: If the token dimension can't be told.
    """
    fewer, more = PROBE_SIZES
    asked = f"asked for {fewer} and {more} tokens, its shapes are {list(small)} and {list(large)}"
    if len(small) != len(large):
        raise ModelError(f"the token dimension of {what} is ambiguous: {asked}")
    differing = [dim for dim in range(len(small)) if small[dim] != large[dim]]
    if not differing:
        return None
    if len(differing) > 1 or (small[differing[0]], large[differing[0]]) != PROBE_SIZES:
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
