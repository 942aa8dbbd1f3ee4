"""Captures a tiny model of every decoder-only architecture of transformers, and checks every replay.

    python -m benchmarks.sweep [--only NAME,…] [--attention-break] [--device cuda] [--jobs N] [--json FILE]

Each row ends as *captured* (whole, and replays match), *broken* (automatic breaks or pins, and replays match),
*refused* (with a diagnosis card), or *wrong* (replays differ from eager, or eager from the model as transformers
calls it: there must be none). Architectures that can't be made tiny generically, or that fail in eager, are listed
and not counted.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import functools
import json
import multiprocessing
import os
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
from torch import nn
from transformers import AutoModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from bcg.checking import verify
from bcg.diagnose import UncapturableError, break_where_needed
from bcg.errors import BcgError
from bcg.models.build import Made, build_target, quiet
from bcg.models.huggingface import random_model
from bcg.nearness import is_near_in_mean
from bcg.runner import GraphRunner
from bcg.structure import tensors_in
from bcg.target import Target, make_batch, plain_output
from bcg.words import TargetWords
from benchmarks.tiny import tiny_config

BUCKETS = (4, 24)
PLAIN_TOKENS = 40
"""More than the tiny windows and numbers of chosen keys, which shorter requests would not show."""
SECONDS_EACH = 120
MAX_PARAMETERS = 30_000_000
QUICK = ("qwen3", "gemma2", "mixtral", "qwen2_moe", "deepseek_v3", "mamba", "jamba", "gpt2", "opt", "llama4_text")
"""A small subset of different kinds, for the tests."""


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
    threads = max(1, (os.cpu_count() or 1) // jobs)  # more of them wait for each other: kimi_linear took 120 s, not 17
    with ProcessPoolExecutor(
        jobs, mp_context=fresh, initializer=torch.set_num_threads, initargs=(threads,)
    ) as processes:
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
        words = TargetWords(name, str(device), attention_break=attention_break)
        module = random_model(words, config, torch.float32)
        target = build_target(Made(module, "factory", "random", seed=0), words)
    except TimeoutError:
        raise
    except Exception as error:  # noqa: BLE001 - a row of the table
        return Row(name, "not built", detail=_first(error))
    differs = _differs_from_plain(target, random_model(words, tiny_config(name), torch.float32).eval())
    if differs is not None:
        return Row(name, "wrong", detail=differs)
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
            detail = f"{bucket.failed[0].num_tokens} tokens off by {bucket.comparison.max_rel_error:.1e}"
            return dataclasses.replace(row, status="wrong", detail=detail)
        if not bucket.num_launches:
            return dataclasses.replace(row, status="wrong", detail="nothing was launched")
    return row


def _differs_from_plain(target: Target, plain: nn.Module) -> str | None:
    """Say how far the target's eager forward is from the same model's own, of token ids alone; None where it is not."""
    tokens = min(PLAIN_TOKENS, target.max_tokens or PLAIN_TOKENS)
    batch = make_batch(target, (tokens,), torch.Generator(target.device).manual_seed(1))
    with quiet(), torch.inference_mode():
        expected = plain_output(plain(input_ids=batch.inputs["input_ids"], **target.forward_options), target.name)
        got = GraphRunner(target).eager(batch)
    for one, other in zip(tensors_in(expected), tensors_in(got), strict=True):
        if not is_near_in_mean(one, other, {True: 2e-6, False: 2e-6}):
            return f"eager is off the plain forward by up to {(one - other).abs().max().item():.1e}"
    return None


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
