"""``bcg profile``: from words to exit codes."""

from __future__ import annotations

from pathlib import Path

import pytest

from bcg.report import read_report

MODEL = f"{Path(__file__).parents[1] / 'profile' / 'models.py'}:layered"


def test_a_profile_from_words_to_files(bcg, tmp_path: Path) -> None:
    words = ("--device", "cpu", "--tokens", "4", "--modes", "breakable,eager", "--rounds", "1")
    done = bcg("profile", MODEL, *words, "--json", tmp_path / "p.json", "--html", tmp_path / "p.html")
    assert done.code == 0
    assert "1 interleaved rounds of 5 steps" in done.out
    assert "its times say nothing about a GPU" in done.out
    report = read_report(tmp_path / "p.json")
    assert [mode.mode for mode in report.modes] == ["eager", "breakable"]
    assert (tmp_path / "p.html").read_text().endswith("</html>\n")


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
