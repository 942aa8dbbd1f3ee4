"""The report file: what a command found, as plain data that views and later commands read.

A report is written whole or not at all, and read with checks: a file that is cut off, of another
schema or of another kind is refused with one line. Nothing in here measures, and nothing imports torch.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from bcg.errors import ReportError, UsageError

SCHEMA_VERSION = 1
MAX_REPORT_BYTES = 256 * 2**20
"""A larger file is refused unread: no report of ours comes near it."""

BucketStatus: TypeAlias = Literal["captured", "out of memory", "failed"]
BreakSource: TypeAlias = Literal["attention", "mixer", "rule", "decorator", "explicit"]
ModelSource: TypeAlias = Literal["preset", "directory", "hub", "factory"]
Weights: TypeAlias = Literal["random", "safetensors", "user"]
OptionValue: TypeAlias = str | int | float | bool | list[str | int] | None


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """What the run was measured on.

    Attributes:
        device: The device's own name, such as ``NVIDIA H100 80GB HBM3`` or ``host (x86_64, 16 threads)``.
        device_type: ``cpu`` is the host device; else as in `torch.device.type`.
        driver: Version of the GPU driver; None without one.
        cuda: Version of CUDA that torch was built with; None for a CPU build.
    """

    device: str
    device_type: str
    driver: str | None = None
    cuda: str | None = None
    torch: str
    cuda_python: str | None = None
    transformers: str
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


class CaptureBucket(msgspec.Struct, frozen=True, kw_only=True):
    """What the capture of one token count took.

    Attributes:
        tokens: The bucket.
        num_kernels: Kernel nodes in all segments; recorded operations on the host device.
        warmup_ms: Time of the eager runs before the capture.
        capture_ms: Time of the captured forward.
        pool_bytes: Growth of the graph pool while this bucket was captured.
        driver_bytes: Device memory taken in the same time that no allocator knows of.
        boundary_bytes: Fixed-address memory of the breaks' results.
        eager_peak_bytes: Peak activation memory of the same bucket in eager, above the weights, if known.
        error: One line, where the status is not ``captured``.
    """

    tokens: int
    status: BucketStatus
    num_segments: int = 0
    num_breaks: int = 0
    num_kernels: int = 0
    warmup_ms: float = 0.0
    capture_ms: float = 0.0
    pool_bytes: int = 0
    driver_bytes: int = 0
    boundary_bytes: int = 0
    eager_peak_bytes: int | None = None
    error: str | None = None


class SegmentRow(msgspec.Struct, frozen=True, kw_only=True):
    """One segment of the bucket that the map shows.

    Attributes:
        modules: Deepest module paths that ran in it, in execution order, each once.
        num_operations: ATen operations seen while capturing.
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


class ReportWarning(msgspec.Struct, frozen=True, kw_only=True):
    """Something that the reader should know, with why and what to do."""

    code: str
    message: str
    cause: str
    remedy: str


class CaptureTotals(msgspec.Struct, frozen=True, kw_only=True):
    """Sums over the captured buckets; `eager_peak_bytes` is the largest, not a sum."""

    num_captured: int
    capture_ms: float
    pool_bytes: int
    driver_bytes: int
    boundary_bytes: int
    eager_peak_bytes: int | None = None


class CaptureReport(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="capture"):
    """What ``bcg capture`` found.

    Attributes:
        map_tokens: The bucket that `segments`, `breaks` and `map` describe; 0 if none was captured.
        map: Its steps in execution order, as ``segment:0``, ``break:0``, … (indices of the rows).
    """

    schema_version: int = SCHEMA_VERSION
    environment: Environment
    model: ModelInfo
    options: dict[str, OptionValue]
    buckets: list[CaptureBucket]
    totals: CaptureTotals
    map_tokens: int = 0
    map: list[str] = []
    segments: list[SegmentRow] = []
    breaks: list[BreakRow] = []
    warnings: list[ReportWarning] = []

    @property
    def on_host(self) -> bool:
        """Whether this was captured on the host device, where kernels are operations."""
        return self.environment.device_type == "cpu"


Report: TypeAlias = CaptureReport
"""Every kind of report; `read_report` tells them apart by ``kind``."""

_KINDS: dict[str, type[Report]] = {"capture": CaptureReport}


class _Header(msgspec.Struct):
    kind: str | None = None
    schema_version: int | None = None


def encode_report(report: Report) -> bytes:
    """Returns the report as indented JSON with a newline at its end."""
    return msgspec.json.format(msgspec.json.encode(report, enc_hook=_plain), indent=2) + b"\n"


def decode_report(content: bytes, *, name: str = "report") -> Report:
    """Reads a report from JSON.

    Args:
        content: The JSON text.
        name: What errors call it, usually the path.

    Raises:
        ReportError: It is cut off, not a report, of another schema, or of an unknown kind.
    """
    hint = "write it again with `bcg capture --json FILE`"
    try:
        header = msgspec.json.decode(content, type=_Header)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ReportError(f"{name} is not a whole report: {_one_line(error)}", hint=hint) from error
    if header.schema_version is None or header.kind is None:
        raise ReportError(f"{name} is not a bcg report: it has no kind and schema_version", hint=hint)
    if header.schema_version != SCHEMA_VERSION:
        raise ReportError(
            f"{name} has schema_version {header.schema_version}, expected {SCHEMA_VERSION}",
            hint="read it with the bcg that wrote it, or " + hint,
        )
    kind = _KINDS.get(header.kind)
    if kind is None:
        known = ", ".join(_KINDS)
        raise ReportError(f"{name} is a report of kind {header.kind!r}, expected one of: {known}", hint=hint)
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ReportError(f"{name} does not fit its schema: {_one_line(error)}", hint=hint) from error


def read_report(path: str | Path) -> Report:
    """Reads a report file.

    Raises:
        ReportError: The file is missing, unreadable or too large, or `decode_report` refuses it.
    """
    try:
        size = os.stat(path).st_size
        if size > MAX_REPORT_BYTES:
            raise ReportError(f"{path} has {size:,} bytes, a report has at most {MAX_REPORT_BYTES:,}")
        content = Path(path).read_bytes()
    except OSError as error:
        raise ReportError(f"cannot read report {path}: {error.strerror}", hint="check the path") from error
    return decode_report(content, name=str(path))


def write_report(report: Report, path: str | Path) -> None:
    """Writes a report file whole: beside its place first, then renamed onto it.

    A file that is already there stays as it was until the new one is complete.

    Raises:
        ReportError: It can't be written.
    """
    target = Path(path).resolve()
    beside = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        try:
            with open(beside, "wb") as file:
                file.write(encode_report(report))
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, target)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise ReportError(
            f"cannot write report {path}: {error.strerror}", hint="choose another path, or `-` for stdout"
        ) from error


def check_output_path(path: str | Path) -> None:
    """Finds out, before any work, whether a file could be written at `path`.

    Raises:
        UsageError: Its folder is missing or not writable, or something other than a file is there.
    """
    target = Path(path)
    folder = target.resolve().parent
    hint = "choose another path, or `-` for stdout"
    if not folder.is_dir():
        raise UsageError(f"cannot write {path}: there is no folder {folder}", hint="make the folder first")
    if target.exists() and not target.is_file():
        raise UsageError(f"cannot write {path}: it is there already and is not a file", hint=hint)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"cannot write {path}: folder {folder} is not writable", hint=hint)


def _plain(value: object) -> str:
    if isinstance(value, str):  # such as torch.__version__, which is more than a str
        return str(value)
    raise NotImplementedError(f"a report can't hold a {type(value).__name__}")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
