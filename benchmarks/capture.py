"""Capture and replay against `breakable-cuda-graphs` 0.1.0, side by side in one process on one GPU.

Both tools capture the same weights with the same attention (transformers' sdpa function as the break; with the extra
`cudnn` the kernel that it calls, which bcg launches in place), the same static inputs and the same 49 buckets, largest
first, into one pool; each bucket is warmed up before it is captured (by bcg, after the first, with one layer of each
kind). Rounds alternate between the tools; the figures are medians over rounds. The rival's break writes into a buffer
that the segment allocates, as its documentation asks.

``capture_s`` is the captures alone, of both tools from an idle device until it is idle again; ``whole_s`` has the
warm-ups too; ``ready_s`` ends when every bucket was replayed once, since a graph is only brought to the GPU by its
first launch, which bcg does while it captures.

    python benchmarks/capture.py --models qwen3-0.6b qwen3-8b --json OUT.json

Needs a GPU and `pip install breakable-cuda-graphs==0.1.0`.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from breakable_cuda_graphs import BreakableCUDAGraph as RivalGraph
from breakable_cuda_graphs import breakable_graph, no_graph
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from bcg import GraphRunner, Target, load_target, make_batch
from bcg.buckets import engine_ladder
from bcg.context import ForwardContext, forward_context
from bcg.environment import environment
from bcg.ranges import Category, Range, Ranges, show
from bcg.static_inputs import StaticInputs
from bcg.structure import unowned_alias

REPLAYED = (16, 64, 256, 1024, 4096)


@no_graph
def _attend_into(output: torch.Tensor, module: Any, query: Any, key: Any, value: Any, options: dict[str, Any]) -> None:
    output.copy_(sdpa_attention_forward(module, query, key, value, None, **options)[0])


def _rival_attention(module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> Any:
    output = query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[3])
    _attend_into(output, module, query, key, value, options)
    return output, None


class Rival:
    """Captures a target with breakable-cuda-graphs, as its documentation shows."""

    def __init__(self, target: Target, num_warmups: int) -> None:
        self.target = target
        self.graphs: dict[int, Any] = {}
        self.outputs: dict[int, torch.Tensor] = {}
        self._num_warmups = num_warmups

    def capture(self, buckets: tuple[int, ...]) -> float:
        """Return the seconds spent in captures proper."""
        AttentionInterface.register("rival_sdpa", _rival_attention)
        config = self.target.module.config
        own, config._attn_implementation = config._attn_implementation, "rival_sdpa"
        ordered = sorted(buckets, reverse=True)
        self.inputs = StaticInputs(self.target.input_specs, ordered[0], self.target.device)
        pool, seconds = None, 0.0
        stream = torch.cuda.Stream()
        try:
            for tokens in ordered:
                batch = make_batch(self.target, (tokens,), torch.Generator("cuda").manual_seed(0))
                self.inputs.load(batch.inputs, tokens, tokens)
                views = self.inputs.views(tokens)
                stream.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(stream):
                    for _ in range(self._num_warmups):
                        self.target(views)
                torch.cuda.synchronize()
                started = time.perf_counter()
                graph = RivalGraph(pool=pool)
                with torch.inference_mode(), breakable_graph(graph, stream=stream):
                    output = self.target(views)
                torch.cuda.synchronize()
                seconds += time.perf_counter() - started
                pool = graph.pool()
                self.graphs[tokens], self.outputs[tokens] = graph, unowned_alias(output)
        finally:
            config._attn_implementation = own
        return seconds

    def reset(self) -> None:
        for graph in self.graphs.values():
            graph.reset()
        self.graphs, self.outputs = {}, {}


def used_bytes() -> int:
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    return total - free


def capture_round(make: Callable[[], tuple[Any, float]]) -> tuple[Any, dict[str, float]]:
    before = used_bytes()
    started = time.perf_counter()
    tool, capture_s = make()
    torch.cuda.synchronize()
    whole_s = time.perf_counter() - started
    with torch.inference_mode():
        for tokens, graph in tool.graphs.items():  # a graph takes its device memory when it is first launched
            with forward_context(ForwardContext((tokens,))):
                graph.replay()
    torch.cuda.synchronize()
    figures = {"capture_s": capture_s, "whole_s": whole_s, "ready_s": time.perf_counter() - started}
    return tool, figures | {"memory_mib": (used_bytes() - before) / 2**20}


class Waits(Ranges):
    """Waits for the device at the end of each warm-up and each capture of bcg, inside what it takes as their time.

    The rival is timed from an idle device to an idle device; bcg's own `capture_ms` waits for neither.
    """

    def __init__(self) -> None:
        self.active = True

    def make(self, message: str, category: Category, payload: int | None = None) -> Range:
        return _ends_idle if category in ("warm-up", "capture") else contextlib.nullcontext


@contextlib.contextmanager
def _ends_idle() -> Iterator[None]:
    yield
    torch.cuda.synchronize()


def capture_ours(target: Target, buckets: tuple[int, ...], num_warmups: int) -> tuple[GraphRunner, float]:
    runner = GraphRunner(target, num_warmups=num_warmups)
    return runner, sum(result.capture_ms for result in runner.capture(buckets)) / 1e3


def capture_rivals(target: Target, buckets: tuple[int, ...], num_warmups: int) -> tuple[Rival, float]:
    rival = Rival(target, num_warmups)
    capture_s: float = rival.capture(buckets)
    return rival, capture_s


def replay_ms(replay: Callable[[], None]) -> float:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    replay()
    end.record()
    end.synchronize()
    elapsed_ms: float = begin.elapsed_time(end)
    return elapsed_ms


def compare_replays(ours: GraphRunner, rival: Rival, num_rounds: int) -> list[dict[str, Any]]:
    rows = []
    for tokens in (bucket for bucket in REPLAYED if bucket in ours.graphs):
        our_graph, their_graph = ours.graphs[tokens], rival.graphs[tokens]
        times: dict[str, list[float]] = {"ours": [], "theirs": []}
        with forward_context(ForwardContext((tokens,))), torch.inference_mode():
            for _ in range(5):
                our_graph.replay()
                their_graph.replay()
            for index in range(num_rounds):
                order = ("ours", "theirs") if index % 2 else ("theirs", "ours")
                for who in order:
                    graph = our_graph if who == "ours" else their_graph
                    times[who].append(replay_ms(graph.replay))
            batch = make_batch(ours.target, (tokens,), torch.Generator("cuda").manual_seed(1))
            replayed = ours.replay(batch).clone()
            rival.inputs.load(batch.inputs, tokens, tokens)
            their_graph.replay()
            is_equal = torch.equal(replayed, rival.outputs[tokens]) and torch.equal(replayed, ours.eager(batch))
        medians = {who: statistics.median(values) for who, values in times.items()}
        rows.append(
            {
                "tokens": tokens,
                "ours_ms": medians["ours"],
                "theirs_ms": medians["theirs"],
                "ratio": medians["ours"] / medians["theirs"],
                "bitwise_equal_to_each_other_and_eager": is_equal,
            }
        )
    return rows


def compare(model: str, num_rounds: int, num_warmups: int) -> dict[str, Any]:
    target = load_target(model, device="cuda")
    show(Waits())
    buckets = engine_ladder()
    for tokens in (buckets[-1], 512, 16):
        target(make_batch(target, (tokens,), torch.Generator("cuda").manual_seed(0)).inputs)
    makers: dict[str, Callable[[], tuple[Any, float]]] = {
        "ours": functools.partial(capture_ours, target, buckets, num_warmups),
        "theirs": functools.partial(capture_rivals, target, buckets, num_warmups),
    }
    for make in makers.values():  # what each needs once a process (workspaces, lazy loading) is not compared
        make()[0].reset()
    rounds: dict[str, list[dict[str, float]]] = {"ours": [], "theirs": []}
    for index in range(num_rounds):
        for who in ("ours", "theirs") if index % 2 else ("theirs", "ours"):
            tool, figures = capture_round(makers[who])
            rounds[who].append(figures)
            tool.reset()
            del tool
    medians = {
        who: {name: statistics.median(figures[name] for figures in values) for name in values[0]}
        for who, values in rounds.items()
    }
    ours, rival = makers["ours"]()[0], makers["theirs"]()[0]
    result = {
        "model": model,
        "num_buckets": len(buckets),
        "num_warmups": num_warmups,
        "rounds": rounds,
        "medians": medians,
        "ratios": {name: medians["ours"][name] / medians["theirs"][name] for name in medians["ours"]},
        "replays": compare_replays(ours, rival, num_rounds=20),
    }
    ours.reset()
    rival.reset()
    return result


def print_result(result: dict[str, Any]) -> None:
    print(f"\n{result['model']}: {result['num_buckets']} buckets, medians of {len(result['rounds']['ours'])} rounds")
    for name, ratio in result["ratios"].items():
        ours, theirs = result["medians"]["ours"][name], result["medians"]["theirs"][name]
        print(f"  {name:12} ours {ours:10.3f}  theirs {theirs:10.3f}  ratio {ratio:.3f}")
    for row in result["replays"]:
        equal = "bitwise equal" if row["bitwise_equal_to_each_other_and_eager"] else "NOT EQUAL"
        print(
            f"  replay {row['tokens']:5} tokens  ours {row['ours_ms']:8.3f} ms  theirs {row['theirs_ms']:8.3f} ms"
            f"  ratio {row['ratio']:.3f}  {equal}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["qwen3-0.6b", "qwen3-8b"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warmups", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = []
    for model in options.models:
        results.append(compare(model, options.rounds, options.warmups))
        print_result(results[-1])
        gc.collect()
        torch.cuda.empty_cache()
    if options.json:
        facts = environment(torch.device("cuda"))
        report = {"environment": {name: getattr(facts, name) for name in facts.__struct_fields__}, "results": results}
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
