"""Captures a tiny model of every decoder-only architecture of transformers, and checks every replay.

    python -m benchmarks.sweep [--only NAME,…] [--attention-break] [--device cuda] [--jobs N] [--json FILE]

Each row ends as *captured* (whole, and replays match), *broken* (automatic breaks or pins, and replays match),
*refused* (with a diagnosis card), or *wrong* (replays differ from eager: there must be none). Architectures that
can't be made tiny generically, or that fail in eager, are listed and not counted.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import functools
import json
import multiprocessing
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from bcg.checking import verify
from bcg.diagnose import UncapturableError, break_where_needed
from bcg.errors import BcgError
from bcg.models.build import build_target, quiet
from bcg.models.huggingface import random_model
from bcg.runner import GraphRunner

BUCKETS = (4, 24)
SECONDS_EACH = 120
MAX_PARAMETERS = 30_000_000
QUICK = ("qwen3", "gemma2", "mixtral", "qwen2_moe", "deepseek_v3", "mamba", "jamba", "gpt2", "opt", "llama4_text")
"""A small subset of different kinds, for the tests."""

_SIZES: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "d_model": 64,
    "n_embd": 64,
    "n_embed": 64,
    "embed_dim": 64,
    "intermediate_size": 96,
    "ffn_dim": 96,
    "d_ff": 96,
    "n_inner": 96,
    "ffn_hidden_size": 96,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "num_hidden_layers": 3,
    "n_layer": 3,
    "n_layers": 3,
    "num_layers": 3,
    "decoder_layers": 3,
    "num_attention_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "decoder_attention_heads": 4,
    "attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rotary_dim": 16,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_k": 2,
    "moe_topk": 2,
    "n_group": 2,
    "topk_group": 1,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "max_position_embeddings": 512,
    "n_positions": 512,
    "sliding_window": 8,
    "attention_chunk_size": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "mamba_d_state": 8,
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_num_heads": 8,
    "mamba_head_dim": 16,
    "mamba_chunk_size": 16,
    "ssm_state_size": 8,
    "state_size": 8,
    "chunk_size": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@dataclasses.dataclass
class Row:
    """What became of one architecture."""

    name: str
    status: str
    num_breaks: int = 0
    breaks: list[str] = dataclasses.field(default_factory=list)
    detail: str = ""
    seconds: float = 0.0


EXPERTS = ("qwen3_moe", "mixtral", "deepseek_v3")
EXPERTS_IMPLEMENTATIONS = ("eager", "batched_mm", "grouped_mm")


def architectures() -> list[str]:
    """Names of the text models that transformers has a causal head for, in its order.

    Some come again with each implementation of experts, as in ``mixtral+eager``.
    """
    experts = [f"{name}+{implementation}" for name in EXPERTS for implementation in EXPERTS_IMPLEMENTATIONS]
    return [*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *experts]


def tiny_config(name: str) -> Any:
    """Make an architecture's configuration with every known size shrunk.

    Raises:
        Exception: Whatever the configuration class thinks of the sizes.
    """
    name, _, experts = name.partition("+")
    config_class = transformers.CONFIG_MAPPING[name]
    default = config_class()
    text = default.get_text_config() if hasattr(default, "get_text_config") else default
    if type(text) is not config_class:
        config_class, default = type(text), text
    known = default.to_dict()
    sizes = {
        key: value
        for key, value in _SIZES.items()
        if (key in known or key in config_class.attribute_map) and not isinstance(known.get(key), (list, dict))
    }
    for key in ("sliding_window", "q_lora_rank"):
        if key in sizes and known.get(key) is None:
            del sizes[key]
    if "kv_lora_rank" in known:  # latent attention expands to as many key heads as queries
        sizes["num_key_value_heads"] = sizes["num_attention_heads"]
        sizes.pop("head_dim", None)
    if "expand" in known and "num_heads" in known:
        sizes |= {"num_heads": 8, "n_groups": 2}
    if "mamba_expand" in known and "mamba_d_ssm" in known:
        sizes |= {"mamba_d_ssm": 128, "mamba_n_groups": 1}
    per_layer = known.get("num_hidden_layers") or known.get("n_layer") or known.get("num_layers")
    for key, value in known.items():
        if isinstance(value, list) and per_layer and len(value) == per_layer and key not in sizes:
            kinds = list(dict.fromkeys(map(str, value)))
            picked = [next(item for item in value if str(item) == kind) for kind in kinds]
            sizes[key] = (picked * 3)[:3]
    config = config_class(**sizes)
    if experts:
        config._experts_implementation = experts
    return config


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Interrupt the block after that time."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def sweep_one(name: str, device: torch.device, *, attention_break: bool) -> Row:
    """Build, capture and check one architecture."""
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    started = time.perf_counter()
    try:
        with limited(SECONDS_EACH):
            row = _sweep(name, device, attention_break=attention_break)
    except Exception as error:  # noqa: BLE001 - a row of the table
        row = Row(name, "error", detail=_first(error))
    packages = f"{Path(transformers.__file__).parents[1]}/"
    return dataclasses.replace(
        row, detail=row.detail.replace(packages, ""), seconds=round(time.perf_counter() - started, 1)
    )


def sweep_all(names: Sequence[str], device: torch.device, *, attention_break: bool, jobs: int) -> Iterator[Row]:
    """Sweep in this process, or in several of its own: then each row comes when it is done."""
    one = functools.partial(sweep_one, device=device, attention_break=attention_break)
    if jobs == 1:
        yield from map(one, names)
        return
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=fresh) as processes:
        for done in as_completed([processes.submit(one, name) for name in names]):
            yield done.result()


def _sweep(name: str, device: torch.device, *, attention_break: bool) -> Row:
    try:
        with quiet():
            config = tiny_config(name)
            with torch.device("meta"):
                shape = AutoModel.from_config(config)
        if sum(parameter.numel() for parameter in shape.parameters()) > MAX_PARAMETERS:
            return Row(name, "not tiny", detail=f"more than {MAX_PARAMETERS:,} parameters")
        module = random_model(name, config, device, torch.float32, 0)
        target = build_target(
            name,
            module,
            source="factory",
            weights="random",
            seed=0,
            device=device,
            attention_break=attention_break,
            break_globs=(),
        )
    except TimeoutError:
        raise
    except Exception as error:  # noqa: BLE001 - a row of the table
        return Row(name, "not built", detail=_first(error))
    try:
        with quiet():
            found = break_where_needed(target, BUCKETS)
            runner = GraphRunner(target)
            runner.capture(BUCKETS)
    except UncapturableError as error:
        return Row(name, "refused", detail=error.message if error.cards else f"without a card: {error.message}")
    except BcgError as error:
        return Row(name, "refused", detail=f"without a card: {error.message}")
    with quiet():
        checked = verify(runner, num_rounds=1)
    breaks = [f"{item.size} {item.module or item.name}" for item in found.automatic_breaks]
    row = Row(name, "broken" if breaks else "captured", runner.graphs[max(BUCKETS)].num_breaks, breaks)
    for bucket in checked.buckets:
        if bucket.errors:
            return dataclasses.replace(row, status="wrong", detail=bucket.errors[0])
        if bucket.failed:
            error = f"{bucket.failed[0].num_tokens} tokens off by {bucket.comparison.max_rel_error:.1e}"
            return dataclasses.replace(row, status="wrong", detail=error)
        if not bucket.num_launches:
            return dataclasses.replace(row, status="wrong", detail="nothing was launched")
    return row


def _first(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"[:160]


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", help="names, separated by commas; `quick` for a small subset")
    parser.add_argument("--attention-break", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the device")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(words)
    names = QUICK if options.only == "quick" else options.only.split(",") if options.only else architectures()
    device = torch.device(options.device, 0) if options.device == "cuda" else torch.device(options.device)
    rows: list[Row] = []
    for row in sweep_all(names, device, attention_break=options.attention_break, jobs=options.jobs):
        rows.append(row)
        print(f"{row.name:28} {row.status:10} {row.num_breaks:3} {row.seconds:5.1f} s  ", end="")
        print("; ".join(row.breaks)[:100], row.detail[:200], flush=True)
    rows.sort(key=lambda row: names.index(row.name))
    counts = collections.Counter(row.status for row in rows)
    print("\n" + ", ".join(f"{count} {status}" for status, count in counts.most_common()))
    if options.json:
        content = {"torch": torch.__version__, "transformers": transformers.__version__, "device": options.device}
        options.json.write_text(json.dumps(content | {"rows": [dataclasses.asdict(row) for row in rows]}, indent=1))
    return 1 if counts["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
