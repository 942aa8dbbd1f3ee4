"""``bcg capture --dry-run`` from the command line to table, file, page and exit code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from bcg.report import CaptureReport, PlanReport, read_report
from bcg.sizes import format_size
from tests.cli.test_html import text_of


def test_a_plan_from_shapes_alone(bcg: Any, tmp_path: Path) -> None:
    path, page = tmp_path / "plan.json", tmp_path / "plan.html"
    words = ("capture", "qwen3-0.6b", "--dry-run", "--gpu", "h100-80gb", "--expect-breaks", 28)
    done = bcg(*words, "--json", path, "--html", page)
    assert done.code == 0, done.err
    report = read_report(path)
    assert isinstance(report, PlanReport)
    assert [bucket.tokens for bucket in report.buckets] == [4096, 2048, 1024, 512, 256, 128, 64, 32, 16]
    assert report.totals.fits
    assert "fits h100-80gb, which has 74.51 GiB." in done.out
    assert "Map of 4,096 tokens: 29 segments and 28 breaks in order" in done.out
    assert "input_ids     int64 [1, tokens]" in done.out
    num_operations = report.segments[0].num_operations
    assert num_operations in (73, 86), "transformers 5.24 and 5.17"
    of_segment = f"{num_operations} operations"
    assert re.search(rf"^segment 0 +{of_segment}  10 externals, 304.82 MiB +embed_tokens", done.out, re.MULTILINE)
    assert re.search(r"^break 0 +attention +boundary 16.00 MiB +layers.0.self_attn", done.out, re.MULTILINE)
    assert "A dry run can't know" in done.out
    assert "<title>qwen3-0.6b: dry run</title>" in page.read_text()
    assert "<b>fits</b><span>on h100-80gb</span>" in page.read_text()
    assert "<code>bcg replay-check</code> tells" in page.read_text()
    text = text_of(report)
    assert "596.05 million bfloat16 weights, none loaded no GPU, no data" in text
    assert "random weights" not in text and report.environment.device not in text
    tiles = [format_size(size) for size in (report.totals.weight_bytes, report.totals.input_bytes)]
    assert f"{tiles[0]} weights {tiles[1]} static inputs" in text
    assert "input_ids int64 [1, tokens] 32.00 KiB" in text
    assert f"segment 0 {of_segment} 10 externals, 304.82 MiB embed_tokens" in text
    assert "break 0 attention boundary 16.00 MiB layers.0.self_attn" in text
    again = bcg("report", path)
    assert again.out == done.out


def test_a_broken_map_is_refused_in_words(bcg: Any, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    assert bcg("capture", "--dry-run", "--tokens", "8", "--json", path).code == 0
    path.write_text(path.read_text().replace('"segment:0"', '"segment:99"'))
    shown = bcg("report", path)
    assert shown.code == 1
    assert "does not fit its schema: `map` names segment:99, which is not among its segments" in shown.err


def test_what_does_not_fit_fails(bcg: Any) -> None:
    done = bcg("capture", "qwen3-tiny", "--dry-run", "--tokens", "8", "--gpu", "100kB")
    assert done.code == 3
    assert "doesn't fit 100kB" in done.out
    assert done.err.startswith("error: qwen3-tiny doesn't fit 100kB: it needs ")
    done = bcg("capture", "qwen3-tiny", "--dry-run", "--tokens", "8", "--expect-breaks", 5)
    assert (done.code, done.err) == (3, "error: expected 5 breaks, got 4\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--gpu", "h100-80gb"), "--gpu is about a plan"),
        (("--dry-run", "--gpu", "h300"), "unknown GPU 'h300'"),
        (("--memory-budget", "1GiB"), "--memory-budget chooses buckets for a workload, and there is none"),
    ],
)
def test_wrong_words(bcg: Any, words: tuple[str, ...], message: str) -> None:
    done = bcg("capture", *words)
    assert done.code == 2
    assert done.err.startswith(f"error: {message}\n")


READS = """
import torch

class Reads(torch.nn.Module):
    def forward(self, x):
        hits = (x[0, :, 0] > 0).nonzero()
        for row in hits[:4]:
            x = x.index_add(1, row, x[:, row])
        return x * x.max().item() if x[0, 0, 0] > 0 else x

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(10, 4)
        self.reads = Reads()
        self.out = torch.nn.Linear(4, 4)

    def forward(self, input_ids):
        return self.out(self.reads(self.embedding(input_ids)))
"""


@pytest.mark.parametrize("words", [("--break", "reads"), ()], ids=["explicit", "automatic"])
def test_what_reads_values_is_planned_as_a_break(bcg: Any, tmp_path: Path, words: tuple[str, ...]) -> None:
    model, steps, page = tmp_path / "model.py", tmp_path / "steps", tmp_path / "page.html"
    model.write_text(READS)
    steps.write_text("5\n6\n17\n")
    command = ("capture", f"{model}:Model", "--dry-run", *words, "--expect-breaks", 1)
    done = bcg(*command, "--workload", steps, "--memory-budget", "1GiB", "--html", page)
    assert done.code == 0, done.err
    assert "Map of 17 tokens: 2 segments and 1 break in order" in done.out
    assert ("Automatic breaks, not verified: a dry run replays nothing" in done.out) == (not words)
    assert ("not verified: a dry run replays nothing" in page.read_text()) == (not words)
    failed = bcg(*command, "--no-auto-break", "--tokens", 8)
    assert failed.code == (0 if words else 1)
    assert bool(words) or "can't be captured: aten.nonzero.default at " in failed.err


def test_buckets_within_a_budget_of_memory(bcg: Any, tmp_path: Path) -> None:
    steps, path = tmp_path / "steps", tmp_path / "report.json"
    steps.write_text("5\n6\n17\n")
    words = ("capture", "--device", "cpu", "--workload", steps, "--memory-budget")
    done = bcg(*words, "8MiB", "--json", path)
    assert done.code == 0, done.err
    report = read_report(path)
    assert isinstance(report, CaptureReport)
    chosen, ladder = report.workload
    assert len(chosen.buckets) == 2
    assert chosen.memory_bytes is not None
    assert ladder.memory_bytes is not None
    assert chosen.memory_bytes <= 8 * 2**20 < ladder.memory_bytes
    done = bcg(*words, "1kB")
    assert done.code == 2
    assert "a memory budget of 1,000 B holds no bucket" in done.err


def test_a_plan_says_what_its_buckets_do_to_the_workload(bcg: Any, tmp_path: Path) -> None:
    workload = tmp_path / "steps"
    workload.write_text("5\n7\n17\n17\n33\n")
    words = ("--dry-run", "--workload", workload, "--buckets", 2)
    done = bcg("capture", "qwen3-tiny", *words, "--html", tmp_path / "page.html")
    assert done.code == 0, done.err
    assert "Workload of 5 steps" in done.out
    assert "--tokens 33,17" in done.out or "--tokens 17,33" in done.out
    assert "<h2>Workload</h2>" in (tmp_path / "page.html").read_text()


def test_fewest_breaks_can_not_be_planned(bcg: Any) -> None:
    done = bcg("capture", "qwen3-tiny", "--dry-run", "--fewest-breaks")
    assert (done.code, done.err) == (2, "error: --fewest-breaks needs replays, and a dry run has none\n")
