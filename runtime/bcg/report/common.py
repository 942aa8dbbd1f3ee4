"""What reports of every kind share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Generic, Literal, TypeAlias, TypeVar

import msgspec

SCHEMA_VERSION = 1

BreakSource: TypeAlias = Literal[
    "attention", "mixer", "rule", "decorator", "explicit", "automatic", "collective", "debug"
]
ModelSource: TypeAlias = Literal["preset", "directory", "hub", "factory"]
Weights: TypeAlias = Literal["random", "safetensors", "user"]
Verdict: TypeAlias = Literal["match", "mismatch", "inconclusive"]
StepKind: TypeAlias = Literal["segment", "break"]
OptionValue: TypeAlias = str | int | float | bool | list[str | int] | None


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """What the run was measured on.

    Attributes:
        device: The device's own name, such as ``NVIDIA H100 80GB HBM3`` or ``host (x86_64 CPU)``.
        device_type: ``cpu`` is the host device; else as in `torch.device.type`.
        driver: Version of the GPU driver; None without one.
        cuda: Version of CUDA that torch was built with; None for a CPU build.
        kernel_packages: Versions of the installed packages that transformers or the attention break takes kernels
            from.
    """

    device: str
    device_type: str
    driver: str | None = None
    cuda: str | None = None
    torch: str
    cuda_python: str | None = None
    transformers: str
    kernel_packages: dict[str, str] = {}
    bcg: str
    python: str


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Which model was run, and with what weights.

    Attributes:
        name: As the user gave it.
        architecture: Class name of the module, such as ``Qwen3Model``.
        dtype: As torch names it, without the prefix: ``bfloat16``.
        seed: Seed of random weights; None where the weights are not random.
    """

    name: str
    source: ModelSource
    architecture: str
    num_parameters: int
    weight_bytes: int
    dtype: str
    seed: int | None = None
    weights: Weights


class SegmentRow(msgspec.Struct, frozen=True, kw_only=True):
    """One segment of the bucket that the map shows.

    Attributes:
        modules: Deepest module paths that ran in it, in execution order, each once.
        num_operations: ATen operations seen while capturing; 0 if nobody followed them (see `is_followed`).
        num_kernels: Kernel nodes of the graph; None on the host device.
        kernels: Kernel names (operation names on the host device) with their counts.
        node_counts: Graph nodes by kind.
        num_externals: Tensors that it reads and no step of the same replay writes.
        external_bytes: Their size.
    """

    index: int
    modules: list[str]
    num_operations: int
    num_kernels: int | None = None
    kernels: dict[str, int] = {}
    node_counts: dict[str, int] = {}
    num_externals: int = 0
    external_bytes: int = 0

    @property
    def is_followed(self) -> bool:
        """Whether operations were followed while this was captured; else nobody knows its modules and externals.

        Compiled code, for one, is captured without: it does not run as such under a dispatch mode.
        """
        return self.num_operations > 0


class BreakRow(msgspec.Struct, frozen=True, kw_only=True):
    """One break of the bucket that the map shows.

    Attributes:
        name: Name of the function that runs eagerly.
        module: Path of the module whose forward called it; empty where there is none.
        source: Why there is a break here.
        boundary_bytes: Size of its fixed-address result.
        source_line: ``file:line`` of the function.
    """

    index: int
    name: str
    module: str
    source: BreakSource
    boundary_bytes: int = 0
    source_line: str | None = None


def option_words(value: OptionValue, *, if_none: str = "none") -> str:
    """Return an option's value as a reader takes it: ``yes``, ``16, 32``."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return if_none if value is None else str(value)


def number_steps(kinds: Iterable[StepKind]) -> list[tuple[StepKind, int]]:
    """Number the steps of a forward: segments and breaks each from 0."""
    counts: Counter[StepKind] = Counter()
    steps = []
    for kind in kinds:
        steps.append((kind, counts[kind]))
        counts[kind] += 1
    return steps


def step_name(kind: StepKind, index: int) -> str:
    """Return what a map calls a step: ``segment:0``."""
    return f"{kind}:{index}"


class ReportWarning(msgspec.Struct, frozen=True, kw_only=True):
    """Something that the reader should know, with why and what to do."""

    code: str
    message: str
    cause: str
    remedy: str


Bucket = TypeVar("Bucket")
Totals = TypeVar("Totals")
MapRow: TypeAlias = SegmentRow | BreakRow


class ReportHead(msgspec.Struct, frozen=True, kw_only=True):
    """What every report begins with."""

    schema_version: int = SCHEMA_VERSION
    environment: Environment
    model: ModelInfo
    options: dict[str, OptionValue]

    @property
    def on_host(self) -> bool:
        """Whether this ran on the host device: kernels are operations there, and no time tells of a GPU."""
        return self.environment.device_type == "cpu"


class MappedReport(ReportHead, Generic[Bucket, Totals], frozen=True, kw_only=True):
    """A report of buckets, and of the segments and breaks of one of them.

    Attributes:
        map_tokens: The bucket that `segments`, `breaks` and `map` describe; 0 if there is none.
        map: Its steps in execution order, as ``segment:0``, ``break:0``, … (indices of the rows).
    """

    buckets: list[Bucket]
    totals: Totals
    map_tokens: int = 0
    map: list[str] = []
    segments: list[SegmentRow] = []
    breaks: list[BreakRow] = []
    warnings: list[ReportWarning] = []

    def __post_init__(self) -> None:
        """Refuse a map that names a row which is not there.

        Raises:
            ValueError: Such a name; a decoder turns it into an error of the schema.
        """
        known = self.rows_by_step()
        unknown = next((step for step in self.map if step not in known), None)
        if unknown is not None:
            raise ValueError(f"`map` names {unknown[:60]}, which is not among its segments and breaks")

    def rows_by_step(self) -> dict[str, MapRow]:
        """Return every segment and break by its name in `map`."""
        segments = {step_name("segment", row.index): row for row in self.segments}
        return {**segments, **{step_name("break", row.index): row for row in self.breaks}}
