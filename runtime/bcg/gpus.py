"""GPUs by name: how much memory they have."""

from __future__ import annotations

from bcg.errors import UsageError
from bcg.sizes import parse_bytes

GPU_BYTES = {"h100-80gb": 80 * 10**9, "h200-141gb": 141 * 10**9, "b200-192gb": 192 * 10**9}
"""Memory that the names promise; what the driver and the CUDA context keep for themselves is not subtracted."""


def find_gpu(text: str) -> tuple[str, int]:
    """Return a GPU's name and memory, from its name or from a number of bytes.

    Raises:
        UsageError: It is neither.
    """
    name = text.strip().lower()
    if name in GPU_BYTES:
        return name, GPU_BYTES[name]
    try:
        return text.strip(), parse_bytes(text)
    except UsageError as error:
        raise UsageError(
            f"unknown GPU {text[:40]!r}", hint=f"known: {', '.join(GPU_BYTES)}; or bytes, such as 80GB"
        ) from error
