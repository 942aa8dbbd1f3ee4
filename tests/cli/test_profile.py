"""``bcg profile``: from words to exit codes."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from bcg.report import read_report
from tests.cli.reports import profile_report

TELLS_OF_ITS_FORWARDS = """
import torch
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Embedding(4, 4)

    def forward(self, input_ids):
        with open("forwards", "a") as told:
            told.write(".")
        return self.layer(input_ids % 4)
"""
ENOUGH_FORWARDS = 300
"""More than are made before the rounds."""

MODEL = f"{Path(__file__).parents[1] / 'profile' / 'models.py'}:layered"


def test_a_profile_from_words_to_files(bcg, tmp_path: Path) -> None:
    words = ("--device", "cpu", "--tokens", "4", "--modes", "breakable,eager", "--rounds", "1")
    done = bcg("profile", MODEL, *words, "--json", tmp_path / "p.json", "--html", tmp_path / "p.html")
    assert done.code == 0
    assert "1 interleaved rounds of 5 steps" in done.out
    assert "Speed-ups (×): the ratio of two modes' steps in each round, and of these the median." in done.out
    assert "its times say nothing about a GPU" in done.out
    report = read_report(tmp_path / "p.json")
    assert [mode.mode for mode in report.modes] == ["eager", "breakable"]
    assert (tmp_path / "p.html").read_text().endswith("</html>\n")


def test_a_wrong_mode_fails_after_the_report(bcg, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    report = profile_report()
    rows = [
        msgspec.structs.replace(row, status="wrong", p50_ms=None) if row.mode == "breakable" else row
        for row in report.buckets[0].modes
    ]
    report = profile_report(buckets=[msgspec.structs.replace(report.buckets[0], modes=rows), *report.buckets[1:]])
    monkeypatch.setattr("bcg.profile.run.run_profile", lambda plan, on_step: report)
    done = bcg("profile", MODEL, "--device", "cpu", "--json", tmp_path / "p.json")
    assert done.code == 3
    assert done.err.splitlines() == [
        f"note: report written to {tmp_path / 'p.json'}",
        "error: 1 of 30 rows have no time, because their results differ from eager's: first breakable at 16 tokens",
        "hint: bcg replay-check finds where replays begin to differ",
    ]
    assert read_report(tmp_path / "p.json") == report


def test_modes_that_all_fail_in_the_rounds_are_an_error_with_their_traceback(bcg, tmp_path: Path) -> None:
    words = ("--device", "cpu", "--tokens", "4", "--modes", "eager", "--rounds", "1", "--json", tmp_path / "p.json")
    done = bcg("profile", MODEL.replace("layered", "tiring"), *words, "--traceback")
    assert (done.code, done.out) == (1, "")
    assert '    raise RuntimeError("too tired for this")\n' in done.err
    assert done.err.splitlines()[-2] == "error: no mode could be measured; eager: RuntimeError: too tired for this"
    assert not (tmp_path / "p.json").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--modes", "eager,quick"), "error: --modes: there is no mode 'quick'\n"),
        (("--modes", ""), "error: --modes: there is no mode ''\n"),
        (("--rounds", "0"), "error: Invalid value for '--rounds'"),
        (("--trace", "/none/such/t.json"), "error: cannot write /none/such/t.json"),
    ],
)
def test_wrong_usage(bcg, words: tuple[str, ...], message: str) -> None:
    done = bcg("profile", MODEL, *words)
    assert done.code == 2
    assert done.err.startswith(message)


def test_command_lines_of_tools_are_data(bcg) -> None:
    done = bcg("profile", "qwen3-8b", "--tokens", "16,64", "--nsys", "--ncu")
    assert (done.code, done.err) == (0, "")
    nsys, ncu = done.out.splitlines()
    assert nsys.startswith("nsys profile ") and nsys.endswith(" qwen3-8b --tokens 16,64 --modes breakable --rounds 1")
    assert ncu.startswith("ncu ") and "'bcg@segment 0/'" in ncu


def test_command_lines_of_tools_have_the_options_given(bcg) -> None:
    given = ("--dtype", "bfloat16", "--break", "*.mlp", "--break=norm", "--seed", "3", "--no-attention-break")
    done = bcg("profile", *given, "--modes", "eager,fused", "--nsys", "--rounds=7", "--device", "cuda")
    assert done.code == 0
    assert done.out.endswith(
        " bcg profile --dtype bfloat16 --break '*.mlp' --break=norm --seed 3 --no-attention-break --device cuda "
        "--modes fused --rounds 1\n"
    )


@pytest.mark.parametrize("tool", ["--nsys", "--ncu"])
def test_tools_need_ranges(bcg, tool: str) -> None:
    done = bcg("profile", tool, "--no-nvtx")
    assert (done.code, done.out) == (2, "")
    assert done.err == "error: --nsys and --ncu need the NVTX ranges\nhint: leave out --no-nvtx\n"


def test_a_time_limit_keeps_what_was_measured(tmp_path: Path) -> None:
    """A model that tells of its forwards: SIGTERM, which does what Ctrl-C does, comes in the middle of the rounds."""
    (tmp_path / "model.py").write_text(TELLS_OF_ITS_FORWARDS)
    words = ("profile", "model.py:Model", "--device", "cpu", "--tokens", "4", "--modes", "eager,breakable")
    process = subprocess.Popen(
        [sys.executable, "-m", "bcg_cli", *words, "--rounds", "1000000", "--json", "p.json"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    forwards, ends_at = tmp_path / "forwards", time.monotonic() + 100
    while not forwards.exists() or forwards.stat().st_size < ENOUGH_FORWARDS:
        assert time.monotonic() < ends_at and process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in err
    assert "eager" in out
    report = read_report(tmp_path / "p.json")
    assert [(mode.mode, mode.status) for mode in report.modes] == [("eager", "measured"), ("breakable", "measured")]
    assert 0 < report.totals.num_rounds < 1_000_000
    assert "cut-short" in [warning.code for warning in report.warnings]


def test_a_command_line_for_nsight_is_checked_as_the_command_is(bcg, tmp_path: Path) -> None:
    assert "unknown model 'nothing'" in bcg("profile", "nothing", "--nsys").err
    assert "cannot write" in bcg("profile", "qwen3-tiny", "--ncu", "--html", tmp_path / "none" / "page.html").err
