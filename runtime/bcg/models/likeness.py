"""Whether a target computes what its model computes by itself, and what is done where it does not.

A replay that equals an eager forward proves nothing if the eager forward is not the model's own. So the first small
forwards compare the two: positions that are made for the model with those that it counts, attention as a break
with attention as it is, and recurrent mixers that are captured with requests on their own.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from dataclasses import replace

import torch

from bcg.attention_interface import attention_breaks, without_attention_break
from bcg.errors import ModelError
from bcg.input_makers import PROBE_SIZES, describe_inputs, with_sequence_index
from bcg.inputs import POSITIONS, SEQUENCE_INDEX
from bcg.models.default_inputs import default_inputs
from bcg.probe import OutputFacts, counts_positions_alike, describe_outputs, is_same_within
from bcg.report import ReportWarning
from bcg.rules import break_mixers, unbreak_modules
from bcg.target import Target

FIRST_POSITIONS = (0, 1, 2)
"""Where learned positions begin: some tables have rows before it that are never read."""


def begin_positions(target: Target) -> None:
    """Let the positions among the default inputs begin where the model's own do; where none do, leave them out."""
    if all(spec.name != POSITIONS for spec in target.input_specs) or counts_positions_alike(target):
        return
    default = target.make_inputs
    for first in FIRST_POSITIONS:
        target.make_inputs = default_inputs(target.name, target.module, first)
        if counts_positions_alike(target):
            return

    def without(num_tokens: int, device: torch.device, generator: torch.Generator) -> dict[str, torch.Tensor]:
        inputs = default(num_tokens, device, generator)
        del inputs[POSITIONS]
        return inputs

    target.make_inputs = without
    target.input_specs = tuple(spec for spec in target.input_specs if spec.name != POSITIONS)
    target.warnings.append(
        ReportWarning(
            code="model-positions",
            message=f"{target.info.architecture} counts positions itself, and takes one request per batch",
            cause=f"with position_ids from {', '.join(map(str, FIRST_POSITIONS))} on it gives others than without",
            remedy="give one request per batch, or let a factory return (module, make_inputs)",
        )
    )


def is_as_without_break(target: Target) -> bool:
    """Tell whether a request gives what it gave before attention was a break, one beyond a two-sided window too."""
    breaks = attention_breaks(target.module).values()
    if not breaks:
        return True
    small, size = PROBE_SIZES
    window = max(found.two_sided_window for found in breaks)
    num_tokens = min(max(size, window + small if window else 0), target.max_tokens or sys.maxsize)
    return is_same_within(target, without_attention_break(target.module), num_tokens)


def with_captured_mixers(target: Target, facts: OutputFacts) -> tuple[Target, OutputFacts]:
    """Return the target whose recurrent mixers are captured, where the number of each row's request keeps those apart.

    mamba-ssm's kernels take it, and transformers hands it down to them; its own kernels in Python leave it out. There
    the target stays as it is.

    Args:
        target: Its mixers are breaks.
        facts: What its outputs are.
    """
    rules, module = target.break_rules, target.module
    named = {path for paths in rules.globs.values() for path in paths}
    has_own = any(spec.name == SEQUENCE_INDEX for spec in target.input_specs)
    takes_more = any(one.kind is one.VAR_KEYWORD for one in inspect.signature(module.forward).parameters.values())
    if not rules.mixers or named & set(rules.mixers) or has_own or not takes_more or target.alignment is not None:
        return target, facts
    make = with_sequence_index(target.make_inputs)
    specs, rules = describe_inputs(make, target.device), replace(rules, mixers=())
    numbered = replace(target, make_inputs=make, input_specs=specs, break_rules=rules, numbers_requests=True)
    unbreak_modules(module, target.break_rules.mixers)
    with contextlib.suppress(ModelError):
        found = describe_outputs(numbered)
        if found.separates_requests:
            return numbered, found
    break_mixers(module)
    return target, facts
