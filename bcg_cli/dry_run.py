"""``bcg capture --dry-run``, and the estimates that a memory budget needs."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bcg.errors import BcgError, CheckFailure
from bcg.report import OptionValue, PlanReport
from bcg_cli import console
from bcg_cli.bucket_choice import BucketWords, MemoryEstimate, choose
from bcg_cli.delivery import deliver


@dataclass(frozen=True)
class ShapeWords:
    """What the command line says about the model whose shapes are planned."""

    model: str
    dtype: str | None
    attention_break: bool
    break_globs: Sequence[str]
    tp: int | None = None
    ep: bool = False


def estimate_memory(words: ShapeWords) -> MemoryEstimate:
    """Estimates from shapes alone what buckets of the model take on a GPU."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    from bcg.models.shapes import load_shapes
    from bcg.planning import graph_bytes, pool_bytes

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    target = load_shapes(
        words.model,
        mode,
        dtype=words.dtype,
        attention_break=words.attention_break,
        break_globs=words.break_globs,
    )
    most = target.max_tokens

    def pool(tokens: int) -> int:
        return pool_bytes(target, mode, tokens if most is None else min(tokens, most))

    return MemoryEstimate(pool, graph_bytes(target, mode))


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
    with console.users_code(), console.steps() as steps, contextlib.ExitStack() as stack:
        steps.begin(f"shaping {words.model}")
        from torch._subclasses.fake_tensor import FakeTensorMode

        from bcg.distributed.pretend import pretended_ranks
        from bcg.models.shapes import load_shapes
        from bcg.models.sharding import Sharding
        from bcg.planning import plan

        sharding = None
        if words.tp is not None:
            stack.enter_context(pretended_ranks(words.tp))
            sharding = Sharding(words.tp, words.ep)
        choice = choose(buckets, "cuda", lambda: estimate_memory(words))
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        target = load_shapes(
            words.model,
            mode,
            dtype=words.dtype,
            attention_break=words.attention_break,
            break_globs=words.break_globs,
            sharding=sharding,
        )
        counts = choice.for_model("cuda", target.max_tokens)
        report = plan(target, mode, counts, options | {"tokens": list(counts)}, gpu, steps.begin)
    deliver(report, json, html)
    _judge(report, expect_breaks)


def _judge(report: PlanReport, expect_breaks: int | None) -> None:
    totals = report.totals
    if totals.fits is False:
        raise CheckFailure(
            f"{report.model.name} doesn't fit {totals.gpu}: it needs {totals.needed_bytes:,} bytes of "
            f"{totals.gpu_bytes:,}",
            hint="fewer or smaller --tokens, another --gpu, or several GPUs",
        )
    if expect_breaks is not None and len(report.breaks) != expect_breaks:
        raise CheckFailure(f"expected {expect_breaks} breaks, got {len(report.breaks)}")
    if not report.segments:
        raise BcgError(f"a capture of {report.model.name} would hold no segment")
