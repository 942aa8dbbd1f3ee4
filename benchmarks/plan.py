"""Dry runs: what they take, and how near they come.

    python -m benchmarks.plan [--measure [--json FILE]]

Plans qwen3-235b-a22b over nine buckets and says what that took. With a GPU and --measure, captures three smaller
shapes bucket by bucket and puts estimate and measurement side by side.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import sys
import time
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from bcg.buckets import DEFAULT_BUCKETS_GPU
from bcg.device import find_device
from bcg.environment import environment
from bcg.models import load_target
from bcg.models.shapes import load_shapes
from bcg.planning import plan
from bcg.report import PlanReport
from bcg.runner import GraphRunner
from bcg.sizes import MIB
from bcg.words import TargetWords

MEASURED = ("qwen3-0.6b", "qwen3-8b", "qwen3-30b-a3b")


def planned(model: str) -> PlanReport:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    return plan(load_shapes(TargetWords(model), mode), mode, DEFAULT_BUCKETS_GPU, {})


def show_cost(model: str) -> None:
    started = time.perf_counter()
    report = planned(model)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MIB
    print(
        f"{model}: {len(report.segments)} segments, {len(report.breaks)} breaks, {len(report.buckets)} buckets to "
        f"{report.map_tokens}: {seconds:.1f} s, {peak:.2f} GiB of host memory at most"
    )


def measure(model: str) -> list[dict[str, object]]:
    report, rows = planned(model), []
    target = load_target(model, device="cuda")
    print(f"\n{model}: pool, each bucket captured alone\ntokens  planned MiB  measured MiB  difference")
    for bucket in report.buckets:
        runner = GraphRunner(target)
        (captured,) = runner.capture([bucket.tokens])
        runner.reset()
        del runner
        gc.collect()
        torch.cuda.empty_cache()
        estimate, measured = bucket.pool_bytes / MIB, captured.pool_bytes / MIB
        print(f"{bucket.tokens:6}  {estimate:11.1f}  {measured:12.1f}  {estimate / measured - 1:+10.1%}", flush=True)
        rows.append({"model": model, "tokens": bucket.tokens, "planned_mib": estimate, "measured_mib": measured})
    del target
    gc.collect()
    torch.cuda.empty_cache()
    return rows


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--measure", action="store_true", help="capture on this machine's GPU, too")
    parser.add_argument("--json", type=Path, help="write what was measured")
    options = parser.parse_args(words)
    show_cost("qwen3-235b-a22b")
    rows = [row for model in MEASURED for row in measure(model)] if options.measure else []
    if options.json:
        found = environment(find_device().torch_device)
        facts = {name: str(getattr(found, name)) for name in ("device", "torch", "transformers")}
        options.json.write_text(json.dumps({"environment": facts, "rows": rows}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
