"""What a command does with its report: shows it, and writes it where it was asked to."""

from __future__ import annotations

from pathlib import Path

from bcg.errors import UsageError
from bcg.report import Report, check_output_path, encode_report, write_report, write_whole
from bcg_cli import console
from bcg_cli.options import STDOUT


def check_outputs(json: Path | None, html: Path | None) -> None:
    """Finds out, before any work, whether the files could be written.

    Raises:
        UsageError: One of them can't, or one would replace the other.
    """
    if html == STDOUT:
        raise UsageError("--html needs a file, got -", hint="only --json writes to standard output")
    if html is not None and json is not None and html.absolute() == json.absolute():
        raise UsageError(f"--json and --html both name {json}", hint="give each a file of its own")
    for path in (json, html):
        if path is not None and path != STDOUT:
            check_output_path(path)


def deliver(report: Report, json: Path | None, html: Path | None) -> None:
    """Shows a report on stdout, as JSON where ``--json -`` says so, and writes the files."""
    from bcg_cli.views.kinds import html_page, terminal_view

    if json == STDOUT:
        console.raw_data(encode_report(report))
    else:
        console.data(terminal_view(report))
    if json is not None and json != STDOUT:
        write_report(report, json)
        console.note(f"report written to {json}")
    if html is not None:
        write_whole(html_page(report).encode(), html)
        console.note(f"page written to {html}")
