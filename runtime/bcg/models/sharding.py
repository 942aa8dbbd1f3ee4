"""Tensor and expert parallelism by transformers' own plans: which rule goes where, and who applies it.

The plan of an architecture names styles for its modules and parameters; transformers turns them into sharded
parameters (`DTensor`) and forwards that communicate. Nothing here splits a matrix itself.
"""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from transformers import PretrainedConfig
from transformers.distributed import tensor_parallel

from bcg.alignment import Alignment
from bcg.errors import ModelError, UsageError, first_line
from bcg.report import ReportWarning
from bcg.structure import local_part

_KEY_PROJECTIONS = ("k_proj", "kv_b_proj", "qkv_proj", "query_key_value")


@dataclass(frozen=True)
class Sharding:
    """How a model is split over ranks.

    Attributes:
        size: Number of ranks; 1 applies the plan to a group of one.
        expert_parallel: Whether each rank has some experts whole, instead of a slice of every expert.
        ranks: The ranks themselves; None in a dry run.
    """

    size: int
    expert_parallel: bool = False
    ranks: Alignment | None = None


@dataclass(frozen=True)
class Plan:
    """The rules that are applied, by module or parameter with ``*`` for layer numbers.

    Attributes:
        tensor: Styles of tensor parallelism.
        expert: Styles of expert parallelism; they take precedence.
    """

    tensor: dict[str, str]
    expert: dict[str, str]


def plan_of(name: str, module: nn.Module, sharding: Sharding) -> Plan:
    """Return the rules for a model.

    Raises:
        ModelError: If transformers has no plan for this architecture.
    """
    tensor = dict(getattr(module, "_tp_plan", None) or {})
    expert = dict(getattr(module, "_ep_plan", None) or {}) if sharding.expert_parallel else {}
    if sharding.expert_parallel and not _matches_any(module, expert):
        raise ModelError(f"transformers has no expert-parallel plan for {type(module).__name__} of {name}")
    tensor = {
        rule: style
        for rule, style in tensor.items()
        if not any(rule == other or rule.startswith(f"{other}.") for other in expert)
    }
    if not _heads_divide(module.config, sharding.size):
        attentions = _attentions(tensor)
        tensor = {rule: style for rule, style in tensor.items() if rule.rpartition(".")[0] not in attentions}
    if not _matches_any(module, {**tensor, **expert}):
        raise ModelError(
            f"transformers has no tensor-parallel plan for {type(module).__name__} of {name}",
            hint="run it without --tp, or on another version of transformers",
        )
    return Plan(tensor, expert)


def sharding_warnings(name: str, config: PretrainedConfig, sharding: Sharding) -> list[ReportWarning]:
    """Say what the user may not expect of how a model with random weights is sharded."""
    plan = getattr(config.get_text_config(), "base_model_tp_plan", None) or {}
    if not _attentions(plan) or _heads_divide(config, sharding.size):
        return []
    return [
        ReportWarning(
            code="attention-not-sharded",
            message=f"every rank holds and computes the whole attention of {name}",
            cause=f"its heads can't be split evenly over {sharding.size} ranks",
            remedy="choose a --tp that divides the number of key-value heads",
        )
    ]


def whole_weights_warnings(name: str, module: nn.Module, sharding: Sharding, *, by_user: bool) -> list[ReportWarning]:
    """Warn of a model of which less than half of the weights are sharded.

    Args:
        name: Of the model.
        module: After its plan was applied.
        sharding: What it was applied for.
        by_user: Whether a factory made the module, which then shards itself.
    """
    whole: Counter[str] = Counter()
    num_bytes = num_sharded = 0
    for path, parameter in module.named_parameters():
        size = parameter.numel() * parameter.element_size()
        num_bytes += size
        if local_part(parameter).numel() < parameter.numel():
            num_sharded += size
        else:
            whole[_generic(path.rpartition(".")[0])] += size
    if sharding.size == 1 or 2 * num_sharded >= num_bytes:
        return []
    share = 100 * num_sharded / num_bytes
    largest = ", ".join(path for path, _ in whole.most_common(3))
    cause = f"no rule of transformers' plan is applied to the largest of the others: {largest}"
    remedy = "count on each rank for the memory and the time of the whole ones, or run it without --tp"
    if by_user:
        cause = "bcg calls a factory on every rank and shards nothing of what it returns"
        remedy = (
            "shard it in the factory, or run it without --tp; plain tensors that it makes of slices are not counted"
        )
    return [
        ReportWarning(
            code="weights-not-sharded",
            message=f"only {share:.0f} % of the weights of {name} are sharded over {sharding.size} ranks",
            cause=cause,
            remedy=remedy,
        )
    ]


