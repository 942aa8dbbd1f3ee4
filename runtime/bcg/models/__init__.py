"""From a MODEL argument, or a module, to a target: presets, Hugging Face directories and hub ids, factories."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from bcg.alignment import Alignment
from bcg.errors import UsageError
from bcg.model_names import ModelKind, kind_of_model
from bcg.models.build import find_dtype
from bcg.models.factory import load_factory
from bcg.models.factory import make_target as make_target
from bcg.models.huggingface import load_directory, load_hub, load_preset
from bcg.models.sharding import Sharding
from bcg.target import Target
from bcg.words import TargetWords


def load_target(
    model: str,
    *,
    device: torch.device | str = "cpu",
    dtype: str | None = None,
    seed: int = 0,
    attention_break: bool = True,
    break_globs: Sequence[str] = (),
    ranks: Alignment | None = None,
    expert_parallel: bool = False,
) -> Target:
    """Load what the MODEL argument names and make it a target.

    Args:
        model: A preset, a Hugging Face directory, a hub id, ``file.py:factory`` or
            ``package.module:factory``.
        device: Where the weights live.
        dtype: ``float32``, ``float16`` or ``bfloat16``; by default the model's own.
        seed: Of random weights.
        attention_break: Whether attention and recurrent mixers are breaks.
        break_globs: Further modules to break at, by path or class name, functions as ``package.module:function`` or
            ``file.py:function``, and operations as ``OPERATION@FILE:LINE``.
        ranks: Over which the model is sharded, by transformers' own plan. A factory is called on each of them and
            shards its module itself.
        expert_parallel: Whether each rank has whole experts.

    Raises:
        UsageError: If `model`, `dtype` or a glob names nothing.
        ModelError: If the model can't be built, doesn't fit, or doesn't take its inputs.
    """
    globs = tuple(break_globs)
    words = TargetWords(model, str(torch.device(device)), dtype, seed, attention_break, globs, expert_parallel)
    return load_from_words(words, ranks)


def load_from_words(words: TargetWords, ranks: Alignment | None = None) -> Target:
    """Make the target that words describe, whole or sharded over `ranks`; see `load_target`."""
    find_dtype(words.dtype)
    place = torch.device(words.device)
    if place.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"can't load {words.model} on {place}: there is no usable GPU", hint="use device cpu")
    if place == torch.device("cuda"):
        words = replace(words, device=f"cuda:{torch.cuda.current_device()}")
    sharding = None if ranks is None else Sharding(ranks.size, words.expert_parallel, ranks)
    target = _load(words, sharding)
    if ranks is None:
        target.words = words
    return target


def _load(words: TargetWords, sharding: Sharding | None) -> Target:
    return _LOADERS[kind_of_model(words.model)](words, sharding)


_LOADERS: dict[ModelKind, Callable[[TargetWords, Sharding | None], Target]] = {
    "directory": load_directory,
    "factory": load_factory,
    "hub": load_hub,
    "preset": load_preset,
}
