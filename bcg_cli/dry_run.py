"""``bcg capture --dry-run``, and the estimates that a memory budget needs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from bcg.errors import BcgError, CheckFailure
from bcg.report import OptionValue, PlanReport
from bcg.sizes import format_size
from bcg.words import TargetWords
from bcg_cli import console
from bcg_cli.bucket_choice import BucketWords, MemoryEstimate, choose
from bcg_cli.delivery import deliver

if TYPE_CHECKING:
    from torch._subclasses.fake_tensor import FakeTensorMode

    from bcg.target import Target


@dataclass(frozen=True)
class ShapeWords:
    """What the command line says about the model whose shapes are planned.

    Attributes:
        tp: Over how many ranks it is sharded.
    """

    target: TargetWords
    auto_break: bool = True
    tp: int | None = None


@contextlib.contextmanager
def _shaped(words: ShapeWords) -> Iterator[tuple[Target, FakeTensorMode]]:
    """Gives the model, or the part of rank 0, from shapes alone, and the mode under which it can be called."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    from bcg.distributed.pretend import pretended_ranks
    from bcg.models.shapes import load_shapes
    from bcg.models.sharding import Sharding

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with contextlib.nullcontext() if words.tp is None else pretended_ranks(words.tp):
        sharding = None if words.tp is None else Sharding(words.tp, words.target.expert_parallel)
        yield load_shapes(words.target, mode, sharding), mode


@contextlib.contextmanager
def estimated_memory(words: ShapeWords) -> Iterator[MemoryEstimate]:
    """Estimates from shapes alone what buckets of the model, or of each rank, take on a GPU."""
    from bcg.input_makers import PROBE_SIZES
    from bcg.planning import break_from_shapes, graph_bytes, pool_bytes

    with _shaped(words) as (target, mode):
        most = target.max_tokens
        if words.auto_break:
            break_from_shapes(target, mode, PROBE_SIZES[0])

        def pool(tokens: int) -> int:
            return pool_bytes(target, mode, tokens if most is None else min(tokens, most))

        yield MemoryEstimate(pool, graph_bytes(target, mode), most)


def dry_run(
    words: ShapeWords,
    buckets: BucketWords,
    gpu: tuple[str, int] | None,
    options: dict[str, OptionValue],
    expect_breaks: int | None,
    json: Path | None,
    html: Path | None,
) -> None:
    """Plans a capture from shapes alone, and shows the plan.

    Raises:
        CheckFailure: It doesn't fit the GPU, or has another number of breaks than expected.
        BcgError: The model can't be planned.
    """
    with console.users_code(), console.steps() as steps:
        steps.begin(f"shaping {words.target.model}")
        choice = choose(buckets, lambda: estimated_memory(words))
        with _shaped(words) as (target, mode):
            from bcg.planning import plan

            counts = choice.for_model("cuda", target.max_tokens)
            named = options | {"tokens": list(counts)}
            report = plan(target, mode, counts, named, gpu, steps.begin, auto_break=words.auto_break)
            report = msgspec.structs.replace(report, workload=choice.fits(counts))
            left = choice.left_to_eager(target.max_tokens)
    if left is not None:
        console.note(left)
    deliver(report, json, html)
    _judge(report, expect_breaks)


def _judge(report: PlanReport, expect_breaks: int | None) -> None:
    totals = report.totals
    if totals.fits is False:
        raise CheckFailure(
            f"{report.model.name} doesn't fit {totals.gpu}: it needs {format_size(totals.needed_bytes)} of "
            f"{format_size(totals.gpu_bytes or 0)}",
            hint="fewer or smaller --tokens, another --gpu, or several GPUs",
        )
    if expect_breaks is not None and len(report.breaks) != expect_breaks:
        raise CheckFailure(f"expected {expect_breaks} breaks, got {len(report.breaks)}")
    if not report.segments:
        raise BcgError(f"a capture of {report.model.name} would hold no segment")
