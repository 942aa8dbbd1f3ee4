"""What a command does with its report: shows it, and writes it where it was asked to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from bcg.errors import UsageError
from bcg.report import Report, check_output_path, encode_report, write_report, write_whole
from bcg_cli import console
from bcg_cli.options import STDOUT


def check_outputs(outputs: Mapping[str, Path | None], inputs: Mapping[str, Path | None]) -> None:
    """Finds out, before any work, whether the files could be written, each in a place of its own.

    Args:
        outputs: Files to write, by the option that names them; only ``--json`` may mean stdout.
        inputs: Files that the command reads, by what names them.

    Raises:
        UsageError: One of them can't be written, or would replace another one or an input.
    """
    taken = {path.resolve(): name for name, path in inputs.items() if path is not None}
    for name, path in outputs.items():
        if path is None or (path == STDOUT and name == "--json"):
            continue
        if path == STDOUT:
            raise UsageError(f"{name} needs a file, got -", hint="only --json writes to standard output")
        other = taken.setdefault(path.resolve(), name)
        if other != name:
            raise UsageError(f"{other} and {name} both name {path}", hint="give each a file of its own")
        check_output_path(path)


def file_of(model: str) -> Path | None:
    """Returns the file of a MODEL ``file.py:factory``, which is read too; None of another MODEL."""
    path = Path(model.rpartition(":")[0]).expanduser()
    return path if path.is_file() else None


def deliver(report: Report, json: Path | None, html: Path | None) -> None:
    """Shows a report and writes it, even where it can't be shown."""
    try:
        show(report, json)
    finally:
        write(report, json, html)


def show(report: Report, json: Path | None) -> None:
    """Shows a report on stdout, unless ``--json -`` is to write it there."""
    from bcg_cli.views.kinds import terminal_view

    if json != STDOUT:
        console.data(terminal_view(report))


def write(report: Report, json: Path | None, html: Path | None) -> None:
    """Writes a report as JSON and as a page, where these were asked for; each even where the other can't be written."""
    try:
        _write_json(report, json)
    finally:
        _write_page(report, html)


def _write_json(report: Report, json: Path | None) -> None:
    if json == STDOUT:
        console.raw_data(encode_report(report))
    elif json is not None:
        write_report(report, json)
        console.note(f"report written to {json}")


def _write_page(report: Report, html: Path | None) -> None:
    from bcg_cli.views.kinds import html_page

    if html is not None:
        write_whole(html_page(report).encode(), html)
        console.note(f"page written to {html}")
