"""What a report was made with: the device and the versions."""

from __future__ import annotations

import platform
from importlib import metadata

import torch

import bcg
from bcg.device import find_device
from bcg.device.cudnn_attention import frontend
from bcg.report import Environment

_KERNEL_PACKAGES = ("causal-conv1d", "flash-attn", "flash-linear-attention", "kernels", "mamba-ssm")
_CUDNN_PACKAGE = "nvidia-cudnn-frontend"
"""Told only where attention can be bound with it: a release may be installed that is not used."""


def environment(torch_device: torch.device) -> Environment:
    """Describe the device and the versions that a report was made with."""
    facts = find_device(torch_device).describe()
    names = (*_KERNEL_PACKAGES, _CUDNN_PACKAGE) if frontend() is not None else _KERNEL_PACKAGES
    return Environment(
        device=facts["device"] or "unknown",
        device_type=torch.device(torch_device).type,
        driver=facts["driver"],
        cuda=facts["cuda"],
        torch=torch.__version__,
        cuda_python=_version("cuda-python") or _version("cuda-bindings"),
        transformers=_version("transformers") or "not installed",
        kernel_packages={name: found for name in names if (found := _version(name))},
        bcg=bcg.__version__,
        python=platform.python_version(),
    )


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
