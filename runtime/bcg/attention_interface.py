"""Where the attention break is put: transformers' attention interface, under a name of our own.

The name is registered in that interface and set on the model's configuration, so no modeling code is touched.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
import sys
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from bcg.attention import AttentionBreak

_PREFIX = "bcg_"
_MASKED_SUFFIX = "_with_model_masks"

_breaks: weakref.WeakKeyDictionary[nn.Module, AttentionBreak] = weakref.WeakKeyDictionary()
_paths: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()


class _MaskedName(str):
    """The name under which a break with the model's masks is registered; to code that asks, the original's name.

    Sparse attention (DeepSeek-V3.2 and its kin) makes its choice of keys a mask only for ``eager`` and ``sdpa``. Models
    whose code does not ask have a plain string: torch's compiler can't look this one up.
    """

    def __eq__(self, other: object) -> bool:
        return super().__eq__(other) or other == _original_name(self)

    __hash__ = str.__hash__


def _register(implementation: str, *, model_masks: bool) -> str:
    """Register the break for an original implementation, once per process; return its name."""
    name = f"{_PREFIX}{implementation}{_MASKED_SUFFIX if model_masks else ''}"
    if name in AttentionInterface._global_mapping:
        return name

    def attention_break(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Any = None,
        **options: Any,
    ) -> tuple[Tensor, None]:
        found = _breaks.get(module)
        if found is None:
            path = _paths.get(module, type(module).__name__)
            found = AttentionBreak(module, path, implementation, model_masks=model_masks)
            _breaks[module] = found
        return found(query, key, value, attention_mask if model_masks else None, options)

    AttentionInterface.register(name, torch.compiler.disable(attention_break))
    if model_masks and implementation in ALL_MASK_ATTENTION_FUNCTIONS:
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[implementation])
    return name


def install_attention_break(root: nn.Module, *, model_masks: bool = False) -> bool:
    """Make attention a break in every transformers model inside `root`.

    Which modules it reached is known after the first forward: see `attention_modules`.

    Args:
        root: Where one is installed already, it is replaced.
        model_masks: Let every model build its masks itself, which then serve one request; else only those do that can't
            do without.

    Returns:
        Whether there is an architecture that uses the attention interface.
    """
    for path, module in root.named_modules():
        _paths[module] = path
        _breaks.pop(module, None)
    models = list(_interface_models(root))
    for model in models:
        needs_masks = model_masks or not getattr(model, "_supports_flash_attn", False)
        name = _register(_own_implementation(model), model_masks=needs_masks)
        model.config._attn_implementation = _MaskedName(name) if needs_masks and _asks_for_names(model) else name
    return bool(models)


def _asks_for_names(model: PreTrainedModel) -> bool:
    """Tell whether the code around a model's attention compares the name of its implementation with names it knows."""
    return any(map(_compares_names, {type(module).__module__ for module in model.modules() if _dispatches(module)}))


@functools.cache
def _compares_names(python_module: str) -> bool:
    try:
        source = inspect.getsource(sys.modules[python_module])
    except (KeyError, OSError, TypeError):
        return True  # it can't be told
    return re.search(r"_attn_implementation (==|in) ", source) is not None


def is_known_by_name(root: nn.Module) -> bool:
    """Tell whether a model inside `root` has a name that torch's compiler can't look up (see `_MaskedName`)."""
    return any(isinstance(model.config._attn_implementation, _MaskedName) for model in _interface_models(root))


def _own_implementation(model: PreTrainedModel) -> str:
    """Return what a model is configured with, or was before the break was installed."""
    implementation: str = model.config._attn_implementation or "eager"
    return _original_name(implementation)


def _original_name(name: str) -> str:
    return name.removesuffix(_MASKED_SUFFIX).removeprefix(_PREFIX)


@contextlib.contextmanager
def attention_kept(root: nn.Module) -> Iterator[None]:
    """Bring back, after the block, the attention that the models inside `root` are configured with."""
    before = [(model.config, model.config._attn_implementation) for model in _interface_models(root)]
    try:
        yield
    finally:
        for config, implementation in before:
            config._attn_implementation = implementation


@contextlib.contextmanager
def without_attention_break(root: nn.Module) -> Iterator[None]:
    """Inside the block, attention is captured as any other operation, with the models' own masks."""
    with attention_kept(root):
        for model in _interface_models(root):
            model.config._attn_implementation = _own_implementation(model)
        yield


def attention_modules(root: nn.Module) -> tuple[str, ...]:
    """Return the paths of the modules whose attention has run as a break, in the model's order."""
    return tuple(attention_breaks(root))


def attention_breaks(root: nn.Module) -> dict[str, AttentionBreak]:
    """Return the breaks of those modules, by their paths."""
    return {path: _breaks[module] for path, module in root.named_modules() if module in _breaks}


def _interface_models(root: nn.Module) -> Iterator[PreTrainedModel]:
    """Yield the models of which some module dispatches through the attention interface."""
    for model in root.modules():
        if isinstance(model, PreTrainedModel) and any(map(_dispatches, model.modules())):
            yield model


def _dispatches(module: nn.Module) -> bool:
    return "ALL_ATTENTION_FUNCTIONS" in inspect.unwrap(type(module).forward).__globals__
