"""Option types that commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from bcg.presets import PRESETS

DEFAULT_MODEL = "qwen3-tiny"
STDOUT = Path("-")


class Device(StrEnum):
    """Where to run."""

    auto = "auto"
    cuda = "cuda"
    cpu = "cpu"


class Dtype(StrEnum):
    """What to compute in."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help=f"A preset ({', '.join(PRESETS)}), a local Hugging Face directory, a hub id, file.py:factory "
        "or package.module:factory.",
    ),
]
TokensOption = Annotated[
    str | None,
    typer.Option("--tokens", metavar="N,N,…", help="Token counts to capture.", show_default="by device"),
]
DeviceOption = Annotated[
    Device,
    typer.Option("--device", help="Where to run; auto takes the GPU where there is one, else the host."),
]
BreakOption = Annotated[
    list[str] | None,
    typer.Option(
        "--break",
        metavar="GLOB",
        help="Break at modules whose path or class name matches, such as '*.mlp.experts', at a function, "
        "package.module:function or file.py:function, or at an operation, OPERATION@FILE:LINE. Repeatable.",
    ),
]
AttentionBreakOption = Annotated[
    bool,
    typer.Option("--attention-break/--no-attention-break", help="Break at attention, or capture it too."),
]
AutoBreakOption = Annotated[
    bool,
    typer.Option(
        "--auto-break/--no-auto-break",
        help="Break where the model can't be captured, verified by replays; or fail and say why.",
    ),
]
FewestBreaksOption = Annotated[
    bool,
    typer.Option("--fewest-breaks", help="Leave out the attention break where replays show that it isn't needed."),
]
WorkloadOption = Annotated[
    Path | None,
    typer.Option(
        "--workload",
        metavar="FILE",
        help="Choose the buckets for observed token counts: one a line, or JSON lines with `tokens`.",
    ),
]
NumBucketsOption = Annotated[
    int | None,
    typer.Option("--buckets", metavar="N", min=1, help="How many buckets to choose for the workload."),
]
MemoryBudgetOption = Annotated[
    str | None,
    typer.Option(
        "--memory-budget",
        metavar="SIZE",
        help="As many buckets for the workload as fit into, such as 2GiB; estimated by a dry run.",
    ),
]
DryRunOption = Annotated[
    bool,
    typer.Option("--dry-run", help="Plan for a GPU from shapes alone: no weights, no data, no GPU."),
]
GpuOption = Annotated[
    str | None,
    typer.Option(
        "--gpu",
        metavar="NAME",
        help="Exit with 3 if the plan doesn't fit: h100-80gb, h200-141gb, b200-192gb, or a size such as 80GB.",
    ),
]
DtypeOption = Annotated[
    Dtype | None, typer.Option("--dtype", help="Data type of the weights.", show_default="the model's own")
]
SeedOption = Annotated[
    int, typer.Option("--seed", min=0, max=2**32 - 1, metavar="N", help="Seed of random weights and inputs.")
]
ExpectBreaksOption = Annotated[
    int | None,
    typer.Option(
        "--expect-breaks",
        metavar="N",
        min=0,
        help="Exit with 3 if a bucket has another number of breaks, or could not be captured.",
    ),
]
TensorParallelOption = Annotated[
    int | None,
    typer.Option(
        "--tp", min=1, metavar="N", help="Shard the model over N processes, by transformers' tensor-parallel plan."
    ),
]
ExpertParallelOption = Annotated[
    bool, typer.Option("--ep", help="Give each process whole experts, by transformers' expert-parallel plan.")
]
RankTimeoutOption = Annotated[
    float,
    typer.Option(
        "--rank-timeout",
        min=1,
        max=1e6,
        metavar="SECONDS",
        help="End the run when a rank makes no progress for so long.",
    ),
]
JsonOption = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", help="Write the report there; - writes it, and nothing else, to stdout."),
]
HtmlOption = Annotated[
    Path | None,
    typer.Option("--html", metavar="FILE", help="Write the report there as one page that opens without a network."),
]
TracebackOption = Annotated[bool, typer.Option("--traceback", help="Show the traceback of an error.")]
