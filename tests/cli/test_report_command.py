"""``bcg report``: a saved report again, as a page, and against an older one."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from bcg.report import encode_report, write_report
from tests.cli.reports import gpu_report, profile_report, warning
from tests.unit.test_compare import times


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "old.json"
    write_report(profile_report(), path)
    return path


def test_a_saved_report_is_shown_as_its_command_shows_it(bcg, tmp_path: Path) -> None:
    write_report(gpu_report(warnings=[warning()]), tmp_path / "c.json")
    shown = bcg("report", tmp_path / "c.json")
    assert shown.code == 0
    assert "qwen3-0.6b: Qwen3Model" in shown.out
    assert "remedy: the remedy" in shown.out


def test_a_profile_shows_times_start_up_and_what_fell_back(bcg, saved: Path) -> None:
    shown = bcg("report", saved)
    assert shown.code == 0
    assert "fused         16     7.300   7.519  2,192  1,900  97%     37  6.85 6e-03 0.94" in shown.out
    assert "× own: error against a wider dtype over eager's own; above 2 is wrong." in shown.out
    assert "piecewise     16 fell back" in shown.out
    assert "piecewise: the compiler skipped 5 of 5 graphs: mutated inputs" in shown.out


def test_a_report_from_before_the_yardstick_is_shown_without_it(bcg, tmp_path: Path) -> None:
    content = json.loads(encode_report(profile_report()))
    for bucket in content["buckets"]:
        for row in bucket["modes"]:
            del row["error_vs_exact"], row["eager_error_vs_exact"]
    old = tmp_path / "old.json"
    old.write_text(json.dumps(content))
    shown = bcg("report", old)
    assert shown.code == 0
    assert "37  6.85 6e-03\n" in shown.out
    assert "× own" not in shown.out


def test_a_page_shows_both_errors_against_exact(bcg, saved: Path, tmp_path: Path) -> None:
    assert bcg("report", saved, "--html", tmp_path / "page.html").code == 0
    page = (tmp_path / "page.html").read_text()
    assert "against exact</th>" in page
    assert page.count(">7.5e-03</td>") == page.count(">8.0e-03</td>") == 10


def test_a_page_is_written_whole(bcg, saved: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    shown = bcg("report", saved, "--html", page)
    assert shown.code == 0
    assert page.read_text().endswith("</html>\n")
    assert f"page written to {page}" in shown.err


def test_a_regression_beyond_the_gate_exits_with_3(bcg, saved: Path, tmp_path: Path) -> None:
    write_report(times(profile_report(), 1.08), tmp_path / "new.json")
    shown = bcg("report", tmp_path / "new.json", "--against", saved, "--gate", "5")
    assert shown.code == 3
    assert shown.out.count("SLOWER") == 25
    assert "error: 25 of 33 rows regressed by more than 5 %, worst: " in shown.err
    within = bcg("report", tmp_path / "new.json", "--against", saved, "--gate", "10")
    assert (within.code, within.out.count("SLOWER")) == (0, 25)
    better = bcg("report", saved, "--against", tmp_path / "new.json", "--gate", "5")
    assert (better.code, better.out.count("FASTER")) == (0, 25)
    assert bcg("report", tmp_path / "new.json", "--against", saved).code == 0


def test_a_gate_does_not_pass_what_broke(bcg, saved: Path, tmp_path: Path) -> None:
    old = profile_report()
    write_report(profile_report(buckets=old.buckets[1:]), tmp_path / "new.json")
    shown = bcg("report", tmp_path / "new.json", "--against", saved, "--gate", "5")
    assert shown.code == 3
    assert shown.out.count("only in the old report") == 5
    assert (
        "error: 5 measured rows of the old report are not measured in the new one, first "
        "eager, 16 tokens: only in the old report\n" in shown.err
    )
    assert bcg("report", tmp_path / "new.json", "--against", saved).code == 0


def test_a_gate_does_not_pass_when_no_step_time_could_be_judged(bcg, saved: Path, tmp_path: Path) -> None:
    write_report(times(profile_report(), 1.08, noise=0.5), tmp_path / "new.json")
    shown = bcg("report", tmp_path / "new.json", "--against", saved, "--gate", "5")
    assert shown.code == 3
    assert shown.err.startswith(
        "warning: the gate can't judge 25 step times: their rounds are too few or too far apart\n"
        "hint: profile both again with more --rounds\n"
    )
    assert "error: none of 25 step times could be judged\n" in shown.err


def test_what_makes_two_runs_hard_to_compare_is_a_warning(bcg, saved: Path, tmp_path: Path) -> None:
    old = profile_report()
    write_report(
        profile_report(environment=msgspec.structs.replace(old.environment, device="NVIDIA H200", torch="2.13.0")),
        tmp_path / "new.json",
    )
    shown = bcg("report", tmp_path / "new.json", "--against", saved, "--gate", "5")
    assert shown.code == 0
    assert shown.err.startswith(
        "warning: the two runs differ in more than what is measured: device: NVIDIA H100 80GB HBM3 before, NVIDIA H200 "
        "now; torch: 2.11.0+cu130 before, 2.13.0 now\nhint: compare runs of one device"
    )
    assert "runs differ" not in bcg("report", saved, "--against", saved).err


def test_a_gate_says_that_a_time_measured_once_is_not_judged(bcg, tmp_path: Path) -> None:
    write_report(gpu_report(), tmp_path / "c.json")
    shown = bcg("report", tmp_path / "c.json", "--against", tmp_path / "c.json", "--gate", "5")
    assert shown.code == 0
    assert shown.err == (
        "warning: the gate can't judge capture ms: measured once, so there is no spread to tell a change by\n"
    )


def test_a_regression_is_told_in_the_units_of_the_table(bcg, tmp_path: Path) -> None:
    old = gpu_report()
    grown = msgspec.structs.replace(old.totals, boundary_bytes=2 * old.totals.boundary_bytes)
    write_report(old, tmp_path / "old.json")
    write_report(gpu_report(totals=grown), tmp_path / "new.json")
    shown = bcg("report", tmp_path / "new.json", "--against", tmp_path / "old.json", "--gate", "5")
    assert shown.code == 3
    assert "worst: all buckets: boundary MiB 168.0 before, 336.0 now\n" in shown.err


def test_kinds_without_quantities_are_refused_with_a_hint(bcg, tmp_path: Path) -> None:
    assert bcg("capture", "--dry-run", "--tokens", "8", "--json", tmp_path / "p.json").code == 0
    shown = bcg("report", tmp_path / "p.json", "--against", tmp_path / "p.json")
    assert shown.code == 2
    assert shown.err.startswith("error: reports of kind plan have nothing to compare\nhint: give two of `bcg capture`")


def test_reports_of_two_kinds_are_not_compared(bcg, saved: Path, tmp_path: Path) -> None:
    write_report(gpu_report(), tmp_path / "c.json")
    shown = bcg("report", tmp_path / "c.json", "--against", saved)
    assert shown.code == 2
    assert shown.err.startswith("error: a capture report can't be compared with a profile report\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--gate", "5"), "error: --gate needs --against"),
        (("--against", "x.json", "--gate", "-1"), "error: --gate is a percentage from 0 to 1000, got -1"),
        (("--against", "x.json", "--gate", "nan"), "error: --gate is a percentage from 0 to 1000, got nan"),
        (("--against", "x.json", "--html", "x.html"), "error: --html makes the page of one report"),
    ],
)
def test_wrong_usage(bcg, saved: Path, words: tuple[str, ...], message: str) -> None:
    shown = bcg("report", saved, *words)
    assert shown.code == 2
    assert shown.err.startswith(message)


def _nested(depth: int) -> bytes:
    return b'{"kind": "profile", "schema_version": 1, "model": ' + b"[" * depth + b"]" * depth + b"}"


def _map_to_nowhere() -> bytes:
    content = json.loads(encode_report(profile_report()))
    content["map"] = ["segment:0", "break:99999"]
    return json.dumps(content).encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a whole report"),
        (encode_report(profile_report())[:-200], "is not a whole report"),
        (encode_report(profile_report()).replace(b'"schema_version": 1', b'"schema_version": 7'), "schema_version 7"),
        (encode_report(profile_report()).replace(b'"kind": "profile"', b'"kind": "<b>\\u001b[31m"'), "of kind '<b>"),
        (_nested(100_000), "is not a whole report"),
        (encode_report(profile_report()).replace(b'"p50_ms": 50.0', b'"p50_ms": "50"'), "does not fit its schema"),
        (_map_to_nowhere(), "does not fit its schema: `map` names break:99999"),
    ],
    ids=["empty", "cut", "schema", "kind", "nested", "value", "map"],
)
def test_a_strange_file_is_refused_in_one_line(bcg, tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "r.json"
    path.write_bytes(content)
    shown = bcg("report", path)
    assert shown.code == 1
    assert shown.out == ""
    (error, hint) = shown.err.splitlines()
    assert error.startswith("error: ") and message in error
    assert hint.startswith("hint: ")
    assert "\x1b" not in shown.err


def test_control_characters_of_a_report_do_not_reach_the_terminal(bcg, tmp_path: Path) -> None:
    report = gpu_report()
    content = encode_report(report).replace(b'"name": "qwen3-0.6b"', b'"name": "a\\u001b]0;owned\\u0007b"')
    (tmp_path / "r.json").write_bytes(content)
    shown = bcg("report", tmp_path / "r.json")
    assert shown.code == 0
    assert "\x1b" not in shown.out and "\x07" not in shown.out
    assert "a?]0;owned" in shown.out
