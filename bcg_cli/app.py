"""The Typer app, and the one place that turns errors into exit codes.

0 fine; 1 it could not be done; 2 wrong usage; 3 a check or gate failed; 130 interrupted.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any, Protocol, runtime_checkable

import typer
from typer.main import get_command

from bcg_cli import console, ranks
from bcg_cli.commands.capture import capture
from bcg_cli.commands.profile import profile
from bcg_cli.commands.replay_check import replay_check
from bcg_cli.commands.report import report

INTERRUPTED = 130


@runtime_checkable
class _ParseError(Protocol):
    """What click raises for a wrong command line.

    No class is named, because newer typer carries its own copy of click.
    """

    exit_code: int
    ctx: Any

    def format_message(self) -> str: ...


app = typer.Typer(
    name="bcg",
    help="Breakable CUDA graphs: a PyTorch model captured per token count, with eager breaks in between.",
    epilog="Exit codes: 0 fine; 1 it could not be done; 2 wrong usage; 3 a check or gate failed; 130 interrupted.",
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command(short_help="Capture a model, and show what its graphs hold.")(capture)
app.command(short_help="Compare the ways to execute a model.")(profile)
app.command(name="replay-check", short_help="Check that replay equals eager.")(replay_check)
app.command(short_help="Show a saved report, or compare two.")(report)


def _show_version(wanted: bool) -> None:
    if wanted:
        from bcg import __version__

        console.data(f"bcg {__version__}")
        raise typer.Exit


@app.callback()
def _bcg(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    pass


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        args: Arguments without the program's name; those of the process when None.

    Returns:
        The exit code.
    """
    words = list(sys.argv[1:] if args is None else args) or ["--help"]
    console.prepare_streams()
    ranks.prepare()
    try:
        code = get_command(app)(words, prog_name="bcg", standalone_mode=False, obj=words)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the last stop of every error
        if "--traceback" in words:
            console.talk("".join(traceback.format_exception(error)).rstrip())
        return _explain(error)
    if code == INTERRUPTED:
        console.talk("interrupted")
    return code or 0


def _explain(error: Exception) -> int:
    from bcg_cli.views.findings import card_view

    for card in getattr(error, "cards", ()):
        console.show(card_view(card))
    message, hint, exit_code = _describe(error)
    if ranks.is_rank():
        ranks.explain(error, message, hint, exit_code)
    else:
        console.error(message, hint)
    return exit_code


def _describe(error: Exception) -> tuple[str, str | None, int]:
    from bcg.errors import BcgError

    if isinstance(error, BcgError):
        return error.message, error.hint, error.exit_code
    if isinstance(error, _ParseError):
        command = error.ctx.command_path if error.ctx else "bcg"
        return error.format_message(), f"`{command} --help` shows what can be given", error.exit_code
    text = str(error).strip()
    name = type(error).__name__
    return f"{name}: {text}" if text else name, "run it again with --traceback to see where", 1
