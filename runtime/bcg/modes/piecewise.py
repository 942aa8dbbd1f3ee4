"""`piecewise`: the whole forward compiled, with attention as the point where the compiler's graphs are cut.

Attention is one operator that the compiler does not look into; Inductor's graph partition ends a CUDA graph before
it and begins one after it: the compiler-based piecewise graphs that sglang compared breakable ones with.
"""

from __future__ import annotations

import torch
import torch._inductor.config
from torch import Tensor
from transformers import AttentionInterface

from bcg.attention import AttentionBreak
from bcg.attention_interface import attention_breaks
from bcg.errors import ModelError
from bcg.host_reads import UNSAFE_TAGS
from bcg.modes.compiled import Compiled, set_attention
from bcg.report import ModeName

OPERATOR = "bcg::attention"
IMPLEMENTATION = "bcg_attention_operator"

_breaks: dict[str, AttentionBreak] = {}


# By the tag newer versions of Inductor know where to cut, older ones by a list in their configuration.
@torch.library.custom_op(OPERATOR, mutates_args=(), tags=UNSAFE_TAGS)
def attention(
    query: Tensor, key: Tensor, value: Tensor, path: str, scaling: float | None, sliding_window: int | None
) -> Tensor:
    """Run the attention of the module at `path`, as its break would."""
    options = {"scaling": scaling, "sliding_window": sliding_window}
    given = {name: value for name, value in options.items() if value is not None}
    output = _breaks[path].run(query, key, value, None, **given)[0]
    return output.contiguous()


@attention.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor, path: str, scaling: float | None, sliding_window: int | None
) -> Tensor:
    return query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[3])


class Piecewise(Compiled):
    """A target under the compiler, cut at attention."""

    name: ModeName = "piecewise"

    def settings(self) -> dict[str, object]:
        config = torch._inductor.config
        if not hasattr(config, "graph_partition"):
            raise ModelError(f"torch {torch.__version__} can't partition a compiled graph")
        settings: dict[str, object] = {"graph_partition": True}
        if hasattr(config, "custom_should_partition_ops"):
            settings["custom_should_partition_ops"] = [OPERATOR]
        return settings

    def place_attention(self) -> None:
        found = attention_breaks(self._target.module)
        masked = next((path for path, one in found.items() if one.takes_model_masks), None)
        if masked is not None:
            raise ModelError(f"attention {masked!r} needs the model's own mask, which the operator does not take")
        _breaks.update(found)
        for path in found:
            self._target.module.get_submodule(path)._bcg_path = path  # type: ignore[assignment]

        def call(
            module: torch.nn.Module,
            query: Tensor,
            key: Tensor,
            value: Tensor,
            attention_mask: Tensor | None = None,
            scaling: float | None = None,
            sliding_window: int | None = None,
            **options: object,
        ) -> tuple[Tensor, None]:
            extra = [name for name in ("softcap", "s_aux", "position_bias") if options.get(name) is not None]
            if extra:
                raise ModelError(f"the attention operator does not take {', '.join(extra)}")
            return attention(query, key, value, str(module._bcg_path), scaling, sliding_window), None

        AttentionInterface.register(IMPLEMENTATION, call)
        set_attention(self._target, IMPLEMENTATION)
