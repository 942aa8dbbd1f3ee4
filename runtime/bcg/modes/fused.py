"""`fused`: breakable capture over layers that were compiled one by one.

Layers are compiled with `dynamic=True` and share their code, so one compilation serves all token counts and all
equal layers. Breaks stay outside the compiler: each layer becomes a piece before its break and a piece after it. So do
recurrent mixers that are captured, whose kernels were written by hand.
The capture runs without the tape, because compiled code does not run as such under a dispatch mode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from bcg.attention_interface import is_known_by_name
from bcg.breaks import bound_breaks
from bcg.context import forward_context
from bcg.device import find_device
from bcg.device.cudnn_builders import planned_ahead
from bcg.modes.base import Counts, Preparation, bucket_batch, failed, seconds
from bcg.modes.captured import Captured
from bcg.modes.compilers import CompilerCounts, compiler_settings, read_counts, without_nested_breaks
from bcg.modes.gathers import SplitFlatGathers
from bcg.report import ModeName
from bcg.rules import find_mixers
from bcg.target import Target
from bcg.warmup import outermost_layers


class Fused(Captured):
    """The target with compiled layers, captured with its breaks."""

    name: ModeName = "fused"

    def __init__(self, target: Target) -> None:
        super().__init__(target, tape=False)
        self._before = read_counts()

    def prepare(self, buckets: Sequence[int]) -> list[Preparation]:
        architecture = self.target.info.architecture
        compiler_settings(post_grad_custom_pre_pass=SplitFlatGathers())
        reason = None
        if is_known_by_name(self.target.module):
            reason = f"attention of {architecture} asks for its name, which torch's compiler can't look up as a break"
        elif not compile_layers(self.target.module):
            reason = f"{architecture} has no list of layers to compile one by one"
        if reason is not None:
            return [Preparation(tokens, "not available", reason) for tokens in sorted(buckets, reverse=True)]
        with planned_ahead(sorted(buckets, reverse=True)):  # while the compiler works
            try:
                compile_s = self._compile_once(max(buckets))
            except Exception as error:  # noqa: BLE001 - a compiler that fails is a result
                return [failed(tokens, error) for tokens in sorted(buckets, reverse=True)]
            prepared = super().prepare(buckets)
        prepared[0] = replace(prepared[0], compile_s=compile_s)
        return [self._proved(preparation) for preparation in prepared]

    def _compile_once(self, tokens: int) -> float:
        """Compile; a compiler that can't keep a break inside a layer in one piece on each side tries smaller ones."""
        try:
            return self._compile(tokens)
        except Exception:
            if not without_nested_breaks():
                raise
            return self._compile(tokens)

    def _compile(self, tokens: int) -> float:
        batch, device = bucket_batch(self.target, tokens), find_device(self.target.device)

        def run() -> None:
            with forward_context(batch.context()), device.capture_stream(), bound_breaks():
                self.target(batch.inputs)

        first = seconds(run, device.synchronize)
        return max(0.0, first - seconds(run, device.synchronize))

    def _proved(self, preparation: Preparation) -> Preparation:
        """Refuse a capture in which no kernel of the compiler is found: it would be `breakable` under a new name."""
        graph = self.runner.graphs.get(preparation.tokens)
        if graph is None or any("triton" in name for segment in graph.segments for name in segment.contents().kernels):
            return preparation
        return replace(preparation, status="fell back", reason="no kernel of the compiler was captured")

    def counts(self) -> Counts:
        made: CompilerCounts = read_counts().since(self._before)
        return replace(super().counts(), num_compilations=made.graphs, num_skips=made.skips, notes=made.notes)


def compile_layers(module: nn.Module) -> int:
    """Compile every layer of a model's lists of layers; return how many.

    The forward of each is replaced on the instance. Recurrent mixers are left as they are, and so are the small modules
    beside the layers: a rotary embedding and a last norm took a third of the compiler's time, and gave none at replay.
    """
    unhook(module)
    for mixer in find_mixers(module).values():
        mixer.forward = torch.compiler.disable(mixer.forward)
    layers = outermost_layers(module)
    for layer in layers:
        layer.forward = torch.compile(layer.forward, dynamic=True)
    return len(layers)


def unhook(module: nn.Module) -> None:
    """Take off transformers' own hooks, which collect outputs that nobody asked for and split compiled code."""
    for child in module.modules():
        hooks: dict[int, Any] = child._forward_hooks
        for key in [key for key, hook in hooks.items() if str(hook.__module__).startswith("transformers.")]:
            del hooks[key]
