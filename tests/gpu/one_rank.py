"""Captures a model as the one rank of a run that torch's launcher started, and saves what its replays give.

torchrun --nproc-per-node 1 one_rank.py MODEL DEVICE FILE [ep]
"""

from __future__ import annotations

import sys

import torch

from bcg import GraphRunner, Target, load_target, make_batch
from bcg.distributed.member import this_member
from bcg.distributed.watch import Watch
from bcg.distributed.world import World

BUCKETS = (16, 64, 256)
LENGTHS = ((256,), (255,), (60,), (16,), (5,))


def replays(target: Target) -> list[torch.Tensor]:
    """Capture all buckets and replay a few batches."""
    runner = GraphRunner(target)
    results = runner.capture(BUCKETS)
    assert [result.status for result in results] == ["captured"] * len(BUCKETS)
    generator = torch.Generator(target.device).manual_seed(7)
    outputs = [runner.replay(make_batch(target, lengths, generator)).to("cpu", copy=True) for lengths in LENGTHS]
    assert runner.num_replays == len(LENGTHS)
    runner.reset()
    return outputs


def main(model: str, device: str, path: str, *options: str) -> None:
    """Run as the rank that the environment describes."""
    member = this_member()
    assert member is not None
    world = World.join(member, torch.device(device), 120.0)
    watch = Watch(world, lambda failure: sys.exit(failure.message))
    watch.start()
    target = load_target(model, device=world.device, ranks=world, expert_parallel="ep" in options)
    sharded = [parameter for parameter in target.module.parameters() if hasattr(parameter, "placements")]
    assert sharded, "the plan was applied"
    torch.save(replays(target), path)
    del target, sharded
    world.close()
    watch.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
