"""What a module's signature and configuration say of its inputs, where nobody else does."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from bcg.errors import ModelError
from bcg.input_makers import MakeInputs
from bcg.inputs import POSITIONS


def default_inputs(name: str, module: nn.Module, first_position: int | None = None) -> MakeInputs:
    """Return a function that makes token ids ``[1, n]`` and, if the forward takes them, ``position_ids``.

    They are called ``input_ids``, or ``input`` for a sequence of modules that begins with an embedding.

    Args:
        name: Of the model.
        module: What takes them.
        first_position: Where positions begin; by default where its table of positions tells, and else at 0.

    Raises:
        ModelError: If the module has neither a vocabulary size nor an embedding.
    """
    vocabulary = vocabulary_size(module)
    if vocabulary is None:
        raise ModelError(
            f"{name} has no vocabulary to draw input_ids from: no config.vocab_size, no nn.Embedding",
            hint="let a factory (file.py:factory) return (module, make_inputs), which makes what its forward takes",
        )
    ids_name = _ids_name(module)
    takes_positions = POSITIONS in _parameters(module)
    first = _learned_positions(module)[0] if first_position is None else first_position
    padding = getattr(_text_config(module), "pad_token_id", None)

    def make_inputs(num_tokens: int, device: torch.device, generator: torch.Generator) -> dict[str, torch.Tensor]:
        ids = torch.randint(vocabulary, (1, num_tokens), device=device, generator=generator)
        if isinstance(padding, int):  # no request has it, and some models count positions past it
            ids = torch.where(ids == padding, (ids + 1) % vocabulary, ids)
        inputs = {ids_name: ids}
        if takes_positions:
            inputs[POSITIONS] = torch.arange(first, first + num_tokens, device=device).unsqueeze(0)
        return inputs

    return make_inputs


def forward_options(module: nn.Module) -> dict[str, Any]:
    """Return what every forward is told: to make no cache, where it makes one unless it is told otherwise."""
    return {"use_cache": False} if _takes_use_cache(module) else {}


def vocabulary_size(module: nn.Module) -> int | None:
    """Return how many token ids a module knows; None where nothing tells."""
    size = getattr(_text_config(module), "vocab_size", None)
    if isinstance(size, int) and size > 0:
        return size
    return next((child.num_embeddings for child in module.modules() if isinstance(child, nn.Embedding)), None)


def max_tokens(module: nn.Module) -> int | None:
    """Return the most positions that the module has, learned or by its configuration; None where nothing says so."""
    configured = getattr(_text_config(module), "max_position_embeddings", None)
    limits = [limit for limit in (_learned_positions(module)[1], configured) if isinstance(limit, int) and limit > 0]
    return min(limits, default=None)


def rope_scaled_by_length(module: nn.Module) -> str | None:
    """Return the kind of rotary embedding whose factors depend on how long the longest request is; None for others."""
    parameters = getattr(_text_config(module), "rope_parameters", None) or {}
    kinds = [parameters, *(value for value in parameters.values() if isinstance(value, dict))]
    return next((kind for one in kinds if (kind := one.get("rope_type")) in ("dynamic", "longrope")), None)


def _text_config(module: nn.Module) -> Any:
    config = getattr(module, "config", None)
    return config.get_text_config() if isinstance(config, PretrainedConfig) else config


def _text_part(module: nn.Module) -> nn.Module:
    """Return the language model inside a model that also takes images or sound; any other module is that itself."""
    config = _text_config(module)
    parts = (part for part in module.modules() if isinstance(part, PreTrainedModel) and part.config is config)
    return next(parts, module)


def _learned_positions(module: nn.Module) -> tuple[int, int | None]:
    """Return the first position and how many there are; None where positions are computed, not learned."""
    tables = [
        child
        for path, child in _text_part(module).named_modules()
        if isinstance(child, nn.Embedding) and "position" in path.rsplit(".", 1)[-1]
    ]
    if not tables:
        return 0, None
    table = min(tables, key=lambda table: table.num_embeddings)
    first = 0 if table.padding_idx is None else table.padding_idx + 1
    return first, table.num_embeddings - first


def _parameters(module: nn.Module) -> Any:
    return inspect.signature(module.forward).parameters


def _ids_name(module: nn.Module) -> str:
    is_sequence = type(module) is nn.Sequential and len(module) > 0 and isinstance(module[0], nn.Embedding)
    return "input" if is_sequence else "input_ids"


def _takes_use_cache(module: nn.Module) -> bool:
    """Tell whether a forward takes the word for it, or hands it on to a language model inside."""
    parameters = _parameters(module)
    if "use_cache" in parameters or not isinstance(module, PreTrainedModel):
        return "use_cache" in parameters
    takes_more = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    return takes_more and _text_part(module) is not module and hasattr(_text_config(module), "use_cache")
