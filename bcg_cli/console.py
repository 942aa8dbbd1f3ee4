"""Stdout is data, stderr is talk.

Colour is rich's business, and so is the width of a terminal: ``NO_COLOR`` is honoured, and a pipe gets plain text in
whole lines.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import TextIO

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderableType, RenderHook, RenderResult
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.segment import Segment
from rich.text import Text

from bcg.errors import ModelError, ReportError
from bcg_cli.printable import printable

MAX_LINE = 2000
PIPE_WIDTH = 10_000
"""Columns where no terminal wraps lines."""


@dataclass
class _Process:
    """The standard output of this process, once its descriptor is no longer that."""

    stdout: TextIO | None = None


_process = _Process()


def prepare_streams() -> None:
    """Makes printing safe where the terminal's encoding lacks a character."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def data(renderable: RenderableType) -> None:
    """Prints what the user asked for, on stdout; in a pipe or a file every row is one whole line.

    Raises:
        ReportError: Stdout can't be written.
    """
    with _stdout() as stdout:
        _print(stdout, renderable)


class _HarmlessOnly(RenderHook):
    """Lets a console print nothing but what is `_Harmless`."""

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [_Harmless(renderable) for renderable in renderables]


class _Harmless:
    """A renderable without the control characters that names in a model, a report or an error may hold."""

    def __init__(self, renderable: RenderableType) -> None:
        self._renderable = renderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in console.render(self._renderable, options):
            if segment.control or segment.text.isprintable() or segment.text == "\n":
                yield segment
            else:
                yield Segment(printable(segment.text), segment.style)


def raw_data(content: bytes) -> None:
    """Writes bytes to stdout as they are.

    Raises:
        ReportError: Stdout can't be written.
    """
    with _stdout() as stdout:
        stdout.flush()
        stdout.buffer.write(content)
        stdout.buffer.flush()


def talk(message: str) -> None:
    """Says something on stderr."""
    _stderr().print(message, soft_wrap=True)


def show(renderable: RenderableType) -> None:
    """Shows something of several lines on stderr."""
    _print(sys.stderr, renderable)


def note(message: str) -> None:
    """Says one line on stderr that is no error."""
    _say("note", "cyan", message)


def warning(message: str, hint: str | None = None) -> None:
    """Says what was done but can't be relied on, and what to do next."""
    _say("warning", "bold yellow", message, hint)


def error(message: str, hint: str | None = None) -> None:
    """Says what went wrong in one line on stderr, and what to do next in another."""
    _say("error", "bold red", message, hint)


@contextmanager
def users_code() -> Iterator[None]:
    """Runs the user's model: what it prints goes to stderr, and it can't end the process as if all were well.

    What it prints past Python, and from here to the process's end, goes there too: descriptor 1 becomes stderr.

    Raises:
        ModelError: The user's code raised `SystemExit`.
    """
    _keep_stdout()
    try:
        with redirect_stdout(sys.stderr):
            yield
    except SystemExit as error:
        raise ModelError(
            f"the model's own code called sys.exit({error.code!r})", hint="--traceback shows where"
        ) from error


class Steps:
    """Progress through counted steps; shown on a terminal only."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=None)

    def begin(self, text: str, total: int | None = None) -> None:
        """Starts a phase of `total` steps, or of unknown length."""
        self._progress.reset(self._task, description=one_line(text), total=total)

    def advance(self, text: str) -> None:
        """Counts one step as done and says what comes next or was done."""
        self._progress.update(self._task, description=one_line(text), advance=1)


@contextmanager
def steps() -> Iterator[Steps]:
    """Shows a progress bar on stderr while the body runs, if stderr is a terminal."""
    console = _stderr()
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield Steps(progress)


@contextmanager
def on_terminal(terminal: TextIO | None) -> Iterator[None]:
    """Says what the body says on `terminal`, where stderr has become a log."""
    with redirect_stderr(terminal or sys.stderr):
        yield


def _keep_stdout() -> None:
    """Keeps the standard output for `data` and `raw_data` alone, unless somebody has put another stream there."""
    if _process.stdout is not None or not isinstance(sys.stdout, io.TextIOWrapper) or sys.stdout is not sys.__stdout__:
        return
    sys.stdout.flush()
    _process.stdout = open(os.dup(1), "w", encoding=sys.stdout.encoding, errors="replace")  # noqa: SIM115 - for good
    os.dup2(2, 1)


@contextmanager
def _stdout() -> Iterator[TextIO]:
    """Gives the standard output to write to inside the block."""
    stdout = _process.stdout or sys.stdout
    if stdout is None:
        raise ReportError("there is no standard output: it is closed")
    try:
        yield stdout
    except BrokenPipeError:  # whoever read it has seen enough: typer's business
        raise
    except OSError as error:
        raise ReportError(f"cannot write to standard output: {error.strerror}") from error


def _print(stream: TextIO, renderable: RenderableType) -> None:
    """Print; in a pipe without the blanks that fill a row up to the widest one."""
    console = _console(stream)
    if console.is_terminal:
        console.print(renderable, crop=False)
        return
    with console.capture() as captured:
        console.print(renderable)
    stream.write("\n".join(line.rstrip() for line in captured.get().split("\n")))
    stream.flush()


def _stderr() -> Console:
    return _console(sys.stderr)


def _console(stream: TextIO) -> Console:
    console = Console(file=stream, highlight=False, markup=False, emoji=False)
    console.push_render_hook(_HarmlessOnly())
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    return console


def _say(label: str, style: str, message: str, hint: str | None = None) -> None:
    line = Text.assemble((f"{label}:", style), " ", one_line(message))
    _stderr().print(line, soft_wrap=True)
    if hint:
        _say("hint", "cyan", hint)


def one_line(message: str) -> str:
    """Folds a message into one printable line."""
    text = printable(" ".join(message.split()))
    return text if len(text) <= MAX_LINE else text[: MAX_LINE - 1] + "…"
