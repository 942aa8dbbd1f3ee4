"""The report file: written whole or not at all, and read with checks."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path

import msgspec
import pytest

from bcg.errors import ReportError, UsageError
from bcg.report import (
    SCHEMA_VERSION,
    BreakRow,
    CaptureBucket,
    CaptureReport,
    CaptureTotals,
    Environment,
    ModelInfo,
    ReportWarning,
    SegmentRow,
    check_output_path,
    decode_report,
    encode_report,
    read_report,
    write_report,
)


@pytest.fixture
def report() -> CaptureReport:
    return CaptureReport(
        environment=Environment(
            device="host", device_type="cpu", torch="2.13.0", transformers="5.17.0", bcg="0.1.0", python="3.11.7"
        ),
        model=ModelInfo(
            name="qwen3-tiny",
            source="preset",
            architecture="Qwen3Model",
            num_parameters=1000,
            weight_bytes=4000,
            dtype="float32",
            seed=0,
            weights="random",
        ),
        options={"tokens": [4, 8], "break": ["*.mlp"], "attention_break": True, "dtype": None},
        buckets=[
            CaptureBucket(tokens=4, status="captured", num_segments=2, num_breaks=1),
            CaptureBucket(tokens=8, status="out of memory", error="asked for 2 GiB"),
        ],
        totals=CaptureTotals(num_captured=1, capture_ms=1.5, pool_bytes=64, driver_bytes=0, boundary_bytes=16),
        map_tokens=4,
        map=["segment:0", "break:0", "segment:1"],
        segments=[SegmentRow(index=i, modules=["layers.0"], num_operations=3, kernels={"mm": 2}) for i in (0, 1)],
        breaks=[BreakRow(index=0, name="attention", module="layers.0.attn", source="attention")],
        warnings=[ReportWarning(code="W1", message="m", cause="c", remedy="r")],
    )


def test_what_is_written_is_read_back(report: CaptureReport, tmp_path: Path) -> None:
    write_report(report, tmp_path / "report.json")
    assert read_report(tmp_path / "report.json") == report


def test_the_file_is_indented_json_that_begins_with_its_kind(report: CaptureReport) -> None:
    content = encode_report(report)
    assert content.startswith(b'{\n  "kind": "capture",\n  "schema_version": 1,\n')
    assert content.endswith(b"}\n")
    assert json.loads(content)["buckets"][1]["status"] == "out of memory"


def test_strings_that_are_more_than_strings_are_written_as_strings(report: CaptureReport) -> None:
    class Version(str):
        __slots__ = ()

    environment = msgspec.structs.replace(report.environment, torch=Version("2.13.0"))
    assert encode_report(msgspec.structs.replace(report, environment=environment)) == encode_report(report)


def test_the_keys_of_the_file_are_frozen(report: CaptureReport) -> None:
    content = json.loads(encode_report(report))
    assert list(content) == [
        *("kind", "schema_version", "environment", "model", "options", "buckets", "totals"),
        *("map_tokens", "map", "segments", "breaks", "warnings"),
        *("ranks", "automatic_breaks", "cards", "workload"),
    ]
    assert list(content["buckets"][0]) == [
        *("tokens", "status", "num_segments", "num_breaks", "num_kernels", "warmup_ms", "capture_ms"),
        *("pool_bytes", "driver_bytes", "boundary_bytes", "eager_peak_bytes", "error"),
    ]


def test_a_file_that_is_there_is_replaced_whole(report: CaptureReport, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")
    write_report(report, path)
    assert read_report(path) == report
    assert os.listdir(tmp_path) == ["report.json"]


def test_the_old_file_stays_when_writing_fails(
    report: CaptureReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "report.json"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(ReportError, match="^cannot write report .*report.json: No space left on device$"):
        write_report(report, path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["report.json"]


def test_ctrl_c_while_writing_leaves_no_half_file(
    report: CaptureReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_report(report, tmp_path / "report.json")
    assert os.listdir(tmp_path) == []


def test_a_link_is_written_through(report: CaptureReport, tmp_path: Path) -> None:
    target, link = tmp_path / "target.json", tmp_path / "link.json"
    target.write_text("old")
    link.symlink_to(target)
    write_report(report, link)
    assert link.is_symlink()
    assert read_report(target) == report


def test_a_missing_report(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="^cannot read report .*none.json: No such file or directory$"):
        read_report(tmp_path / "none.json")


def test_a_folder_is_no_report(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="^cannot read report .*: Is a directory$"):
        read_report(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "^r is not a whole report: Input data was truncated$"),
        (b'{"kind": "capture", "schema_ver', "^r is not a whole report: Input data was truncated$"),
        (b"\xff\xfe\x00", "^r is not a whole report: "),
        (b"[1, 2]", "^r is not a whole report: Expected `object`, got `array`$"),
        (b"{}", "^r is not a bcg report: it has no kind and schema_version$"),
        (b'{"kind": "capture", "schema_version": 2}', "^r has schema_version 2, expected 1$"),
        (b'{"kind": "recipe", "schema_version": 1}', "^r is a report of kind 'recipe', expected one of: capture"),
        (b'{"kind": "capture", "schema_version": 1}', "^r does not fit its schema: Object missing required field"),
        (b'{"x": ' + b"[" * 100_000, "^r is not a whole report: "),
    ],
)
def test_a_strange_file_is_refused_in_one_line(content: bytes, message: str) -> None:
    with pytest.raises(ReportError, match=message) as caught:
        decode_report(content, name="r")
    assert "\n" not in caught.value.message
    assert caught.value.hint


def test_a_wrong_value_is_named(report: CaptureReport) -> None:
    content = encode_report(report).replace(b'"out of memory"', b'"lost"')
    with pytest.raises(ReportError, match=r"Invalid enum value 'lost' - at `\$.buckets\[1\].status`$"):
        decode_report(content)


def test_a_cut_file_is_refused_wherever_it_was_cut(report: CaptureReport) -> None:
    content = encode_report(report)
    for end in range(0, len(content) - 2, 97):
        with pytest.raises(ReportError):
            decode_report(content[:end])


def test_unknown_keys_of_the_same_schema_are_passed_over(report: CaptureReport) -> None:
    content = json.loads(encode_report(report))
    content["extra"] = {"more": 1}
    assert decode_report(json.dumps(content).encode()) == report
    assert content["schema_version"] == SCHEMA_VERSION


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "huge.json"
    with open(path, "wb") as file:
        file.truncate(300 * 2**20)
    with pytest.raises(ReportError, match="^.*huge.json has 314,572,800 bytes, a report has at most"):
        read_report(path)


def test_an_output_path_is_checked_before_the_work(tmp_path: Path) -> None:
    check_output_path(tmp_path / "new.json")
    (tmp_path / "old.json").write_text("old")
    check_output_path(tmp_path / "old.json")
    with pytest.raises(UsageError, match="^cannot write .*: there is no folder .*none$"):
        check_output_path(tmp_path / "none" / "new.json")
    with pytest.raises(UsageError, match="^cannot write .*: it is there already and is not a file$"):
        check_output_path(tmp_path)
    with pytest.raises(UsageError, match="^cannot write /dev/null: it is there already and is not a file$"):
        check_output_path("/dev/null")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_leave_to_write_is_found(tmp_path: Path) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(UsageError, match="^cannot write .*: folder .* is not writable$"):
        check_output_path(tmp_path / "new.json")
