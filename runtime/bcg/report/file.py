"""Report files: written whole or not at all, and read with checks.

A file that is cut off, of another schema or of another kind is refused with one line.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeAlias

import msgspec

from bcg.errors import ReportError, UsageError
from bcg.report.capture import CaptureReport
from bcg.report.check import CheckReport
from bcg.report.common import SCHEMA_VERSION
from bcg.report.plan import PlanReport
from bcg.report.profile import ProfileReport
from bcg.sizes import MIB

MAX_REPORT_BYTES = 256 * MIB
"""A larger file is refused unread: no report of ours comes near it."""

Report: TypeAlias = CaptureReport | PlanReport | ProfileReport | CheckReport
"""Every kind of report; `read_report` tells them apart by ``kind``."""

_KINDS: dict[str, type[Report]] = {
    "capture": CaptureReport,
    "plan": PlanReport,
    "profile": ProfileReport,
    "replay-check": CheckReport,
}


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
    hint = "write it again with `bcg COMMAND --json FILE`"
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
        UsageError: The file is missing, or can't be read.
        ReportError: It is too large, or `decode_report` refuses it.
    """
    try:
        size = os.stat(path).st_size
        if size > MAX_REPORT_BYTES:
            raise ReportError(f"{path} has {size:,} bytes, a report has at most {MAX_REPORT_BYTES:,}")
        content = Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read report {path}: {error.strerror}", hint="check the path") from error
    return decode_report(content, name=str(path))


def write_report(report: Report, path: str | Path) -> None:
    """Writes a report file whole, see `write_whole`.

    Raises:
        ReportError: It can't be written.
    """
    write_whole(encode_report(report), path)


def write_whole(content: bytes, path: str | Path) -> None:
    """Writes a file whole: beside its place first, then renamed onto it.

    A file that is already there stays as it was until the new one is complete.

    Raises:
        ReportError: It can't be written.
    """
    target = Path(path).resolve()
    beside = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        try:
            with open(beside, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, target)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise ReportError(f"cannot write report {path}: {error.strerror}", hint="choose another path") from error


def check_output_path(path: str | Path) -> None:
    """Finds out, before any work, whether a file could be written at `path`.

    Raises:
        UsageError: Its folder is missing or not writable, or something other than a file is there.
    """
    target = Path(path)
    folder = target.resolve().parent
    hint = "choose another path"
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
