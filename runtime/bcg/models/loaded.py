"""Whether what was loaded is what a checkpoint holds: transformers only logs where it is not."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PretrainedConfig

from bcg.report import ReportWarning

_OTHER_WEIGHTS = ("pytorch_model*.bin", "consolidated*.pth", "*.gguf", "tf_model*.h5", "flax_model*.msgpack")


def unread_warnings(name: str, directory: Path) -> list[ReportWarning]:
    """Warn of a directory whose weights are in files of another kind, and so were made at random."""
    unread = sorted(path.name for pattern in _OTHER_WEIGHTS for path in directory.glob(pattern))
    if not unread:
        return []
    return [
        ReportWarning(
            code="weights-not-read",
            message=f"the weights of {name} are random: {unread[0]} is not read",
            cause="weights are read from *.safetensors alone: other files may run code, or are not transformers'",
            remedy="save the model again, as safetensors, with save_pretrained",
        )
    ]


def loading_warnings(
    name: str, module: nn.Module, config: PretrainedConfig, missing: Collection[str]
) -> list[ReportWarning]:
    """Warn of weights that no file of the checkpoint holds, and of a quantized model that was loaded as a plain one.

    Args:
        name: Of the model.
        module: As it was loaded.
        config: Of the checkpoint, before anything was loaded.
        missing: Names of weights that were not found.
    """
    warnings = []
    missing = [path for path in missing if "pooler" not in path.split(".")]  # nothing of a last hidden state
    if missing:
        warnings.append(
            ReportWarning(
                code="weights-missing",
                message=f"{len(missing)} of {len(module.state_dict())} weights of {name} are in none of its files, "
                f"first {min(missing)}",
                cause="the files are those of another model, or a part of this one; transformers makes the rest at "
                "random, in every process anew",
                remedy="load a checkpoint whose config.json and files are of one model",
            )
        )
    method = _quantization(config)
    if method is not None and not getattr(module, "is_quantized", False):
        dtype = next((parameter.dtype for parameter in module.parameters()), None)
        warnings.append(
            ReportWarning(
                code="not-quantized",
                message=f"{name} is quantized ({method}), but was loaded as {str(dtype).removeprefix('torch.')}",
                cause=f"transformers does without {method} where it does not know it, or misses the GPU or the package "
                "that it needs",
                remedy="run it where these are: memory, times and results are not those of the quantized model",
            )
        )
    return warnings


def _quantization(config: PretrainedConfig) -> str | None:
    settings: Any = getattr(config, "quantization_config", None)
    if settings is None:
        return None
    method = settings.get("quant_method") if isinstance(settings, dict) else getattr(settings, "quant_method", None)
    return str(getattr(method, "value", method))
