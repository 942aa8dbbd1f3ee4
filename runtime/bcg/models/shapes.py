"""Targets without weights or data: only shapes, under torch's `FakeTensorMode`."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, AutoModel, PretrainedConfig

from bcg.errors import ModelError, first_line
from bcg.models.build import Made, describe_target, find_dtype, quiet
from bcg.models.factory import call_factory, num_on_meta
from bcg.models.huggingface import attention_options, hint_about_code, preset_config
from bcg.models.loaded import planned_warnings
from bcg.models.sharding import Sharding, apply_plan, like_shard, plan_of
from bcg.presets import find_preset
from bcg.report import ModelSource, ReportWarning
from bcg.target import Target
from bcg.words import TargetWords


def load_shapes(words: TargetWords, mode: FakeTensorMode, sharding: Sharding | None = None) -> Target:
    """Make a target of what words describe, without weights: as `bcg.models.load_from_words`, but only shapes.

    Args:
        words: Of a hub id or directory the configuration is read, a factory is called under the mode. Where neither
            they nor the model say a dtype, it is as a GPU would load it: ``bfloat16``.
        mode: Makes the tensors; the target can only be called under it.
        sharding: Over how many ranks the model is split, of which one is shaped: needs a process group of that size.

    Raises:
        UsageError: The model, the dtype or a glob names nothing.
        ModelError: The model can't be built without weights.
    """
    words = replace(words, device="cpu", seed=0)  # tensors without values have neither
    wanted = find_dtype(words.dtype)
    _, colon, factory = words.model.rpartition(":")
    warnings_of_config: list[ReportWarning] = []
    if colon and factory.isidentifier():
        made = _from_factory(words, mode)
    else:
        config, source, default = _configuration(words.model)
        made = Made(_from_config(words.model, config, mode, wanted or default, sharding), source, "random")
        warnings_of_config = planned_warnings(words.model, made.module, config)
    with mode:
        target = describe_target(made, words, sharding)
    target.warnings[:0] = warnings_of_config
    return target


def _configuration(model: str) -> tuple[PretrainedConfig, ModelSource, torch.dtype]:
    path = Path(model).expanduser()
    if not path.is_dir() and "/" not in model:
        preset = find_preset(model)
        return preset_config(preset), "preset", getattr(torch, preset.dtype)
    try:
        with quiet():
            config = AutoConfig.from_pretrained(
                path if path.is_dir() else model, local_files_only=path.is_dir(), trust_remote_code=False
            )
    except Exception as error:
        raise ModelError(
            f"can't read the configuration of {model}: {first_line(error)}", hint=hint_about_code(error)
        ) from error
    own = getattr(config, "dtype", None)
    source: ModelSource = "directory" if path.is_dir() else "hub"
    return config, source, own if isinstance(own, torch.dtype) else torch.bfloat16


def _from_config(
    name: str, config: PretrainedConfig, mode: FakeTensorMode, dtype: torch.dtype, sharding: Sharding | None
) -> nn.Module:
    try:
        with quiet(), torch.device("meta"):
            module: nn.Module = AutoModel.from_config(config, dtype=dtype, **attention_options(config))
    except Exception as error:
        raise ModelError(f"transformers can't build {name} ({type(config).__name__}): {first_line(error)}") from error
    if sharding is not None:
        apply_plan(name, module, plan_of(name, module, sharding), sharding, "cpu")
    _make_fake(module, mode)
    return module


def _from_factory(words: TargetWords, mode: FakeTensorMode) -> Made:
    dtype = find_dtype(words.dtype)
    try:
        with mode, _malleable(mode), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")  # by a copy of a module
            made = call_factory(words)
            if num_on_meta(made.module):
                _make_fake(made.module, mode)
            return replace(made, module=made.module.to(dtype=dtype)) if dtype else made
    except ModelError as error:
        hint = error.hint and f"{error.hint}; a factory that needs values can only be captured, without --dry-run"
        raise ModelError(f"{error.message}, in a dry run, without data", hint=hint) from error


@contextmanager
def _malleable(mode: FakeTensorMode) -> Iterator[None]:
    """Let fake modules be copied and change their dtype.

    A copy of a fake tensor would copy its mode as well, and torch refuses to convert parameters that a mode remembers.
    """
    replaced: list[tuple[dict[str, Any], str, Any]] = [
        (vars(mode), "__deepcopy__", lambda memo: mode),
        (vars(mode.fake_tensor_converter), "set_tensor_memo", lambda meta, fake: None),
    ]
    for attributes, name, function in replaced:
        attributes[name] = function
    try:
        yield
    finally:
        for attributes, name, _ in replaced:
            del attributes[name]


def _make_fake(module: nn.Module, mode: FakeTensorMode) -> None:
    """Put fake tensors in place of meta ones: those know their device. Tied ones stay tied."""

    @functools.cache
    def fake(tensor: torch.Tensor) -> torch.Tensor:
        if isinstance(tensor, DTensor):
            return nn.Parameter(like_shard(tensor, fake(tensor.to_local())), requires_grad=False)
        with mode:
            made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
        return nn.Parameter(made, requires_grad=False) if isinstance(tensor, nn.Parameter) else made

    for part in module.modules():
        tables: tuple[dict[str, Any], ...] = (part._parameters, part._buffers)
        for held in tables:
            for key, tensor in held.items():
                if tensor is not None:
                    held[key] = fake(tensor)
        for key, value in list(vars(part).items()):
            if isinstance(value, torch.Tensor):
                setattr(part, key, fake(value))
