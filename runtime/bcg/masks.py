"""Attention masks of one request, built with transformers' own mask functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers.masking_utils import (
    bidirectional_mask_function,
    causal_mask_function,
    sliding_window_bidirectional_mask_function,
    sliding_window_causal_mask_function,
)


def build_mask(make_mask: Callable[..., Any], query: Tensor, window: int | None, *, causal: bool, config: Any) -> Any:
    """Build the mask that an attention implementation is given for one whole request, without a cache.

    Args:
        make_mask: What transformers' mask registry holds for the implementation; it decides itself when no
            mask is needed.
        query: ``[1, heads, length, head_dim]``.
        window: Length of the sliding window; None for full attention.
        causal: Whether a token sees only those before it.
        config: The model's configuration.

    Returns:
        A mask in the implementation's own form, or None where it needs none.
    """
    length = query.shape[2]
    if causal:
        pattern = causal_mask_function if window is None else sliding_window_causal_mask_function(window)
    elif window is None:
        pattern = bidirectional_mask_function
    else:
        pattern = sliding_window_bidirectional_mask_function(window)
    return make_mask(
        batch_size=query.shape[0],
        q_length=length,
        kv_length=length,
        q_offset=0,
        kv_offset=0,
        mask_function=pattern,
        attention_mask=None,
        allow_is_causal_skip=causal,
        allow_is_bidirectional_skip=not causal,
        local_size=window,
        dtype=query.dtype,
        config=config,
        use_vmap=False,
        device=query.device,
    )
