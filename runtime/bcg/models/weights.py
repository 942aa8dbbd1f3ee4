"""Seeded random weights, module by module, whole or sharded.

Each module is initialized by its own architecture's rule, from a seed made of the run's seed and the module's
path. So its values depend on nothing else: not on how the model is sharded, nor on the order of modules. A rank of
a sharded model makes one module's parameters whole, keeps its shards, and drops the rest before the next one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bcg.models.build import seeded
from bcg.models.sharding import like_shard


def make_weights(model: PreTrainedModel, device: torch.device, seed: int) -> None:
    """Give a model on the meta device its weights and buffers, in place.

    The architecture's own initialization runs, on the device, so special parameters (Mamba's decays, routing
    biases, rotary frequencies) are sane. The global random state is left as it was.

    Args:
        model: Plain, or sharded by `bcg.models.sharding`.
        device: Where the weights are made.
        seed: Of the run.
    """
    with torch.no_grad(), torch.device(device), seeded(seed, device):
        for path, module, initialize in _modules(model, "", model):
            placeholders = dict(module._parameters)
            module._parameters.update({name: _whole(value, device) for name, value in placeholders.items()})
            module._buffers.update(
                {name: None if value is None else _filled(value, device) for name, value in module._buffers.items()}
            )
            torch.manual_seed(_module_seed(seed, path))
            initialize(module)
            for name, placeholder in placeholders.items():
                module._parameters[name] = _shard_like(placeholder, module._parameters[name])
    model.tie_weights()


def _modules(
    module: nn.Module, path: str, owner: PreTrainedModel
) -> Iterator[tuple[str, nn.Module, Callable[[nn.Module], Any]]]:
    """Yield each module after its children, as transformers initializes them, with its model's own function."""
    if isinstance(module, PreTrainedModel):
        owner = module
    for name, child in module.named_children():
        yield from _modules(child, f"{path}.{name}" if path else name, owner)
    yield path, module, owner._initialize_weights


def _module_seed(seed: int, path: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{path}".encode()).digest()[:8], "big") >> 1


def _whole(placeholder: nn.Parameter | None, device: torch.device) -> nn.Parameter | None:
    if placeholder is None:
        return None
    return nn.Parameter(_filled(placeholder, device), requires_grad=False)


def _filled(placeholder: Tensor, device: torch.device) -> Tensor:
    if not placeholder.is_meta:
        return placeholder
    return torch.zeros(placeholder.shape, dtype=placeholder.dtype, device=device)


def _shard_like(placeholder: Any, whole: nn.Parameter | None) -> nn.Parameter | None:
    from torch.distributed.tensor import DTensor, distribute_tensor

    if whole is None or not isinstance(placeholder, DTensor):
        return whole
    sharded = distribute_tensor(whole.data, placeholder.device_mesh, placeholder.placements, src_data_rank=None)
    local = sharded.to_local().clone(memory_format=torch.contiguous_format)
    return nn.Parameter(like_shard(placeholder, local), requires_grad=False)
