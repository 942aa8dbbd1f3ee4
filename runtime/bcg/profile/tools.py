"""Command lines of NVIDIA's profiling tools for a profile of one mode."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from bcg.report import ModeName


def nsys_command(words: Sequence[str], mode: ModeName) -> str:
    """Return the command that records the measured region with Nsight Systems.

    Args:
        words: The words of ``bcg profile`` without modes, rounds and tools.
        mode: One mode: the recording ends with the first measured region.
    """
    return _join(
        *("nsys", "profile", "--trace=cuda,nvtx,osrt", "--cuda-graph-trace=node", "--trace-fork-before-exec=true"),
        *("--capture-range=nvtx", "--nvtx-capture=profile@bcg", "--capture-range-end=stop"),
        *("--output", f"bcg-{mode}"),
        *_profile(words, mode),
    )


def ncu_command(words: Sequence[str], mode: ModeName) -> str:
    """Return the command that lists the first segment's kernels with Nsight Compute, at the clocks that the GPU has.

    Args:
        words: The words of ``bcg profile`` without modes, rounds and tools.
        mode: A mode with segments.
    """
    return _join(
        *("ncu", "--target-processes", "all", "--graph-profiling", "node", "--clock-control", "none", "--nvtx"),
        *("--nvtx-include", "bcg@segment 0/", "--set", "none", "--metrics", "gpu__time_duration.sum"),
        *_profile(words, mode),
    )


def _profile(words: Sequence[str], mode: ModeName) -> tuple[str, ...]:
    return ("bcg", "profile", *words, "--modes", mode, "--rounds", "1")


def _join(*words: str) -> str:
    return shlex.join(words)
