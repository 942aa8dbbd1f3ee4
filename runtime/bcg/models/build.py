"""The last step of loading, common to all sources: break rules, inputs, validation, the finished target."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from huggingface_hub.utils import logging as hub_logging
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from bcg.attention_interface import attention_breaks, attention_modules, install_attention_break
from bcg.errors import ModelError, UsageError
from bcg.input_makers import MakeExtras, MakeInputs, describe_inputs, unseeded_inputs
from bcg.inputs import POSITIONS, InputSpec
from bcg.models.default_inputs import default_inputs, forward_options, max_tokens, rope_scaled_by_length
from bcg.models.likeness import begin_positions, is_as_without_break, with_captured_mixers
from bcg.models.sharding import Sharding, sharding_warnings, whole_weights_warnings
from bcg.probe import describe_outputs
from bcg.report import ModelInfo, ModelSource, ReportWarning, Weights
from bcg.rules import BreakRules, NamedBreaks, break_mixers, break_modules, is_named
from bcg.target import Target
from bcg.words import TargetWords

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def find_dtype(name: str | None) -> torch.dtype | None:
    """Return the data type of that name; None for None.

    Raises:
        UsageError: Models are not loaded in such a type.
    """
    if name is not None and name not in _DTYPES:
        raise UsageError(f"unknown dtype {name!r}", hint=f"dtypes: {', '.join(_DTYPES)}")
    return None if name is None else _DTYPES[name]


@dataclass(frozen=True)
class Made:
    """What a source made: a module, and what makes its inputs and the extras of its batches, where that came with it.

    Attributes:
        seed: Of its weights, where they are random and it has some.
    """

    module: nn.Module
    source: ModelSource
    weights: Weights
    seed: int | None = None
    make_inputs: MakeInputs | None = None
    make_extras: MakeExtras | None = None


def build_target(made: Made, words: TargetWords, sharding: Sharding | None = None) -> Target:
    """Make a target of a module that is on its device already, and run it at two small sizes.

    A model that gives other results where its attention is a break that builds the masks keeps its own masks. Recurrent
    mixers that keep requests apart by the number of each row's request are captured, not broken.

    Raises:
        UsageError: If a glob matches no module.
        ModelError: If the inputs can't be made, or the module doesn't take them.
        CaptureError: If ranks differ.
    """
    target = describe_target(made, words, sharding)
    target.alignment = None if sharding is None else sharding.ranks
    if unseeded := unseeded_inputs(target.make_inputs, target.device):
        target.warnings.append(_unseeded_warning(unseeded))
    with quiet():
        if made.make_inputs is None and target.alignment is None:
            begin_positions(target)
        facts = describe_outputs(target)
        if words.attention_break and target.alignment is None and not is_as_without_break(target):
            has_own_masks = all(found.takes_model_masks for found in attention_breaks(made.module).values())
            if not has_own_masks:
                install_attention_break(made.module, model_masks=True)
                facts = describe_outputs(target)
            if has_own_masks or not is_as_without_break(target):
                raise ModelError(
                    f"{target.info.architecture} gives other results where its attention is a break",
                    hint="--no-attention-break captures its attention; break at what can't be with --break",
                )
            target.warnings.append(_masks_warning(target, "with those that the break builds it gives other results"))
        target, facts = with_captured_mixers(target, facts)
    if facts.hiding:
        target.warnings.append(_hiding_warning(facts.hiding))
    target.output_token_dims = facts.token_dims
    target.packs_requests = facts.separates_requests is True
    if words.attention_break:
        target.break_rules = replace(target.break_rules, attention=attention_modules(made.module))
        target.warnings.extend(_warnings(target, facts.separates_requests))
    return target


def _unseeded_warning(names: Sequence[str]) -> ReportWarning:
    inputs = ", ".join(map(repr, names))
    return ReportWarning(
        code="inputs-not-seeded",
        message=f"make_inputs gives other values of {inputs} each time, from a generator with the same seed",
        cause="it draws from elsewhere, so that replay and eager are never given the same batch",
        remedy="draw from the generator that it is given, such as torch.randn(…, generator=generator)",
    )


def _hiding_warning(types: Sequence[str]) -> ReportWarning:
    return ReportWarning(
        code="hidden-outputs",
        message=f"the output has tensors inside a {' and a '.join(types)}: they are neither compared nor cut",
        cause="tensors are looked for in tuples, lists, dicts and dataclasses",
        remedy="return them there, or leave them out, as Hugging Face models do with use_cache=False",
    )


def _masks_warning(
    target: Target,
    cause: str,
    remedy: str = "leave out masks that only mark padding: the break keeps padding rows and requests apart by itself",
) -> ReportWarning:
    return ReportWarning(
        code="model-masks",
        message=f"{target.info.architecture} builds its attention masks itself, and takes one request per batch",
        cause=cause,
        remedy=remedy,
    )


def describe_target(made: Made, words: TargetWords, sharding: Sharding | None = None) -> Target:
    """Make a target without running it: what its outputs mean is left open.

    Raises:
        UsageError: If a glob matches no module.
        ModelError: If the inputs can't be made, or the module is TorchScript.
    """
    module, device = made.module, torch.device(words.device)
    if isinstance(module, torch.jit.ScriptModule):
        raise ModelError(
            f"{words.model} is TorchScript, which tells neither its inputs nor its operations",
            hint="give the module that it was made of, or one that calls it",
        )
    module.eval().requires_grad_(False)
    make = made.make_inputs or default_inputs(words.model, module)
    specs = describe_inputs(make, device)
    masks = [spec.name for spec in specs if "mask" in spec.name]
    attends = words.attention_break and install_attention_break(module, model_masks=bool(masks))
    mixers = break_mixers(module) if words.attention_break else ()
    globs = break_modules(module, [glob for glob in words.break_globs if not is_named(glob)])
    named = NamedBreaks.find(words.break_globs)
    target = Target(
        name=words.model,
        module=module,
        make_inputs=make,
        input_specs=specs,
        device=device,
        info=_info(words.model, made),
        forward_options=forward_options(module),
        max_tokens=max_tokens(module) if any(map(_counts_positions, specs)) else None,
        break_rules=BreakRules(mixers=mixers, globs=globs | named.paths),
        warnings=[] if sharding is None else _sharding_warnings(words.model, made, sharding),
        surroundings=named.in_effect,
        make_extras=made.make_extras,
    )
    if masks and attends:
        target.warnings.append(_masks_warning(target, f"its inputs have {', '.join(masks)}"))
    return target


def _counts_positions(spec: InputSpec) -> bool:
    """Tell whether an input's rows have positions in a text: images have none."""
    return spec.token_dim is not None and spec.name.endswith(("input_ids", "inputs_embeds", POSITIONS))


