"""What the first forwards of a target tell: whether it takes its inputs, and what its rows mean."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bcg.attention import learning_rows
from bcg.collectives import in_step
from bcg.context import forward_context
from bcg.device import find_device
from bcg.errors import BcgError, ModelError, ReplayError, first_line
from bcg.input_makers import PROBE_SIZES, find_token_dim
from bcg.inputs import POSITIONS, Batch, with_numbers
from bcg.nearness import LOOSE_MEAN, is_near_in_mean
from bcg.state import ModelState, have_drawn
from bcg.structure import hiding_tensors, same_bits, tensors_in
from bcg.target import Target, make_batch
from bcg.whereabouts import users_line

_SAME_SHAPE_TOLERANCE = {True: 1e-3, False: 0.02}
"""Mean difference above which requests are said to mix, where the same kernels ran (see `bcg.nearness`)."""


@dataclass(frozen=True)
class OutputFacts:
    """What the first forwards of a target told.

    Attributes:
        token_dims: Token dimension of each output tensor; None for one without.
        separates_requests: Whether packed requests leave each other alone; None if the target takes no
            packed requests at all, gives NaN, or draws random numbers, which are others for other sizes.
        hiding: Types of the objects in the output that hold tensors where nobody looks.
    """

    token_dims: tuple[int | None, ...]
    separates_requests: bool | None
    hiding: tuple[str, ...] = ()


def describe_outputs(target: Target) -> OutputFacts:
    """Run a target for one request alone, then packed behind two others in turn, and one of these before the other.

    This is the first time that the module meets its inputs, it gives the token dimension of each output, and
    it shows whether rows of one request (or padding) reach another one.

    Raises:
        ModelError: If the module doesn't take the inputs, returns no tensor, or returns one whose token
            dimension is ambiguous.
        CaptureError: If ranks differ.
    """
    if target.alignment is not None:
        target.alignment.begin("the first forwards")
    size, double = PROBE_SIZES
    generator = torch.Generator(target.device).manual_seed(0)
    request = make_batch(target, (size,), generator)
    others = [make_batch(target, (size,), generator) for _ in range(2)]
    together = [*(_packed(target, other, request) for other in others), _packed(target, *others)]
    versions = _versions(target.module)
    output = _output(target, request)
    alone, hiding = tensors_in(output), tuple(dict.fromkeys(hiding_tensors(output)))
    try:
        packed = [_probe(target, batch) for batch in together]
    except (ReplayError, ModelError):
        packed = [_probe(target, make_batch(target, (double,), generator))]
    dims = find_output_dims(target.name, alone, packed[0])
    if len(packed) == 1:
        return OutputFacts(dims, None, hiding)
    if any(bool(tensor.isnan().any()) for tensor in alone):
        return OutputFacts(dims, None, hiding)  # nothing is near NaN
    separates = _are_separate(alone, packed, dims)
    if not separates and target.alignment is None:  # it may be state that each forward leaves to the next
        written = {path: target.module.get_parameter(path) for path, _ in _versions(target.module) - versions}
        (alone, *packed), draws = _from_one_state(target, [request, *together], written)
        separates = _are_separate(alone, packed, dims)
        if draws and not separates and _are_alike(packed, dims):
            return OutputFacts(dims, None, hiding)
    return OutputFacts(dims, separates, hiding)


def find_output_dims(name: str, small: Sequence[Tensor], large: Sequence[Tensor]) -> tuple[int | None, ...]:
    """Return the token dimension of each output tensor; None for one without.

    Args:
        name: Of the target, for errors.
        small: The outputs for the lesser of `bcg.input_makers.PROBE_SIZES`.
        large: Those for the other.

    Raises:
        ModelError: The outputs differ in number, one's token dimension is ambiguous, or none has one.
    """
    if len(small) != len(large):
        raise ModelError(f"the forward of {name} returns more tensors for more tokens")
    dims = tuple(
        find_token_dim(f"output {index} of {name}", tuple(one.shape), tuple(two.shape))
        for index, (one, two) in enumerate(zip(small, large, strict=True))
    )
    if all(dim is None for dim in dims):
        raise ModelError(
            f"no output of {name} grows with the number of tokens: shapes {[list(tensor.shape) for tensor in small]}",
            hint="the captured forward must return one row per token, such as the last hidden state",
        )
    return dims


def refuse_other_outputs(target: Target, output: Any, num_tokens: int) -> None:
    """Refuse what `GraphRunner` would cut wrongly: another number of tensors than at first, or other sizes.

    Raises:
        ModelError: The outputs for so many tokens are not like those of the first forwards.
    """
    tensors, dims = tensors_in(output), target.output_token_dims
    if len(tensors) != len(dims):
        raise ModelError(
            f"the forward of {target.name} returns {len(tensors)} tensors for {num_tokens} tokens, "
            f"{len(dims)} for {PROBE_SIZES[0]}",
            hint="it must return the same structure at every size",
        )
    for index, (tensor, dim) in enumerate(zip(tensors, dims, strict=True)):
        if dim is not None and (dim >= tensor.dim() or tensor.shape[dim] != num_tokens):
            raise ModelError(
                f"output {index} of {target.name} has the shape {list(tensor.shape)} for {num_tokens} tokens",
                hint=f"its dimension {dim} must be the number of tokens, as it is for {PROBE_SIZES[0]}",
            )


def is_same_within(target: Target, surroundings: AbstractContextManager[None], num_tokens: int) -> bool:
    """Tell whether one request gives the same inside `surroundings` as outside, from the same state."""
    request = make_batch(target, (num_tokens,), torch.Generator(target.device).manual_seed(0))
    state = ModelState(target.module)
    with state.kept():
        outside = [tensor.clone() for tensor in _probe(target, request)]
    with state.kept(), surroundings:
        inside = [tensor.clone() for tensor in _probe(target, request)]
    return _are_same(outside, inside)


def counts_positions_alike(target: Target) -> bool:
    """Tell whether a request gives the same with the positions that the inputs name as where the model counts.

    A model that does not count takes those that it is given.
    """
    named = make_batch(target, PROBE_SIZES[:1], torch.Generator(target.device).manual_seed(0))
    unnamed = {name: value for name, value in named.inputs.items() if name != POSITIONS}
    state = ModelState(target.module)
    with state.kept():
        one = [tensor.clone() for tensor in _probe(target, named)]
    try:
        with state.kept():
            other = [tensor.clone() for tensor in _probe(target, Batch(unnamed, named.request_lengths))]
    except ModelError:
        return True
    return _are_same(one, other)


def _are_same(one: list[Tensor], other: list[Tensor]) -> bool:
    # The wide tolerance: with and without a mask, 16-bit attention may be two kernels' work.
    return all(map(same_bits, one, other)) or _are_close(other, one, LOOSE_MEAN)


def _versions(module: nn.Module) -> set[tuple[str, int]]:
    """Return how often each parameter was written in place."""
    return {(path, one._version) for path, one in module.named_parameters() if not one.is_inference()}


def _from_one_state(
    target: Target, batches: Sequence[Batch], written: Mapping[str, Tensor]
) -> tuple[list[list[Tensor]], bool]:
    """Run batches, each from the state that is there now, and tell whether they draw random numbers.

    Args:
        target: What is run.
        batches: Each from that state.
        written: Parameters that are state as well.
    """
    state = ModelState(target.module, written)
    base = state.save()
    outputs = []
    for batch in batches:
        outputs.append([tensor.clone() for tensor in _probe(target, batch)])
        draws = have_drawn(base)
        state.restore(base)
    return outputs, draws


def _are_separate(alone: list[Tensor], packed: list[list[Tensor]], dims: tuple[int | None, ...]) -> bool:
    """Tell whether the rows of a request are the same alone, and packed with each of two others."""
    rows = [tensor for tensor, dim in zip(alone, dims, strict=True) if dim is not None]
    return _are_alike(packed, dims) and _are_close(rows, _halves(packed[0], dims, 1), LOOSE_MEAN)


def _are_alike(packed: list[list[Tensor]], dims: tuple[int | None, ...]) -> bool:
    """Tell whether the rows of a request are the same behind each of two others, and those of one before each.

    The same shapes run the same kernels, so this is nearly exact in any dtype.
    """
    first, other_before, other_behind = packed
    return all(
        _are_close(_halves(first, dims, half), _halves(second, dims, half), _SAME_SHAPE_TOLERANCE)
        for half, second in ((1, other_before), (0, other_behind))
    )


def _packed(target: Target, front: Batch, back: Batch) -> Batch:
    dims = {spec.name: spec.token_dim for spec in target.input_specs}
    inputs = {
        name: value if (dim := dims[name]) is None else torch.cat([front.inputs[name], value], dim=dim)
        for name, value in back.inputs.items()
    }
    lengths = front.request_lengths + back.request_lengths
    return Batch(with_numbers(inputs, lengths, target.device) if target.numbers_requests else inputs, lengths)


def _halves(outputs: list[Tensor], dims: tuple[int | None, ...], half: int) -> list[Tensor]:
    return [tensor.chunk(2, dim)[half] for tensor, dim in zip(outputs, dims, strict=True) if dim is not None]


def _are_close(expected: list[Tensor], got: list[Tensor], tolerances: dict[bool, float]) -> bool:
    return all(is_near_in_mean(one, other, tolerances) for one, other in zip(expected, got, strict=True))


def _probe(target: Target, batch: Batch) -> list[Tensor]:
    return tensors_in(_output(target, batch))


def _output(target: Target, batch: Batch) -> Any:
    requests = " + ".join(map(str, batch.request_lengths))
    try:
        with (
            learning_rows(),
            forward_context(batch.context()),
            in_step(target.alignment, f"running {requests} tokens"),
            find_device(target.device).as_recorded(),
        ):
            return target(batch.copied_inputs())
    except BcgError:
        raise
    except Exception as error:
        given = ", ".join(f"{name} {list(value.shape)}" for name, value in batch.inputs.items())
        what, line = f"{type(error).__name__}: {first_line(error)}", users_line(error)
        if isinstance(error, TypeError) and not line:
            raise ModelError(
                f"{target.name} does not take its inputs ({given}): {what}",
                hint="a factory can return (module, make_inputs) to make other inputs; see --traceback",
            ) from error
        raise ModelError(
            f"the forward of {target.name} raised{f' at {line}' if line else ''}, given {given}: {what}",
            hint=hint_about_inputs(target.module)
            or "it must run eagerly before it can be captured; if its inputs are wrong, let the factory return "
            "(module, make_inputs); see --traceback",
        ) from error


_MEDIA = ("pixel_values", "pixel_values_videos", "input_features", "input_values", "audio_values")


def hint_about_inputs(module: nn.Module) -> str | None:
    """Return what to do about a forward that fails because it needs more than token ids; None where it takes these."""
    if not isinstance(module, PreTrainedModel):
        return None
    if module.config.is_encoder_decoder or (hasattr(module, "encoder") and hasattr(module, "decoder")):
        return (
            "an encoder-decoder needs inputs for both: let a factory (file.py:factory) return one half, such as "
            "model.get_encoder(), or (model, make_inputs)"
        )
    media = next((name for name in _MEDIA if name in inspect.signature(module.forward).parameters), None)
    if media is None:
        return None
    if "input_ids" not in inspect.signature(module.forward).parameters:
        return f"it takes {media}: let a factory (file.py:factory) return (model, make_inputs)"
    return f"it takes {media} too: let a factory (file.py:factory) return its text part alone, or (model, make_inputs)"
