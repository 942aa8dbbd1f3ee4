"""The default break: whatever function transformers' attention interface dispatches to.

It is put there by `bcg.attention_interface`. At call time the break finds the function that this very
architecture would have used (its file's own overrides included) and runs it eagerly, each request of the live
forward context on its own rows. Sliding windows, soft caps and sinks therefore keep their own maths, and
packed prefill needs no mask.

The name is not in transformers' *mask* registry, as for flash attention: the model then builds no mask, which
keeps the mask builders' host reads and their "am I being captured?" branches out of the segments. The break
builds, per request, the mask that the original function expects, with transformers' own mask functions.
Architectures that can't do without their own masks (no flash attention support), and models that are given masks or
make some of their own, keep their mask builders, and take one request at a time.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import math
import weakref
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from bcg.breaks import Allocate, Bindable, BreakLabel, InPlace, call_break
from bcg.context import ForwardContext, check_fits, current_forward_context
from bcg.device.cudnn_attention import find_plan
from bcg.errors import ModelError, ReplayError
from bcg.inputs import POSITIONS
from bcg.masks import build_mask
from bcg.structure import unowned_alias

_learns_rows: ContextVar[bool] = ContextVar("bcg_learns_rows", default=False)


@contextlib.contextmanager
def learning_rows() -> Iterator[None]:
    """Inside the block, breaks learn from forwards without padding whose rows they are given."""
    token = _learns_rows.set(True)
    try:
        yield
    finally:
        _learns_rows.reset(token)


_FLASH_DTYPES = (torch.float16, torch.bfloat16)
_MAX_FLASH_HEAD_DIM = 256


class AttentionBreak:
    """The attention of one module, run eagerly between two segments.

    What doesn't change from call to call (the original function, the name, the flags) is resolved once.

    Args:
        module: The attention module; only a weak reference is kept.
        path: Its path in the model, for reports.
        implementation: Name of the original implementation, such as ``sdpa``.
        model_masks: Whether the model's own mask arrives as an argument.

    Attributes:
        two_sided_window: Width of the sliding window that it was given for attention that is not causal; 0 for none.
        follows_tokens: Whether its queries are the batch's rows, as far as the first forwards told: an image encoder's
            are not. Only then are requests and padding told apart.
        is_self_attention: Whether it had as many keys as queries in each of them: else they are another sequence's.
    """

    def __init__(self, module: nn.Module, path: str, implementation: str, *, model_masks: bool) -> None:
        self.implementation = implementation
        self.original = _original_function(module, implementation)
        self.label = BreakLabel(getattr(self.original, "__name__", implementation), path, "attention")
        self._module = weakref.ref(module)
        self.takes_model_masks = model_masks
        self.two_sided_window = 0
        self.follows_tokens = True
        self.is_self_attention = True
        self._is_causal = bool(getattr(module, "is_causal", True))
        self._config = getattr(module, "config", None)
        self._make_mask = None if model_masks else ALL_MASK_ATTENTION_FUNCTIONS.get(implementation)
        self._can_pack = self.original is sdpa_attention_forward
        self._takes_positions = POSITIONS in inspect.signature(self.original).parameters
        self._plain = Bindable(self.run_plain, self.bind_plain)

    @property
    def needs_no_mask(self) -> bool:
        """Whether the original function alone, without any mask, is right for a batch of one request."""
        windowed = getattr(self._module(), "sliding_window", None) is not None
        return self._can_pack and self._is_causal and not windowed and not self.takes_model_masks

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, options: dict[str, Any]
    ) -> tuple[Tensor, None]:
        """Call the original function as a break of the active capture.

        Args:
            query: ``[1, heads, rows, head_dim]``.
            key: ``[1, key_value_heads, rows, head_dim]``.
            value: ``[1, key_value_heads, rows, value_dim]``.
            mask: The model's own mask; None where the break builds it.
            options: The keyword arguments of the interface, such as ``scaling`` and ``sliding_window``.

        Returns:
            The attention output ``[1, rows, heads, value_dim]`` and None.
        """
        if _learns_rows.get():
            self._learn_rows(query, key)
        if not self._takes_positions and self._can_pack:
            options.pop(POSITIONS, None)
        if self._is_plain(query, key, value, mask, options):
            arguments = (query, key, value, self._scale(query, options))
            return call_break(self._plain, arguments, {}, self.label), None
        result: tuple[Tensor, None] = call_break(self.run, (query, key, value, mask), options, self.label)
        return result

    def run_plain(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Run plain causal attention on a GPU: what `run` does, without looking again for what can't have changed.

        For one whole request it is the call that transformers' function comes to, with the same bits.

        Raises:
            ReplayError: If the context doesn't fit the rows.
        """
        context, rows = current_forward_context(), query.shape[2]
        if context is not None and not context.is_whole_request(rows):
            return self._separate(query, key, value, None, _plain_options(scale), context)
        is_grouped = query.shape[1] != key.shape[1]
        output = scaled_dot_product_attention(query, key, value, is_causal=rows > 1, scale=scale, enable_gqa=is_grouped)
        return output.transpose(1, 2).contiguous()

    def bind_plain(self, allocate: Allocate, query: Tensor, key: Tensor, value: Tensor, scale: float) -> InPlace | None:
        """Bind `run_plain` to a plan of cuDNN (`bcg.device.cudnn_attention`) where torch would call the same kernel."""
        plan = find_plan(query, key, value, scale)
        if plan is None:
            return None
        result = allocate(*plan.output_layout, query.dtype)
        launch, output = plan.bind(query, key, value, result), unowned_alias(result)
        options, rows = _plain_options(scale), query.shape[2]

        def write() -> None:
            context = current_forward_context()
            if context is not None and not context.is_whole_request(rows):
                self._separate(query, key, value, None, options, context, output)
            else:
                launch()

        return InPlace(result, write)

    def run(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, None]:
        """Run the original function on each request of the live forward context; padding rows become 0.

        Where keys are not the rows' own, one request runs whole, with its padding; where the rows are not the batch's,
        all of them do.

        Raises:
            ReplayError: If the context doesn't fit the rows, or the architecture can't take it.
        """
        context, rows = current_forward_context() if self.follows_tokens else None, query.shape[2]
        has_own_keys = self.is_self_attention and key.shape[2] == rows
        if context is not None and not context.is_whole_request(rows):
            # Keys that are not the rows' own (compressed, or another sequence's) can't be cut: one request runs whole.
            if len(context.request_lengths) > 1 or has_own_keys:
                return self._separate(query, key, value, mask, options, context), None
        elif has_own_keys and not (self._can_pack and options.get("sliding_window") is None):
            return self._attend(query, key, value, mask, options, context), None
        whole: tuple[Tensor, None] = self.original(self._module(), query, key, value, mask, **options)
        return whole

    def _learn_rows(self, query: Tensor, key: Tensor) -> None:
        context = current_forward_context()
        self.follows_tokens &= context is None or query.shape[2] == context.num_tokens
        self.is_self_attention &= query.shape[2] == key.shape[2]

    def _separate(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        options: dict[str, Any],
        context: ForwardContext,
        output: Tensor | None = None,
    ) -> Tensor:
        """Attend within each request; the result goes to `output` where there is one."""
        rows, offsets = query.shape[2], context.offsets()
        check_fits(context, rows)
        self._check_separable(query, key, context)
        if len(context.request_lengths) > 1 and self._is_plain(query, key, value, mask, options):
            pieces = [self._packed(query, key, value, self._scale(query, options), context)]
        else:
            pieces = [
                self._attend(
                    query[:, :, start:end],
                    key[:, :, start:end],
                    value[:, :, start:end],
                    None if mask is None else mask[..., start:end, start:end],
                    _cut_options(options, rows, start, end),
                    context,
                )
                for start, end in itertools.pairwise(offsets)
            ]
        if offsets[-1] < rows:
            first = pieces[0]
            pieces.append(first.new_zeros(first.shape[0], rows - offsets[-1], *first.shape[2:]))
        return pieces[0] if output is None and len(pieces) == 1 else torch.cat(pieces, dim=1, out=output)

    @staticmethod
    def _scale(query: Tensor, options: dict[str, Any]) -> float:
        scale: float | None = options.get("scaling")
        return 1 / math.sqrt(query.shape[3]) if scale is None else scale

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        options: dict[str, Any],
        context: ForwardContext | None,
    ) -> Tensor:
        if self._make_mask is not None:
            mask = self._mask_for(query, options, context)
        output: Tensor = self.original(self._module(), query, key, value, mask, **options)[0]
        return output

    def _mask_for(self, query: Tensor, options: dict[str, Any], context: ForwardContext | None) -> Any:
        length, window, causal = query.shape[2], options.get("sliding_window"), options.get("is_causal")
        if self._can_pack and window is None:
            return None  # sdpa needs no mask for one whole request: it is told whether attention is causal
        if causal is None:
            causal = self._is_causal
        if window is not None and not causal:
            self.two_sided_window = window
            window -= 1  # the interface is given the flash kernels' window, which counts the token itself

        def make() -> Any:
            assert self._make_mask is not None
            return build_mask(self._make_mask, query, window, causal=causal, config=self._config)

        if context is None:
            return make()
        return context.once((self._make_mask, length, window, causal, query.dtype, query.device), make)

    def _check_separable(self, query: Tensor, key: Tensor, context: ForwardContext) -> None:
        path = self.label.module
        if query.shape[0] != 1:
            raise ReplayError(f"attention {path!r} was given {query.shape[0]} batch rows, expected 1")
        if key.shape[2] != query.shape[2] or not self.is_self_attention:
            raise ReplayError(
                f"attention {path!r} has {query.shape[2]} queries for {key.shape[2]} keys of another sequence: its "
                "requests can't be told apart",
                hint="give one request per batch",
            )
        if self.takes_model_masks and len(context.request_lengths) > 1:
            raise ReplayError(
                f"packed prefill needs attention that works without the model's own mask; {path!r} does not, "
                f"and the batch has {len(context.request_lengths)} requests",
                hint="give one request per batch",
            )

    def _is_plain(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, options: dict[str, Any]
    ) -> bool:
        """Whether this is plain causal attention on a GPU: one call, variable-length or not, computes the same."""
        causal = options.get("is_causal")
        return (
            query.is_cuda
            and self.follows_tokens
            and self._can_pack
            and query.dtype in _FLASH_DTYPES
            and query.shape[2:] == key.shape[2:] == value.shape[2:]
            and query.shape[3] <= _MAX_FLASH_HEAD_DIM
            and mask is None
            and (self._is_causal if causal is None else causal)
            and not options.get("dropout")
            and all(options.get(name) is None for name in ("sliding_window", "softcap", "s_aux", "position_bias"))
        )

    def _packed(self, query: Tensor, key: Tensor, value: Tensor, scale: float, context: ForwardContext) -> Tensor:
        total = context.num_tokens
        bounds, longest = context.cu_seqlens(query.device), context.max_length
        output: Tensor = torch.ops.aten._flash_attention_forward(
            query[0, :, :total].transpose(0, 1),
            key[0, :, :total].transpose(0, 1),
            value[0, :, :total].transpose(0, 1),
            bounds,
            bounds,
            longest,
            longest,
            0.0,
            True,
            False,
            scale=scale,
        )[0]
        return output.unsqueeze(0)