def _sharding_warnings(name: str, made: Made, sharding: Sharding) -> list[ReportWarning]:
    found = sharding_warnings(name, cast(Any, made.module).config, sharding) if made.weights == "random" else []
    return found + whole_weights_warnings(name, made.module, sharding, by_user=made.weights == "user")


def _warnings(target: Target, separates_requests: bool | None) -> Iterator[ReportWarning]:
    rules, architecture = target.break_rules, target.info.architecture
    is_known = isinstance(target.module, PreTrainedModel) and not target.numbers_requests
    if not (rules.attention or rules.mixers or rules.globs) and (is_known or not separates_requests):
        yield ReportWarning(
            code="no-default-break",
            message=f"no attention or recurrent mixer of {architecture} was found to break at",
            cause="what it has of them does not go through transformers' attention interface, so it is captured",
            remedy="name its attention modules with --break, or say --no-attention-break to capture all",
        )
    breaks = attention_breaks(target.module).values()
    is_told = any(warning.code == "model-masks" for warning in target.warnings)
    if breaks and all(found.takes_model_masks for found in breaks) and not is_told:
        cause = "transformers has no flash attention for it, which would do without masks"
        yield _masks_warning(target, cause, remedy="give one request per batch")
    if target.packs_requests and (scaled := rope_scaled_by_length(target.module)):
        yield ReportWarning(
            code="rope-by-length",
            message=f"{architecture} rotates by the longest request of a batch: shorter ones differ from alone",
            cause=f"its rotary embedding ({scaled}) has other factors for long requests, and one set for a batch",
            remedy="batch long requests, beyond original_max_position_embeddings, apart from short ones",
        )
    if separates_requests is False:
        yield ReportWarning(
            code="requests-mix",
            message=f"{architecture} gives other results for packed requests than for each alone",
            cause="some module mixes rows across requests without being a break that keeps them apart",
            remedy="give one request per batch; padding rows may reach real ones too, unless it is causal",
        )


def _info(name: str, made: Made) -> ModelInfo:
    """Say for reports what a module is and how large."""
    parameters = list(made.module.parameters())
    by_dtype: dict[torch.dtype, int] = {}
    for parameter in parameters:
        by_dtype[parameter.dtype] = by_dtype.get(parameter.dtype, 0) + parameter.numel()
    main = max(by_dtype, key=lambda dtype: by_dtype[dtype], default=torch.get_default_dtype())
    return ModelInfo(
        name=name,
        source=made.source,
        architecture=type(made.module).__name__,
        num_parameters=sum(by_dtype.values()),
        weight_bytes=sum(parameter.numel() * parameter.element_size() for parameter in parameters),
        dtype=str(main).removeprefix("torch."),
        seed=made.seed,
        weights=made.weights,
    )


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the default generators of the host and `device`, and restore them afterwards."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """Keep log lines and progress bars of transformers and the hub off stderr; errors still come as exceptions."""
    verbosity, hub_verbosity = transformers_logging.get_verbosity(), hub_logging.get_verbosity()
    had_progress = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(transformers_logging.CRITICAL)
    hub_logging.set_verbosity(logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        hub_logging.set_verbosity(hub_verbosity)
        if had_progress:
            transformers_logging.enable_progress_bar()
