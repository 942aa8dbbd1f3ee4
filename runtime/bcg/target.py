"""The target: what is captured, and how its inputs are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bcg.context import ForwardContext, forward_context
from bcg.errors import BcgError, ModelError, ReplayError
from bcg.inputs import PROBE_SIZES, Batch, InputSpec, MakeInputs, find_token_dim
from bcg.report import ModelInfo, ReportWarning
from bcg.rules import BreakRules
from bcg.structure import tensors_in

_SEPARATION_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
_COARSE_SEPARATION_TOLERANCE = 0.03
"""Mean difference, relative to the mean magnitude, above which packed requests are said to mix."""


@dataclass
class Target:
    """A module, how to make its inputs, and what was found out about it.

    Calling it runs the module in inference mode and returns its output structure: a tensor, or a tuple,
    list or dict of tensors. Of a transformers output it is the last hidden state.

    Attributes:
        name: As the user gave it.
        input_specs: The inputs, by name, with their token dimensions.
        info: What a report says about the model.
        break_rules: What was made a break.
        output_token_dims: Token dimension of each output tensor, in the order of
            `bcg.structure.tensors_in`; None for one without.
        packs_requests: Whether several requests can share a batch: rows of one never reach another.
        forward_options: Keyword arguments that every call passes beside the inputs.
        warnings: What the user should know about this model.
    """

    name: str
    module: nn.Module
    make_inputs: MakeInputs
    input_specs: tuple[InputSpec, ...]
    device: torch.device
    info: ModelInfo
    break_rules: BreakRules = field(default_factory=BreakRules)
    output_token_dims: tuple[int | None, ...] = ()
    packs_requests: bool = True
    forward_options: Mapping[str, Any] = field(default_factory=dict)
    warnings: list[ReportWarning] = field(default_factory=list)

    def __call__(self, inputs: Mapping[str, Tensor]) -> Any:
        """Run one forward on these inputs.

        Raises:
            ModelError: If the module returns no tensor.
        """
        with torch.inference_mode():
            return plain_output(self.module(**inputs, **self.forward_options), self.name)


def plain_output(output: Any, name: str) -> Any:
    """Reduce what a module returned to tensors in tuples, lists and dicts.

    Raises:
        ModelError: If there is no tensor in it.
    """
    if isinstance(output, Tensor):
        return output
    last_hidden_state = getattr(output, "last_hidden_state", None)
    if isinstance(last_hidden_state, Tensor):
        return last_hidden_state
    if isinstance(output, dict) and type(output) is not dict:
        output = {key: value for key, value in output.items() if value is not None}
    if next(tensors_in(output), None) is None:
        raise ModelError(
            f"the forward of {name} returns no tensor, got {type(output).__name__}",
            hint="return a tensor, or a tuple, list or dict of tensors",
        )
    return output


def make_batch(target: Target, request_lengths: tuple[int, ...], generator: torch.Generator) -> Batch:
    """Make seeded inputs for requests of these lengths; position ids restart at each request.

    Args:
        target: Whose inputs.
        request_lengths: Tokens of each request.
        generator: Lives on the target's device.
    """
    inputs = target.make_inputs(sum(request_lengths), target.device, generator)
    positions = inputs.get("position_ids")
    if positions is not None and len(request_lengths) > 1:
        counted = torch.cat([torch.arange(length, device=target.device) for length in request_lengths])
        inputs["position_ids"] = positions[..., :1] + counted.to(positions.dtype)
    return Batch(inputs=inputs, request_lengths=tuple(request_lengths))


@dataclass(frozen=True)
class OutputFacts:
    """What the first two forwards of a target told.

    Attributes:
        token_dims: Token dimension of each output tensor; None for one without.
        separates_requests: Whether a request packed behind another one came out as it does alone; None if the
            target takes no packed requests at all.
    """

    token_dims: tuple[int | None, ...]
    separates_requests: bool | None


def describe_outputs(target: Target) -> OutputFacts:
    """Run a target for one request, then for another one with the first packed behind it.

    This is the first time that the module meets its inputs, it gives the token dimension of each output, and
    it shows whether rows of one request (or padding) reach another one.

    Raises:
        ModelError: If the module doesn't take the inputs, returns no tensor, or returns one whose token
            dimension is ambiguous.
    """
    size, double = PROBE_SIZES
    generator = torch.Generator(target.device).manual_seed(0)
    alone = make_batch(target, (size,), generator)
    first = _probe(target, alone)
    try:
        packed = _probe(target, _packed(target, make_batch(target, (size,), generator), alone))
        separable = True
    except (ReplayError, ModelError):
        packed = _probe(target, make_batch(target, (double,), generator))
        separable = False
    if len(first) != len(packed):
        raise ModelError(f"the forward of {target.name} returns more tensors for more tokens")
    dims = tuple(
        find_token_dim(f"output {index} of {target.name}", tuple(one.shape), tuple(two.shape))
        for index, (one, two) in enumerate(zip(first, packed, strict=True))
    )
    if all(dim is None for dim in dims):
        raise ModelError(
            f"no output of {target.name} grows with the number of tokens: "
            f"shapes {[list(tensor.shape) for tensor in first]}",
            hint="the captured forward must return one row per token, such as the last hidden state",
        )
    return OutputFacts(dims, _recurs(first, packed, dims) if separable else None)


def _packed(target: Target, front: Batch, back: Batch) -> Batch:
    dims = {spec.name: spec.token_dim for spec in target.input_specs}
    inputs = {
        name: value if (dim := dims[name]) is None else torch.cat([front.inputs[name], value], dim=dim)
        for name, value in back.inputs.items()
    }
    return Batch(inputs=inputs, request_lengths=front.request_lengths + back.request_lengths)


def _recurs(alone: list[Tensor], packed: list[Tensor], dims: tuple[int | None, ...]) -> bool:
    """Whether the rows of the back request are what it gives alone."""
    for one, both, dim in zip(alone, packed, dims, strict=True):
        if dim is None or not one.is_floating_point():
            continue
        tolerance = _SEPARATION_TOLERANCE.get(one.dtype, _COARSE_SEPARATION_TOLERANCE)
        expected, got = one.float(), both.chunk(2, dim=dim)[1].float()
        if not bool((got - expected).abs().mean() <= tolerance * expected.abs().mean()):
            return False
    return True


def _probe(target: Target, batch: Batch) -> list[Tensor]:
    try:
        with forward_context(ForwardContext(batch.request_lengths)):
            return list(tensors_in(target(batch.inputs)))
    except BcgError:
        raise
    except Exception as error:
        given = ", ".join(f"{name} {list(value.shape)}" for name, value in batch.inputs.items())
        raise ModelError(
            f"{target.name} does not take its inputs ({given}): {type(error).__name__}: {first_line(error)}",
            hint="a factory can return (module, make_inputs) to make other inputs; see --traceback",
        ) from error


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "no message"
