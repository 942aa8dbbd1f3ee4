"""How long a mode takes from the loaded model until all 49 buckets can be replayed, with empty compiler caches.

    python benchmarks/startup.py --model qwen3-8b --mode fused --json OUT.json

Needs a GPU for `fused`. One mode a process: what the compiler has loaded once is not loaded again.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bcg.report import ModeName


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qwen3-8b")
    parser.add_argument("--mode", default="fused", choices=("breakable", "fused"))
    parser.add_argument("--largest", type=int, default=4096)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{folder}/inductor"  # read when torch is loaded
        os.environ["TRITON_CACHE_DIR"] = f"{folder}/triton"
        row = measure(options.model, options.mode, options.largest)
    print(" ".join(f"{name} {value}" for name, value in row.items()))
    if options.json:
        options.json.write_text(json.dumps(row, indent=2) + "\n")


def measure(model: str, mode_name: ModeName, largest: int) -> dict[str, object]:
    import torch

    from bcg import load_target
    from bcg.buckets import engine_ladder
    from bcg.device import find_device
    from bcg.environment import environment
    from bcg.modes import make_mode, prepare_process

    prepare_process(mode_name)
    target = load_target(model, device="cuda" if torch.cuda.is_available() else "cpu")
    mode, buckets = make_mode(mode_name, target), [tokens for tokens in engine_ladder() if tokens <= largest]
    device, facts = find_device(target.device), environment(target.device)
    device.synchronize()
    started = time.perf_counter()
    prepared = mode.prepare(buckets)
    device.synchronize()
    startup_s = time.perf_counter() - started
    counts = mode.counts()
    return {
        "model": model,
        "mode": mode_name,
        "device": facts.device,
        "torch": facts.torch,
        "num_buckets": len(buckets),
        "num_ready": sum(one.status == "measured" for one in prepared),
        "startup_s": round(startup_s, 2),
        "compile_s": round(sum(one.compile_s for one in prepared), 2),
        "warmup_s": round(sum(one.warmup_s for one in prepared), 2),
        "capture_s": round(sum(one.capture_s for one in prepared), 2),
        "num_compilations": counts.num_compilations,
        "memory_mib": sum(one.pool_bytes + one.driver_bytes for one in prepared) // 2**20,
    }


if __name__ == "__main__":
    main()
