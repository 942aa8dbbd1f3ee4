"""What more buckets cost: capture grows linearly with segments × buckets, replay not at all.

    python benchmarks/curve.py --model qwen3-0.6b --json OUT.json

Captures the same model with ever more buckets, up to 200, and replays one bucket that all of them have.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from bcg import GraphRunner, Target, load_target
from bcg.device import find_device
from bcg.environment import environment
from bcg.modes.base import bucket_batch

COUNTS = (2, 10, 25, 50, 100, 200)
REPLAYED = 64


def ladder(count: int, largest: int) -> list[int]:
    """Return so many buckets up to the largest, `REPLAYED` among them."""
    steps = {round(largest * (number + 1) / count) for number in range(count - 1)} - {REPLAYED}
    return sorted([*sorted(steps, reverse=True)[: count - 1], REPLAYED])


def measure(target: Target, buckets: list[int], rounds: int) -> dict[str, float]:
    runner, device = GraphRunner(target), find_device(target.device)
    started = time.perf_counter()
    results = runner.capture(buckets)
    device.synchronize()
    whole_s = time.perf_counter() - started
    batch, replays = bucket_batch(target, REPLAYED), []
    for _ in range(rounds):
        device.synchronize()
        began = time.perf_counter()
        runner.replay(batch)
        device.synchronize()
        replays.append((time.perf_counter() - began) * 1e3)
    num_segments = sum(graph.num_segments for graph in runner.graphs.values())
    runner.reset()
    return {
        "num_buckets": len(buckets),
        "num_segments": num_segments,
        "whole_s": whole_s,
        "capture_s": sum(result.capture_ms for result in results) / 1e3,
        "pool_mib": sum(result.pool_bytes for result in results) / 2**20,
        "driver_mib": sum(result.driver_bytes for result in results) / 2**20,
        "replay_ms": statistics.median(replays[rounds // 10 :]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qwen3-0.6b")
    parser.add_argument("--largest", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    target = load_target(options.model, device="cuda" if torch.cuda.is_available() else "cpu")
    rows = []
    for count in COUNTS:
        rows.append(measure(target, ladder(count, options.largest), options.rounds))
        print(" ".join(f"{name} {value:.4g}" for name, value in rows[-1].items()))
    if options.json:
        facts = {name: str(getattr(environment(target.device), name)) for name in ("device", "torch", "driver")}
        options.json.write_text(
            json.dumps({"model": options.model, "environment": facts, "rows": rows}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
