"""`compiled`: ``torch.compile(mode="reduce-overhead")`` over the whole forward, attention inside.

The strongest thing that a user would pick instead of a breakable graph: every bucket gets a static compilation of
its own, and the compiler captures what it made in its own CUDA graphs. It may skip them; skips are counted, and a
bucket with one is a fallback, not a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from bcg.attention_interface import attention_breaks
from bcg.context import forward_context
from bcg.device.meter import find_meter
from bcg.inputs import Batch
from bcg.modes.base import Counts, Preparation, bucket_batch, failed, seconds
from bcg.modes.compilers import compiler_settings, read_counts, skip_reasons
from bcg.modes.fused import unhook
from bcg.report import ModeName
from bcg.rules import is_named, unbreak_modules
from bcg.target import Target, plain_output

TRACEABLE = "bcg_traceable_sdpa"


class Compiled:
    """A target under the compiler, with the compiler's own CUDA graphs."""

    name: ModeName = "compiled"
    runner = None

    def __init__(self, target: Target) -> None:
        self._target = target
        self._meter = find_meter(target.device)
        self._before = read_counts()

    def settings(self) -> dict[str, object]:
        """Settings of the compiler's back end for this mode."""
        return {}

    def place_attention(self) -> None:
        """Put attention inside: the same function as the breaks call, where it needs no mask of its own."""
        breaks = attention_breaks(self._target.module).values()
        if all(attention.needs_no_mask for attention in breaks):
            AttentionInterface.register(TRACEABLE, _traceable_sdpa)
            set_attention(self._target, TRACEABLE)
        else:
            set_attention(self._target, next(iter(breaks)).implementation)

    def prepare(self, buckets: Sequence[int]) -> list[Preparation]:
        ordered = sorted(set(buckets), reverse=True)
        try:
            compiler_settings(**self.settings())
            unhook(self._target.module)
            remove_module_breaks(self._target)
            self.place_attention()
            self._compiled = torch.compile(self._target.module, mode="reduce-overhead", dynamic=False)
        except Exception as error:  # noqa: BLE001 - a compiler that fails is a result
            return [failed(tokens, error) for tokens in ordered]
        return [self._prepare(tokens) for tokens in ordered]

    def _prepare(self, tokens: int) -> Preparation:
        batch, before, counts = bucket_batch(self._target, tokens), self._meter.usage(), read_counts()
        with skip_reasons() as reasons:
            try:
                first, second, third = (seconds(lambda: self.run(batch), self._meter.synchronize) for _ in range(3))
            except Exception as error:  # noqa: BLE001 - a compiler that fails is a result
                return failed(tokens, error)
        after, num_skips = self._meter.usage(), read_counts().since(counts).skips
        skipped = f"{num_skips} CUDA graphs skipped: {'; '.join(dict.fromkeys(reasons)) or 'no reason given'}"
        return Preparation(
            tokens,
            status="fell back" if num_skips else "measured",
            reason=skipped if num_skips else None,
            compile_s=max(0.0, first - third),
            warmup_s=third,
            capture_s=max(0.0, second - third),
            pool_bytes=after.allocator_bytes - before.allocator_bytes,
            driver_bytes=after.driver_bytes - before.driver_bytes,
        )

    def run(self, batch: Batch) -> Any:
        torch.compiler.cudagraph_mark_step_begin()
        target = self._target
        with forward_context(batch.context()), torch.inference_mode():
            return plain_output(self._compiled(**batch.inputs, **target.forward_options), target.name)

    def counts(self) -> Counts:
        made = read_counts().since(self._before)
        notes = [f"the compiler cut the forward in {made.breaks} places"] if made.breaks else []
        return Counts(num_compilations=made.graphs, num_skips=made.skips, notes=[*notes, *made.notes])

    def close(self) -> None:
        torch._dynamo.reset()


def _traceable_sdpa(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any = None,
    **options: Any,
) -> Any:
    return sdpa_attention_forward(module, query, key, value, None, **options)


def set_attention(target: Target, implementation: str) -> None:
    """Let every model of the target dispatch its attention to another registered implementation."""
    for module in target.module.modules():
        if isinstance(module, PreTrainedModel) and str(module.config._attn_implementation).startswith("bcg_"):
            module.config._attn_implementation = implementation


def remove_module_breaks(target: Target) -> None:
    """Give modules that are breaks their own forward back: in this mode the compiler sees all of them.

    Functions and operations that are breaks are so only for a capture that follows the forward.
    """
    rules = target.break_rules
    paths = (*rules.mixers, *(path for paths in rules.globs.values() for path in paths))
    unbreak_modules(target.module, (path for path in paths if not is_named(path)))
