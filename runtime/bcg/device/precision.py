"""How exactly a device multiplies in float32."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Inside the block, float32 products have all their bits: no TF32, which convolutions use by default on a GPU.

    Raises:
        RuntimeError: The process mixes torch's old settings of this with the new ones, and torch can't read them.
    """
    precision = torch.get_float32_matmul_precision()
    with contextlib.ExitStack() as stack:
        if precision != "highest":
            stack.callback(torch.set_float32_matmul_precision, precision)
            torch.set_float32_matmul_precision("highest")
        stack.enter_context(torch.backends.cudnn.flags(enabled=True, allow_tf32=False))
        yield