def _attentions(plan: Mapping[str, str]) -> set[str]:
    """Return the paths of the modules that split keys by heads."""
    return {rule.rpartition(".")[0] for rule in plan if rule.rpartition(".")[2] in _KEY_PROJECTIONS}


def _matches_any(module: nn.Module, rules: dict[str, str]) -> bool:
    return not {_generic(path) for path, _ in module.named_modules()}.isdisjoint(rules)


def _generic(path: str) -> str:
    return re.sub(r"\.\d+(?=\.|$)", ".*", path)


def _heads_divide(config: PretrainedConfig, size: int) -> bool:
    text = config.get_text_config()
    heads = (getattr(text, name, None) for name in ("num_attention_heads", "num_key_value_heads"))
    return all(number % size == 0 for number in heads if isinstance(number, int))


def apply_plan(name: str, module: nn.Module, plan: Plan, sharding: Sharding, device_type: str) -> None:
    """Shard a model that is on the meta device, in place: afterwards its parameters are placeholders of shards.

    Raises:
        ModelError: If transformers refuses.
    """
    mesh = init_device_mesh(device_type, (sharding.size,), mesh_dim_names=("tp",))
    try:
        if "tp_plan" in inspect.signature(tensor_parallel.apply_tensor_parallelism).parameters:
            _apply_separately(module, plan, mesh)
        else:
            # transformers 5.17 and 5.18 have one plan for both, and take it from the model.
            model: Any = module
            model._tp_plan = {**plan.tensor, **plan.expert}
            tensor_parallel.apply_tensor_parallelism(model, mesh)
    except ValueError as error:
        raise ModelError(f"{name} can't be sharded over {sharding.size} ranks: {first_line(error)}") from error


def _apply_separately(module: Any, plan: Plan, mesh: DeviceMesh) -> None:
    expand = getattr(module, "_expand_parallel_plan", dict)
    tensor_parallel.apply_tensor_parallelism(module, mesh, expand(plan.tensor))
    if plan.expert:
        apply_expert_parallelism = _expert_parallelism()
        apply_expert_parallelism(module, mesh, mesh, expand(plan.expert))


def _expert_parallelism() -> Any:
    try:
        from transformers.distributed import expert_parallel
    except ImportError:  # before transformers 5.22
        return tensor_parallel.apply_expert_parallelism
    return expert_parallel.apply_expert_parallelism


def pretrained_options(sharding: Sharding | None) -> dict[str, Any]:
    """Return the arguments with which ``from_pretrained`` reads only this rank's shards.

    Raises:
        UsageError: For expert parallelism, which differs too much between versions of transformers there.
    """
    if sharding is None or sharding.size == 1:
        return {}
    if sharding.expert_parallel:
        raise UsageError("--ep shards presets and directories without weights", hint="use --tp alone")
    from transformers.distributed.configuration_utils import DistributedConfig

    return {"distributed_config": DistributedConfig(tp_size=sharding.size)}


def like_shard(placeholder: DTensor, local: Tensor) -> DTensor:
    """Return a sharded tensor that is laid out as `placeholder`, of which this rank has `local`."""
    return DTensor.from_local(
        local,
        placeholder.device_mesh,
        placeholder.placements,
        run_check=False,
        shape=placeholder.shape,
        stride=placeholder.stride(),
    )