def _plain_options(scale: float) -> dict[str, Any]:
    """The interface's keyword arguments for plain causal attention."""
    return {"scaling": scale, "is_causal": True}


def _cut_options(options: dict[str, Any], rows: int, start: int, end: int) -> dict[str, Any]:
    """Cut the options that have a value per row: positions, biases ``[…, rows, rows]``, sinks ``[…, rows, 1]``."""
    return {
        name: _cut(value, rows, start, end, is_line=name == POSITIONS) if isinstance(value, Tensor) else value
        for name, value in options.items()
    }


def _cut(value: Tensor, rows: int, start: int, end: int, *, is_line: bool) -> Tensor:
    if value.shape[-1:] == (rows,) and (is_line or value.shape[-2:] == (rows, rows)):
        value = value[..., start:end]
    if value.dim() > 2 and value.shape[-2] == rows and not is_line:
        value = value[..., start:end, :]
    return value


def _original_function(module: nn.Module, implementation: str) -> Callable[..., Any]:
    """Return the function that this module's own file dispatches to for an implementation."""
    scope = inspect.unwrap(type(module).forward).__globals__
    interface = scope.get("ALL_ATTENTION_FUNCTIONS")
    eager = scope.get("eager_attention_forward")
    if implementation == "eager" and eager is None:
        raise ModelError(
            f"{type(module).__name__} has no eager attention of its own to break at",
            hint="use --no-attention-break, and --break for its attention modules",
        )
    if interface is None:
        interface = AttentionInterface()
    original: Callable[..., Any] = interface.get_interface(implementation, eager)
    return original
