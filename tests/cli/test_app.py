"""The command line's door: what it imports, its surface, and how errors become exit codes."""

from __future__ import annotations

import builtins
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from bcg import __version__
from bcg.errors import BcgError, CaptureError, CheckFailure, ReportError, UsageError
from bcg.report import Card, read_report, write_report
from bcg_cli import entry
from bcg_cli.app import app
from bcg_cli.console import MAX_LINE, one_line
from bcg_cli.delivery import write
from tests.cli.reports import gpu_report


def test_help_imports_no_torch() -> None:
    code = """if True:
        import sys
        from bcg_cli.app import main
        for words in (["--help"], ["capture", "--help"], ["capture", "--tokens", "0"], ["report", "none.json"]):
            main(words)
        print(sorted({"torch", "transformers", "numpy"} & set(sys.modules)))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "Capture a model per token count" in done.stdout


def test_python_dash_m() -> None:
    done = subprocess.run([sys.executable, "-m", "bcg_cli", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"bcg {__version__}\n"


def test_the_surface_is_frozen() -> None:
    commands: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]
    surface = {
        name: [word for parameter in command.params for word in (*parameter.opts, *parameter.secondary_opts)]
        for name, command in commands.items()
    }
    assert surface == {
        "capture": [
            *("model", "--tokens", "--device", "--break", "--attention-break", "--no-attention-break"),
            *("--auto-break", "--no-auto-break", "--fewest-breaks", "--workload", "--buckets"),
            *("--memory-budget", "--dry-run", "--gpu"),
            *("--dtype", "--seed", "--expect-breaks", "--json", "--html"),
            *("--tp", "--ep", "--rank-timeout", "--traceback"),
        ],
        "replay-check": [
            *("model", "--tokens", "--device", "--break", "--attention-break", "--no-attention-break"),
            *("--auto-break", "--no-auto-break", "--rounds", "--locate", "--no-locate", "--prompts"),
            *("--rtol", "--atol"),
            *("--dtype", "--seed", "--json", "--html", "--tp", "--ep", "--rank-timeout", "--traceback"),
        ],
        "profile": [
            *("model", "--tokens", "--device", "--modes", "--rounds", "--break", "--attention-break"),
            *("--no-attention-break", "--dtype", "--seed", "--json", "--html", "--trace", "--nvtx", "--no-nvtx"),
            *("--nsys", "--ncu", "--tp", "--ep", "--rank-timeout", "--traceback"),
        ],
        "report": ["file", "--html", "--against", "--gate", "--traceback"],
    }


def test_no_words_show_the_help(bcg: Any) -> None:
    done = bcg()
    assert done.code == 0
    assert done.out.startswith("Usage: bcg")
    assert done.err == ""


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (UsageError("wrong", hint="do this"), 2, "error: wrong\nhint: do this\n"),
        (BcgError("no"), 1, "error: no\n"),
        (CaptureError("broken\nin two"), 1, "error: broken in two\n"),
        (CheckFailure("differs"), 3, "error: differs\n"),
        (
            ValueError("odd\x1b[31m"),
            1,
            "error: ValueError: odd?[31m\nhint: run it again with --traceback to see where\n",
        ),
        (MemoryError(), 1, "error: MemoryError\nhint: run it again with --traceback to see where\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_errors_become_exit_codes(
    bcg: Any, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, text: str
) -> None:
    monkeypatch.setattr("bcg_cli.commands.capture.resolve_device", _raiser(error))
    done = bcg("capture")
    assert (done.code, done.err, done.out) == (code, text, "")


def test_traceback_shows_the_cause_and_then_the_line(bcg: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    error = BcgError("no", hint="h")
    error.__cause__ = ZeroDivisionError("the user's own")
    monkeypatch.setattr("bcg_cli.commands.capture.resolve_device", _raiser(error))
    done = bcg("capture", "--traceback")
    assert done.code == 1
    assert done.err.startswith("ZeroDivisionError: the user's own")
    assert "Traceback (most recent call last)" in done.err
    assert done.err.endswith("error: no\nhint: h\n")


def test_control_characters_do_not_reach_the_terminal(bcg: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    evil = "a\x1b]0;owned\x07b"
    error = BcgError(evil, hint=evil)
    error.cards = (Card(hazard="L1", title=evil, cause=evil, module=evil, driver_text=evil),)  # type: ignore[attr-defined]
    monkeypatch.setattr("bcg_cli.commands.capture.resolve_device", _raiser(error))
    done = bcg("capture", "--traceback")
    assert "\x1b" not in done.err and "\x07" not in done.err
    assert "L1 a?]0;owned" in done.err


@pytest.mark.parametrize(
    ("redirection", "message"),
    [
        (">/dev/full", "error: cannot write to standard output: No space left on device\n"),
        (">&-", "error: there is no standard output: it is closed\n"),
    ],
)
def test_a_stdout_that_takes_nothing_is_one_line(tmp_path: Path, redirection: str, message: str) -> None:
    write_report(gpu_report(), tmp_path / "c.json")
    command = f'"{sys.executable}" -m bcg_cli report "{tmp_path}/c.json" --html "{tmp_path}/c.html" {redirection}'
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"note: page written to {tmp_path}/c.html\n{message}"


def test_the_report_and_its_page_are_written_each_even_where_the_other_can_not_be(tmp_path: Path) -> None:
    json, html, nowhere = tmp_path / "c.json", tmp_path / "c.html", tmp_path / "gone" / "file"
    with pytest.raises(ReportError, match="^cannot write report .*gone/file: "):
        write(gpu_report(), json, nowhere)
    assert read_report(json) == gpu_report()
    with pytest.raises(ReportError, match="^cannot write report .*gone/file: "):
        write(gpu_report(), nowhere, html)
    assert html.read_text().endswith("</html>\n")


def test_no_color_is_honoured(bcg: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    red = "\x1b[1;31m"
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert bcg("capture", "--tokens", "0").err.startswith(red)
    monkeypatch.setenv("NO_COLOR", "1")
    assert red not in bcg("capture", "--tokens", "0").err


def test_an_endless_message_is_cut(bcg: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bcg_cli.commands.capture.resolve_device", _raiser(ValueError("x" * 10**6)))
    assert len(bcg("capture").err) < 3000


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["captur"], "error: No such command 'captur'."),
        (["capture", "--toknes", "4"], "error: No such option: --toknes"),
        (["capture", "a", "b"], "error: Got unexpected extra argument"),
        (["capture", "--tokens"], "error: Option '--tokens' requires an argument."),
        (["capture", "--device", "tpu"], "error: Invalid value for '--device'"),
        (["capture", "--dtype", "int8"], "error: Invalid value for '--dtype'"),
        (["capture", "--seed", "-1"], "error: Invalid value for '--seed'"),
        (["capture", "--seed", "x"], "error: Invalid value for '--seed'"),
        (["capture", "--expect-breaks", "-1"], "error: Invalid value for '--expect-breaks'"),
    ],
)
def test_a_wrong_command_line_is_two_lines_and_exit_2(bcg: Any, words: list[str], text: str) -> None:
    done = bcg(*words)
    assert done.code == 2
    assert done.err.startswith(text)
    _error, hint = done.err.splitlines()
    assert hint.startswith("hint: `bcg ")
    assert done.out == ""


def _raiser(error: BaseException) -> Any:
    def fail(*_args: object, **_kwargs: object) -> None:
        raise error

    return fail


def test_a_line_is_no_longer_than_its_limit() -> None:
    assert len(one_line("x" * (MAX_LINE + 1))) == MAX_LINE


def test_ctrl_c_while_the_command_line_is_imported_ends_as_later(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def interrupted(name: str, *rest: Any) -> Any:
        if name == "bcg_cli.app":
            raise KeyboardInterrupt
        return original(name, *rest)

    original = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", interrupted)
    code = entry.main()
    monkeypatch.undo()
    assert (code, capsys.readouterr().err) == (130, "interrupted\n")
