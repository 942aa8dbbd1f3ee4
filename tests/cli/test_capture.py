"""``bcg capture`` from the command line to table, file and exit code, on the host device."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bcg.report import read_report

OUT_OF_MEMORY_ABOVE_8 = """
import torch

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(10, 4)

    def forward(self, input_ids):
        if input_ids.shape[1] > {limit}:
            raise torch.OutOfMemoryError("tried to allocate 2.00 GiB")
        return self.embedding(input_ids).relu()

def make():
    print("a word of the user's")
    return Model()
"""

PRINTS_EVERYWHERE = """
import atexit, ctypes, os
import torch

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(10, 4)
        print("python")
        ctypes.CDLL(None).puts(b"a buffer of C")
        atexit.register(print, "the end")

    def forward(self, input_ids):
        os.write(1, b"descriptor\\n")
        return self.embedding(input_ids)
"""

SLEEPS_AT_CAPTURE = """
import sys, time
import torch

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(10, 4)

    def forward(self, input_ids):
        if input_ids.shape[1] == 24:
            print("asleep", file=sys.stderr, flush=True)
            time.sleep(60)
        return self.embedding(input_ids)
"""


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A model that has no memory for more than 16 tokens."""
    path = tmp_path / "model.py"
    path.write_text(OUT_OF_MEMORY_ABOVE_8.replace("{limit}", "16"))
    return f"{path}:make"


def test_the_default_model(bcg: Any) -> None:
    done = bcg("capture", "--device", "cpu")
    assert done.code == 0, done.err
    assert done.out.startswith("qwen3-tiny: Qwen3Model, ")
    assert "4 of 4" in done.out
    assert "layers.1–2: as layers.0" in done.out
    assert done.err == ""


def test_a_report_file_is_written_beside_the_table(bcg: Any, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")
    done = bcg("capture", "--device", "cpu", "--tokens", "12,4", "--seed", 3, "--break", "*.mlp", "--json", path)
    assert done.code == 0, done.err
    assert done.err == f"note: report written to {path}\n"
    report = read_report(path)
    assert {bucket.tokens for bucket in report.buckets} == {4, 12}
    assert {bucket.num_breaks for bucket in report.buckets} == {8}
    assert {row.source for row in report.breaks} == {"attention", "rule"}
    assert report.map_tokens == 12
    assert len(report.map) == report.buckets[0].num_segments + report.buckets[0].num_breaks
    assert report.options["break"] == ["*.mlp"]
    assert report.model.seed == 3
    assert os.listdir(tmp_path) == ["report.json"]


def test_with_a_dash_stdout_is_json_and_nothing_else(bcg: Any, model: str) -> None:
    done = bcg("capture", model, "--device", "cpu", "--tokens", "8", "--json", "-")
    assert done.code == 0, done.err
    assert json.loads(done.out)["kind"] == "capture"
    assert done.err == "a word of the user's\n"


def test_what_a_model_prints_past_python_does_not_reach_stdout(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(PRINTS_EVERYWHERE)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "bcg_cli", "capture", f"{tmp_path / 'model.py'}:Model", "--device", "cpu"]
    done = subprocess.run([*command, "--json", "-"], capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["kind"] == "capture"
    assert {"python", "a buffer of C", "the end", "descriptor"} <= set(done.stderr.splitlines())


def test_rows_are_whole_lines_in_a_pipe(bcg: Any, tmp_path: Path) -> None:
    name = "a_name_that_no_terminal_of_eighty_columns_holds_" * 2
    path = tmp_path / "model.py"
    path.write_text(OUT_OF_MEMORY_ABOVE_8.replace("{limit}", "16").replace("embedding", name))
    done = bcg("capture", f"{path}:make", "--device", "cpu", "--tokens", "8,32", "--break", name)
    assert done.code == 0, done.err
    (row,) = [line for line in done.out.splitlines() if line.startswith("break 0")]
    assert row.split() == ["break", "0", "rule", name, "(Embedding)"]


def test_a_bucket_without_memory_is_reported_and_the_others_are_captured(bcg: Any, model: str, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    done = bcg("capture", model, "--device", "cpu", "--tokens", "8,16,32", "--json", path)
    assert done.code == 0, done.err
    assert {bucket.tokens: bucket.status for bucket in read_report(path).buckets} == {
        8: "captured",
        16: "captured",
        32: "out of memory",
    }
    assert "32 tokens: tried to allocate 2.00 GiB" in done.out


def test_memory_for_no_bucket_at_all_is_a_failure(bcg: Any, model: str) -> None:
    done = bcg("capture", model, "--device", "cpu", "--tokens", "32,64")
    assert done.code == 1
    assert "0 of 2" in done.out
    assert "error: no bucket was captured: none fits into memory\nhint: give smaller --tokens\n" in done.err


def test_a_capture_of_breaks_alone_is_a_failure(bcg: Any, tmp_path: Path) -> None:
    """Rule 9."""
    path = tmp_path / "model.py"
    path.write_text(OUT_OF_MEMORY_ABOVE_8.replace("{limit}", "16").replace(".relu()", ""))
    words = ("capture", f"{path}:make", "--tokens", 4, "--break", "embedding")
    done = bcg(*words, "--device", "cpu")
    assert done.code == 1
    assert f"error: a capture of {path}:make holds no segment: everything in it runs as a break" in done.err
    assert bcg(*words, "--dry-run").code == 1


def test_expected_breaks(bcg: Any, model: str, tmp_path: Path) -> None:
    words = ["capture", "--device", "cpu", "--tokens", "4,8", "--expect-breaks"]
    assert bcg(*words, 4).code == 0
    path = tmp_path / "report.json"
    done = bcg(*words, 5, "--json", path)
    assert done.code == 3
    assert "error: expected 5 breaks in every bucket, got 4 at 8 tokens, 4 at 4 tokens\n" in done.err
    assert read_report(path).totals.num_captured == 2
    words = ["capture", model, "--device", "cpu", "--no-attention-break", "--expect-breaks", 0]
    assert bcg(*words, "--tokens", "4,8").code == 0
    done = bcg(*words, "--tokens", "8,32")
    assert done.code == 3
    assert "error: expected 0 breaks in every bucket, got out of memory at 32 tokens\n" in done.err


def test_ctrl_c_exits_130_and_leaves_no_half_file(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(SLEEPS_AT_CAPTURE)
    (tmp_path / "old.json").write_text("old")
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "bcg_cli", "capture", "model.py:Model"),
            *("--device", "cpu", "--tokens", "4,24", "--json", "old.json"),
        ],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    with process:
        assert process.stderr is not None
        for line in process.stderr:
            if line == "asleep\n":
                break
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (out, err) == ("", "note: old.json is not written: the capture was interrupted\ninterrupted\n")
    assert (tmp_path / "old.json").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["model.py", "old.json"]
