"""Models from transformers: from a preset's configuration, a local directory, or the hub.

What is loaded is the inner layer stack (``AutoModel``); the LM head stays outside.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel

from bcg.device.meter import available_bytes
from bcg.errors import BcgError, ModelError, UsageError, first_line
from bcg.models.build import Made, build_target, find_dtype, quiet
from bcg.models.loaded import (
    loading_warnings,
    refuse_incomplete,
    refuse_mismatched,
    unread_warnings,
    unreadable_file,
)
from bcg.models.sharding import Sharding, apply_plan, plan_of, pretrained_options
from bcg.models.weights import make_weights
from bcg.presets import Preset, find_preset
from bcg.report import ModelSource
from bcg.sizes import GIB
from bcg.structure import local_bytes
from bcg.target import Target
from bcg.words import TargetWords


def load_preset(words: TargetWords, sharding: Sharding | None = None) -> Target:
    """Make a preset's target, with seeded random weights."""
    preset = find_preset(words.model)
    default = preset.dtype if words.device_type == "cuda" else preset.host_dtype
    module = random_model(words, preset_config(preset), getattr(torch, default), sharding)
    return build_target(Made(module, "preset", "random", words.seed), words, sharding)


def preset_config(preset: Preset) -> PretrainedConfig:
    """Return a preset's configuration, as transformers knows it."""
    config_class = getattr(transformers, preset.config_class)
    config: PretrainedConfig = config_class(**preset.options)
    return config


def random_model(
    words: TargetWords, config: PretrainedConfig, default: torch.dtype, sharding: Sharding | None = None
) -> nn.Module:
    """Build a model with seeded random weights, directly on the device: no host copy, no host work.

    A sharded model has the values of the whole one: see `bcg.models.weights`.

    Args:
        words: Say what it is called, its device, its seed and, if any, its dtype.
        config: Of its architecture.
        default: Its dtype where the words say none.
        sharding: The ranks that it is split over.

    Raises:
        ModelError: If the weights don't fit on the device, or the architecture can't be built or sharded.
    """
    name, device, dtype = words.model, torch.device(words.device), find_dtype(words.dtype) or default
    with quiet():
        try:
            with torch.device("meta"):
                model: PreTrainedModel = AutoModel.from_config(config, dtype=dtype, **attention_options(config))
            if sharding is not None:
                apply_plan(name, model, plan_of(name, model, sharding), sharding, device.type)
            check_memory(name, model, device)
            make_weights(model, device, words.seed)
        except BcgError:
            raise
        except torch.OutOfMemoryError as error:
            raise ModelError(f"the weights of {name} do not fit on {device}: {first_line(error)}") from error
        except Exception as error:
            raise ModelError(
                f"transformers can't build {name} ({type(config).__name__}): {first_line(error)}"
            ) from error
    module: nn.Module = model
    return module


def attention_options(config: PretrainedConfig) -> dict[str, str]:
    """Return the attention implementation to ask for, where the default would compute something else.

    Older transformers (5.17 among them) leave soft caps out of `sdpa` without a word; the eager one applies them.
    """
    capped = getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None
    return {"attn_implementation": "eager"} if capped else {}


def hint_about_code(error: Exception) -> str | None:
    """Return what to do where transformers refused to run code out of a checkpoint."""
    if "trust_remote_code" not in str(error):
        return None
    return "bcg runs no code out of a checkpoint: load it in a factory of your own (file.py:factory)"


def check_memory(name: str, module: nn.Module, device: torch.device) -> None:
    """Refuse weights that can't fit on the device, before any is made.

    Raises:
        ModelError: Saying what is needed and what is free.
    """
    needed = local_bytes(module.parameters())
    free = _free_bytes(device)
    if free is not None and needed > free:
        raise ModelError(
            f"the weights of {name} need {needed / GIB:.1f} GiB, {device} has {free / GIB:.1f} GiB free",
            hint="choose a smaller model, or --dtype bfloat16",
        )


def _free_bytes(device: torch.device) -> int | None:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return available_bytes()


def load_directory(words: TargetWords, sharding: Sharding | None = None) -> Target:
    """Load a local Hugging Face directory: weights from safetensors if there, else seeded random.

    Raises:
        UsageError: If there is no ``config.json``.
        ModelError: If it can't be loaded.
    """
    name, path = words.model, Path(words.model).expanduser()
    if (path / "adapter_config.json").is_file() and not any(path.glob("model*.safetensors")):
        raise UsageError(
            f"directory {name} holds an adapter, not a model",
            hint="merge it (merge_and_unload and save_pretrained of peft), or load it in a factory (file.py:factory)",
        )
    if not (path / "config.json").is_file():
        raise UsageError(
            f"directory {name} holds no config.json",
            hint="a Hugging Face model directory has config.json and, with trained weights, *.safetensors",
        )
    if any(path.glob("*.safetensors")):
        return _load_pretrained(words, path, "directory", sharding, local_files_only=True)
    refuse_incomplete(name, path)
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise ModelError(
            f"can't read {path / 'config.json'}: {first_line(error)}", hint=hint_about_code(error)
        ) from error
    own = getattr(config, "dtype", None)
    default = torch.bfloat16 if words.device_type == "cuda" else torch.float32
    module = random_model(words, config, own if isinstance(own, torch.dtype) else default, sharding)
    target = build_target(Made(module, "directory", "random", words.seed), words, sharding)
    target.warnings[:0] = unread_warnings(name, path)
    return target


def load_hub(words: TargetWords, sharding: Sharding | None = None) -> Target:
    """Load a model by its hub id, from the network or the local cache.

    Raises:
        ModelError: If it is not there, or there is no network.
    """
    return _load_pretrained(words, words.model, "hub", sharding)


def _load_pretrained(
    words: TargetWords, location: str | Path, source: ModelSource, sharding: Sharding | None, **options: Any
) -> Target:
    name = words.model
    sharded = pretrained_options(sharding)
    try:
        with quiet():
            options["trust_remote_code"] = False
            config = AutoConfig.from_pretrained(location, **options)
            module, loading = AutoModel.from_pretrained(
                location,
                config=config,
                output_loading_info=True,
                dtype=find_dtype(words.dtype) or "auto",
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # refused below, with their names
                **attention_options(config),
                **sharded,
                **options,
            )
            if not sharded:
                module = module.to(words.device)
    except torch.OutOfMemoryError as error:
        raise ModelError(f"the weights of {name} do not fit on {words.device}: {first_line(error)}") from error
    except Exception as error:
        unreadable = unreadable_file(location) if isinstance(location, Path) else None
        hub = "a hub id needs a network or a filled cache, with *.safetensors" if source == "hub" else None
        raise ModelError(
            f"can't load {name}: {unreadable or first_line(error)}", hint=hint_about_code(error) or hub
        ) from error
    refuse_mismatched(name, loading["mismatched_keys"])
    warnings = loading_warnings(name, module, config, loading["missing_keys"], loading["unexpected_keys"])
    target = build_target(Made(module, source, "safetensors"), words, sharding)
    target.warnings[:0] = warnings
    return target
