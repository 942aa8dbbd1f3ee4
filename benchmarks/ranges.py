"""What NVTX ranges cost a replay when no tool is attached.

    python benchmarks/ranges.py --model qwen3-0.6b --tokens 16

Rounds alternate between the plain replay, which `bcg profile` takes when no tool is attached, and the one in which
every segment and break stands inside its prebuilt range.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from bcg import GraphRunner, load_target
from bcg.device import find_device
from bcg.modes.base import bucket_batch
from bcg.profile.steps import named_for_nvtx, replay_within
from bcg.ranges import Ranges


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qwen3-0.6b")
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=200)
    options = parser.parse_args()
    target = load_target(options.model, device="cuda" if torch.cuda.is_available() else "cpu")
    runner, device, ranges = GraphRunner(target), find_device(target.device), Ranges()
    runner.capture([options.tokens])
    batch = bucket_batch(target, options.tokens)
    within = replay_within(named_for_nvtx(runner.graphs[options.tokens], ranges))
    ways: dict[str, Callable[[], object]] = {
        "plain": lambda: runner.replay(batch),
        "in ranges": lambda: runner.replay(batch, through=within),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, replay in ways.items():
            device.synchronize()
            began = time.perf_counter()
            replay()
            device.synchronize()
            times[name].append((time.perf_counter() - began) * 1e3)
    medians = {name: statistics.median(values[10:]) for name, values in times.items()}
    print(f"a tool is attached: {ranges.active}")
    for name, median in medians.items():
        print(f"{name}: {median:.4f} ms, {median / medians['plain'] - 1:+.2%}")


if __name__ == "__main__":
    main()
