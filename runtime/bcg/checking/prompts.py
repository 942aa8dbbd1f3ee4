"""Real prompts through the graphs: tokenized, packed into batches, compared with eager, next tokens included."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from torch import Tensor
from transformers import AutoTokenizer

from bcg.checking.compare import Comparison, Tolerance, compare, finite
from bcg.checking.spread import Spread
from bcg.checking.verdicts import joined_verdict
from bcg.device import find_device
from bcg.errors import ModelError, UsageError, first_line
from bcg.inputs import Batch
from bcg.models.build import quiet
from bcg.models.default_inputs import vocabulary_size
from bcg.prompts import refuse_without_tokenizer
from bcg.report import PromptCheck, ReportWarning, Verdict
from bcg.runner import GraphRunner
from bcg.state import ModelState, Snapshot
from bcg.structure import map_tensors, tensors_in
from bcg.target import Target, make_batch

_HEAD = "lm_head.weight"
LanguageModelHead = Callable[[Tensor], Tensor]
"""From hidden states ``[rows, hidden]`` to logits ``[rows, vocabulary]``."""

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
"""Without any of these transformers makes a tokenizer that knows no word, and says nothing."""


def tokenize(target: Target, prompts: Sequence[str]) -> list[list[int]]:
    """Turn prompts into token ids with the tokenizer that lies beside the model.

    Raises:
        UsageError: The model has no tokenizer, or doesn't take token ids.
        ModelError: A prompt gives no token, or an id that the model doesn't know.
    """
    refuse_without_tokenizer(target.name, target.info.source)
    if "input_ids" not in {spec.name for spec in target.input_specs}:
        raise UsageError(f"prompts need a model that takes input_ids, and {target.name} doesn't")
    is_directory = target.info.source == "directory"
    location = Path(target.name).expanduser() if is_directory else target.name
    if is_directory and not any(Path(location, name).is_file() for name in _TOKENIZER_FILES):
        raise UsageError(
            f"prompts need a model with a tokenizer, and there is none in {target.name}",
            hint="put tokenizer.json beside config.json",
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(location, local_files_only=is_directory, trust_remote_code=False)
    except Exception as error:
        raise ModelError(
            f"the tokenizer of {target.name} can't be loaded: {first_line(error)}", hint="--traceback shows where"
        ) from error
    with quiet():  # of prompts that are longer than the model
        encoded: list[list[int]] = [list(tokenizer(prompt)["input_ids"]) for prompt in prompts]
    known = vocabulary_size(target.module)
    for prompt, ids in zip(prompts, encoded, strict=True):
        if not ids:
            raise ModelError(f"the tokenizer of {target.name} makes no token of {prompt[:40]!r}")
        if known is not None and max(ids) >= known:
            raise ModelError(
                f"the tokenizer of {target.name} makes token {max(ids)} of {prompt[:40]!r}, the model knows {known}",
                hint="put the model's own tokenizer beside it",
            )
    return encoded


def is_language_model(target: Target) -> bool:
    """Tell whether the whole model is a causal language model, of which the target leaves out the head."""
    architectures = getattr(getattr(target.module, "config", None), "architectures", None) or ()
    return any(name.endswith("ForCausalLM") for name in architectures)


def language_model_head(target: Target) -> LanguageModelHead | None:
    """Return the head of a causal language model, which is outside the capture; None if there is none to be found.

    A head that is tied to the embeddings is these; another is read from the directory's weights, or from those in the
    hub's cache.
    """
    if not is_language_model(target):
        return None
    module: Any = target.module
    if getattr(module.config, "tie_word_embeddings", False):
        weight = module.get_input_embeddings().weight
    else:
        weight = _stored_head(_weights_folder(target), target.device)
    if weight is None:
        return None
    return lambda hidden: hidden @ weight.to(hidden.dtype).T


def _weights_folder(target: Target) -> Path:
    if target.info.source == "hub":
        return Path(snapshot_download(target.name, local_files_only=True))
    return Path(target.name).expanduser()


def _stored_head(folder: Path, device: torch.device) -> Tensor | None:
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt", device=str(device)) as file:
            if _HEAD in file.keys():  # noqa: SIM118 - not a dict
                weight: Tensor = file.get_tensor(_HEAD)
                return weight
    return None


def headless_warning(target: Target) -> ReportWarning:
    """Warn of a language model whose head was not found, so that next tokens are not compared."""
    return ReportWarning(
        code="next-tokens-not-compared",
        message=f"the next tokens of {target.name} were not compared, only its hidden states",
        cause=f"its head is not tied to the embeddings, and no {_HEAD} lies beside its weights",
        remedy=f"give a model whose *.safetensors hold {_HEAD}",
    )


def check_prompts(
    runner: GraphRunner,
    encoded: Sequence[Sequence[int]],
    head: LanguageModelHead | None,
    state: ModelState,
    base: Snapshot,
    tolerance: Tolerance,
    spread: Spread,
) -> PromptCheck:
    """Replay prompts in batches as large as the buckets allow, and compare with eager on the same padded batch.

    Prompts above the largest bucket run eagerly and are counted; those above the model's positions don't run.

    Args:
        runner: After its `capture`.
        encoded: Token ids of each prompt.
        head: Makes logits, so that next tokens are compared too.
        state: The target's.
        base: What to restore before every run.
        tolerance: What counts as a match where bits differ.
        spread: How far eager is from itself, as known so far: widened where a replay is not eager.
    """
    target = runner.target
    largest = max(runner.graphs)
    short = [list(ids) for ids in encoded if len(ids) <= largest]
    num_long = len(encoded) - len(short)
    for ids in encoded:
        if largest < len(ids) <= (target.max_tokens or math.inf):
            state.restore(base)
            runner.eager(_batch(target, [ids]))
    total = Comparison()
    verdicts: list[Verdict] = []
    num_other = num_tokens = num_replays = 0

    def run_again(batch: Batch, expected: Any) -> Comparison:
        state.restore(base)
        return compare(expected, runner.eager_padded(batch), tolerance)

    for packed in _pack(short, largest if target.packs_requests else 0):
        batch = _batch(target, packed)
        state.restore(base)
        expected = map_tensors(torch.clone, runner.eager_padded(batch))
        state.restore(base)
        assert runner.pool is not None
        find_device(target.device).poison(runner.pool)
        before = runner.num_replays
        got = runner.replay(batch)
        num_replays += runner.num_replays - before
        difference = compare(expected, got, tolerance)
        total = total.joined(difference)
        num_tokens += batch.num_tokens
        is_same = difference.within
        if head is not None:
            ours, others = _next_tokens(target, head, expected, batch), _next_tokens(target, head, got, batch)
            num_other += int((ours != others).sum())
            is_same = is_same and torch.equal(ours, others)
        if is_same:
            verdicts.append("match")
        elif spread.explains(difference, partial(run_again, batch, expected)):
            verdicts.append("inconclusive")
        else:
            verdicts.append("mismatch")
    state.restore(base)
    return PromptCheck(
        verdict=joined_verdict(verdicts) if num_replays == len(verdicts) else "inconclusive",
        num_prompts=len(encoded),
        num_replayed=len(short),
        num_eager=num_long,
        num_batches=len(verdicts),
        num_tokens=num_tokens,
        bitwise=total.bitwise and bool(verdicts),
        max_abs_error=finite(total.max_abs_error),
        max_rel_error=finite(total.max_rel_error),
        num_next_tokens=len(short) if head is not None else 0,
        num_other_next_tokens=num_other,
    )


def _pack(prompts: Sequence[list[int]], most_tokens: int) -> Iterator[list[list[int]]]:
    """Fill batches in order up to `most_tokens`; each prompt on its own if that is 0."""
    packed: list[list[int]] = []
    for ids in prompts:
        if packed and sum(map(len, packed)) + len(ids) > most_tokens:
            yield packed
            packed = []
        packed.append(ids)
    if packed:
        yield packed


def _batch(target: Target, prompts: Sequence[Sequence[int]]) -> Batch:
    generator = torch.Generator(target.device).manual_seed(0)
    batch = make_batch(target, tuple(map(len, prompts)), generator)
    ids = batch.inputs["input_ids"]
    flat = torch.tensor(list(itertools.chain.from_iterable(prompts)), dtype=ids.dtype, device=ids.device)
    return replace(batch, inputs={**batch.inputs, "input_ids": flat.view(ids.shape)})


def _next_tokens(target: Target, head: LanguageModelHead, output: Any, batch: Batch) -> Tensor:
    """Return the greedy next token after each request."""
    hidden = tensors_in(output)[0].movedim(target.output_token_dims[0] or 0, 0).flatten(1)
    last = list(itertools.accumulate(batch.request_lengths))
    with torch.inference_mode():
        return head(hidden[[row - 1 for row in last]]).argmax(-1)
