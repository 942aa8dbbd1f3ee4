"""Whether what was loaded is what a checkpoint holds: transformers only logs where it is not."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import nn
from transformers import PretrainedConfig

from bcg.errors import ModelError
from bcg.report import ReportWarning

_OTHER_WEIGHTS = ("*model*.bin", "*.pt", "*.pth", "*.gguf", "tf_model*.h5", "flax_model*.msgpack")
_PARTS_OF_DOWNLOADS = ("*.safetensors.index.json", "*.incomplete", "*.part")
_LFS_POINTER = b"version https://git-lfs"


def refuse_incomplete(name: str, directory: Path) -> None:
    """Refuse a directory that names weights but has none of them.

    Raises:
        ModelError: A download has not ended, or was not of weights.
    """
    found = sorted(path.name for pattern in _PARTS_OF_DOWNLOADS for path in directory.glob(pattern))
    if found:
        raise ModelError(
            f"{name} is a part of a checkpoint: it has {found[0]}, and no *.safetensors", hint="download it again"
        )


def unreadable_file(directory: Path) -> str | None:
    """Say which file of weights can't be read, and what to do; None where all can."""
    for path in sorted(directory.glob("*.safetensors")):
        try:
            with safe_open(path, "pt"):
                continue
        except Exception:  # noqa: BLE001 - whatever it says of the header, this is the file
            with path.open("rb") as file:
                is_pointer = file.read(len(_LFS_POINTER)) == _LFS_POINTER
            return f"{path.name} can't be read: " + ("run git lfs pull" if is_pointer else "download it again")
    return None


def refuse_mismatched(name: str, mismatched: Collection[Any]) -> None:
    """Refuse weights of other sizes than the configuration says.

    Args:
        name: Of the model.
        mismatched: Triples of a name, the size in the file, and the size of the model's.

    Raises:
        ModelError: There is one.
    """
    if not mismatched:
        return
    path, in_file, in_model = min(mismatched, key=lambda one: str(one[0]))
    raise ModelError(
        f"{len(mismatched)} weights of {name} have other sizes than its config.json says, first {path}: "
        f"{list(in_file)} in the file, {list(in_model)} in the model",
        hint="load a checkpoint whose config.json and files are of one model",
    )


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
    name: str, module: nn.Module, config: PretrainedConfig, missing: Collection[str], unexpected: Collection[str]
) -> list[ReportWarning]:
    """Warn of weights that no file of the checkpoint holds, or that nobody reads, and of what was left out beside them.

    That is code of the checkpoint's own, and a quantization.

    Args:
        name: Of the model.
        module: As it was loaded.
        config: Of the checkpoint, before anything was loaded.
        missing: Names of weights that were not found.
        unexpected: Names of weights in the files that the model has no place for.
    """
    warnings = code_warnings(name, config)
    if unread := [path for path in unexpected if _is_inside(module, path)]:
        warnings.append(
            ReportWarning(
                code="weights-unused",
                message=f"{len(unread)} weights in the files of {name} are of no use to the model that its config.json "
                f"describes, first {min(unread)}",
                cause="the files are those of another model, or the configuration lacks a setting",
                remedy="load a checkpoint whose config.json and files are of one model",
            )
        )
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
        warnings.append(
            ReportWarning(
                code="not-quantized",
                message=f"{name} is quantized ({method}), but was loaded as {_dtype(module)}",
                cause=f"transformers does without {method} where it does not know it, or misses the GPU or the package "
                "that it needs",
                remedy="run it where these are: memory, times and results are not those of the quantized model",
            )
        )
    return warnings


def code_warnings(name: str, config: PretrainedConfig) -> list[ReportWarning]:
    """Warn of a checkpoint that brings a model's code of its own, where transformers has one of the same type."""
    own = [value for key, value in (getattr(config, "auto_map", None) or {}).items() if key.startswith("AutoModel")]
    if not own:
        return []
    return [
        ReportWarning(
            code="own-code-not-run",
            message=f"{name} brings code of its own ({own[0]}), and transformers' {config.model_type} is run instead",
            cause="bcg runs no code out of a checkpoint",
            remedy="if they differ, load it in a factory of your own (file.py:factory)",
        )
    ]


def planned_warnings(name: str, module: nn.Module, config: PretrainedConfig) -> list[ReportWarning]:
    """Warn of what a plan from shapes leaves out: code of the checkpoint's own, and a quantization."""
    warnings, method = code_warnings(name, config), _quantization(config)
    if method is not None:
        warnings.append(
            ReportWarning(
                code="not-quantized",
                message=f"{name} is quantized ({method}), but was planned as {_dtype(module)}",
                cause="a plan is made of shapes alone",
                remedy="its weights take less memory than the estimate says",
            )
        )
    return warnings


def _dtype(module: nn.Module) -> str:
    return str(next((parameter.dtype for parameter in module.parameters()), None)).removeprefix("torch.")


def _is_inside(module: nn.Module, path: str) -> bool:
    """Tell whether a weight would be a part of the module; heads stand beside it, some tables are made anew."""
    parts, children = path.split("."), dict(module.named_children())
    return any(part in children for part in parts[:2]) and not {"inv_freq", "pooler", "position_ids"} & set(parts)


def _quantization(config: PretrainedConfig) -> str | None:
    settings: Any = getattr(config, "quantization_config", None)
    if settings is None:
        return None
    method = settings.get("quant_method") if isinstance(settings, dict) else getattr(settings, "quant_method", None)
    return str(getattr(method, "value", method))
