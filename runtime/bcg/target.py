"""The target: what is captured, and how its inputs are made."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bcg.alignment import Alignment
from bcg.errors import ModelError, UsageError
from bcg.input_makers import MakeExtras, MakeInputs, made_inputs
from bcg.inputs import POSITIONS, Batch, InputSpec, with_numbers
from bcg.report import ModelInfo, ReportWarning
from bcg.rules import BreakRules
from bcg.structure import SEQUENCES, attributes_of, rebuild_sequence, tensors_in
from bcg.words import TargetWords


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
        numbers_requests: Whether its inputs have the number of each row's request, for its recurrent mixers.
        max_tokens: The most positions that the model has; None where nothing says so.
        forward_options: Keyword arguments that every call passes beside the inputs.
        warnings: What the user should know about this model.
        warms_up_whole: Whether warm-ups must run all layers: pinned values are taken from them.
        surroundings: Makes a context manager that every forward runs in, such as automatic breaks.
        alignment: The other ranks, where the target is sharded over several processes.
        make_extras: Makes what breaks find in the forward context of a batch; None for nothing.
        words: What it can be made again from; None for a target that was made or changed in Python, or is sharded.
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
    numbers_requests: bool = False
    forward_options: Mapping[str, Any] = field(default_factory=dict)
    max_tokens: int | None = None
    warnings: list[ReportWarning] = field(default_factory=list)
    warms_up_whole: bool = False
    surroundings: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext
    alignment: Alignment | None = None
    words: TargetWords | None = None
    make_extras: MakeExtras | None = None

    def __call__(self, inputs: Mapping[str, Tensor]) -> Any:
        """Run one forward on these inputs.

        Raises:
            ModelError: If the module returns no tensor.
        """
        return self.run(self.module, inputs)

    def run(self, module: nn.Module, inputs: Mapping[str, Tensor]) -> Any:
        """Run a forward of `module`, which stands for the target's own, on these inputs; see `__call__`."""
        if self.alignment is not None:
            self.alignment.tick()
        with torch.inference_mode(), self.surroundings():
            return plain_output(module(**inputs, **self.forward_options), self.name)


def plain_output(output: Any, name: str) -> Any:
    """Reduce what a module returned to tensors in tuples, lists and dicts; of any dataclass, its fields are a dict.

    Raises:
        ModelError: If there is no tensor in it.
    """
    if isinstance(output, Tensor):
        return output
    last_hidden_state = getattr(output, "last_hidden_state", None)
    if isinstance(last_hidden_state, Tensor):
        return last_hidden_state
    output = _unfolded(output)
    if not tensors_in(output):
        raise ModelError(
            f"the forward of {name} returns no tensor, got {type(output).__name__}",
            hint="return a tensor, or a tuple, list or dict of tensors",
        )
    return output


def _unfolded(output: Any) -> Any:
    if isinstance(output, dict) and type(output) is not dict:
        output = {key: value for key, value in output.items() if value is not None}
    elif dataclasses.is_dataclass(output) and not isinstance(output, type):
        output = {name: value for name, value in attributes_of(output).items() if value is not None}
    if isinstance(output, dict):
        return {key: _unfolded(value) for key, value in output.items()}
    return rebuild_sequence(output, list(map(_unfolded, output))) if isinstance(output, SEQUENCES) else output


def make_batch(target: Target, request_lengths: tuple[int, ...], generator: torch.Generator) -> Batch:
    """Make seeded inputs for requests of these lengths; position ids restart at each request, which are numbered.

    Args:
        target: Whose inputs.
        request_lengths: Tokens of each request.
        generator: Lives on the target's device.

    Raises:
        UsageError: A request is longer than the positions that the model has.
        ModelError: The target's `make_inputs` raises.
    """
    if target.max_tokens is not None and max(request_lengths) > target.max_tokens:
        raise UsageError(
            f"{target.name} has positions for {target.max_tokens} tokens, asked for {max(request_lengths)}",
            hint=f"give --tokens up to {target.max_tokens}",
        )
    inputs = made_inputs(target.make_inputs, sum(request_lengths), target.device, generator)
    positions = inputs.get(POSITIONS)
    if positions is not None and len(request_lengths) > 1:
        counted = torch.cat([torch.arange(length, device=target.device) for length in request_lengths])
        inputs[POSITIONS] = positions[..., :1] + counted.to(positions.dtype)
    if target.numbers_requests and len(request_lengths) > 1:
        inputs = with_numbers(inputs, request_lengths, target.device)
    extras = {} if target.make_extras is None else target.make_extras(tuple(request_lengths), target.device, generator)
    return Batch(inputs, tuple(request_lengths), extras)
