"""``bcg capture`` with automatic breaks, and with buckets for a workload."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bcg.report import CaptureReport, CheckReport, ProfileReport, read_report

READS_DEEP_INSIDE = """
import torch

class Inner(torch.nn.Module):
    def __init__(self, reads):
        super().__init__()
        self.reads = reads

    def forward(self, x):
        return x / (1 + x[0, 0].abs().max().item()) if self.reads else x * 2

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(10, 4)
        self.layers = torch.nn.ModuleList(torch.nn.Sequential(Inner(index == 1)) for index in range(3))

    def forward(self, input_ids):
        x = self.embedding(input_ids)
        for layer in self.layers:
            x = layer(x)
        return x
"""


SIXTEEN_POSITIONS = """
import torch

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(10, 4)
        self.positions = torch.nn.Embedding(16, 4)

    def forward(self, input_ids, position_ids):
        return self.embedding(input_ids) + self.positions(position_ids)
"""


@pytest.fixture
def short(tmp_path: Path) -> str:
    """A model of 16 positions."""
    path = tmp_path / "short.py"
    path.write_text(SIXTEEN_POSITIONS)
    return f"{path}:Model"


@pytest.fixture
def model(tmp_path: Path) -> str:
    path = tmp_path / "model.py"
    path.write_text(READS_DEEP_INSIDE)
    return f"{path}:Model"


def test_one_read_deep_inside_gives_one_break_around_the_right_module(bcg: Any, model: str, tmp_path: Path) -> None:
    path, page = tmp_path / "report.json", tmp_path / "report.html"
    words = ("capture", model, "--device", "cpu", "--tokens", "4,8", "--expect-breaks", 1)
    done = bcg(*words, "--json", path, "--html", page)
    assert done.code == 0, done.err
    assert "Nobody asked for these; replays of full buckets with other inputs showed them right." in page.read_text()
    report = read_report(path)
    assert isinstance(report, CaptureReport)
    (row,) = report.breaks
    assert (row.module, row.source) == ("layers.1.0", "automatic")
    (found,) = report.automatic_breaks
    assert (found.size, found.module, found.option) == ("module", "layers.1.0", "--break 'layers.1.0'")
    assert "Automatic breaks, verified by replays of full buckets with other inputs" in done.out
    assert "--break 'layers.1.0'" in done.out
    assert "@bcg.eager_on_graph  # above forward at " in done.out
    explicit = bcg(*words, "--break", "layers.1.0")
    assert explicit.code == 0
    assert "Automatic breaks" not in explicit.out


def test_a_profile_measures_the_breakable_mode_with_them(bcg: Any, model: str, tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    words = ("profile", model, "--device", "cpu", "--tokens", "8", "--modes", "eager,breakable", "--rounds", 1)
    done = bcg(*words, "--json", path)
    assert done.code == 0, done.err
    report = read_report(path)
    assert isinstance(report, ProfileReport)
    (bucket,) = report.buckets
    assert [row.status for row in bucket.modes] == ["measured", "measured"]


def test_a_check_tells_the_automatic_breaks_that_it_was_made_with(bcg: Any, model: str, tmp_path: Path) -> None:
    path, page = tmp_path / "report.json", tmp_path / "report.html"
    words = ("replay-check", model, "--device", "cpu", "--tokens", "4,8", "--auto-break")
    done = bcg(*words, "--json", path, "--html", page)
    assert done.code == 0, done.err
    report = read_report(path)
    assert isinstance(report, CheckReport)
    (found,) = report.automatic_breaks
    assert (found.card.hazard, found.option) == ("L1", "--break 'layers.1.0'")
    assert "Automatic breaks, verified by replays of full buckets with other inputs" in done.out
    assert "Nobody asked for these; replays of full buckets with other inputs showed them right." in page.read_text()


def test_without_automatic_breaks_the_card_says_what_to_do(bcg: Any, model: str) -> None:
    done = bcg("capture", model, "--device", "cpu", "--tokens", "4", "--no-auto-break")
    assert done.code == 1
    assert done.out == ""
    card, error = done.err.split("error: ")
    assert card.startswith("L1 item() reads it\n")
    assert "operation" in card
    assert "Tensor.item" in card
    assert "in layers.1.0" in card
    assert "--break 'layers.1.0'" in card
    assert error.startswith("bucket of 4 tokens: the host reads a device value")


def test_the_report_of_a_failed_capture_keeps_its_card(bcg: Any, model: str, tmp_path: Path) -> None:
    path, page = tmp_path / "report.json", tmp_path / "report.html"
    words = ("capture", model, "--device", "cpu", "--tokens", "4", "--no-auto-break")
    done = bcg(*words, "--json", path, "--html", page)
    assert (done.code, done.out) == (1, "")
    assert done.err.count("L1 item() reads it") == 1
    report = read_report(path)
    assert isinstance(report, CaptureReport)
    assert [(row.tokens, row.status) for row in report.buckets] == [(4, "failed")]
    assert [(card.hazard, card.break_option) for card in report.cards] == [("L1", "--break 'layers.1.0'")]
    assert "item() reads it" in page.read_text()
    assert "0 of 1" in bcg("report", path).out


def test_a_report_that_is_not_written_is_said_so(bcg: Any, model: str, tmp_path: Path) -> None:
    script = Path(model.rpartition(":")[0])
    script.write_text(script.read_text().replace("return x\n", "return x * x.sum().item()\n"))
    path = tmp_path / "report.json"
    done = bcg("capture", model, "--device", "cpu", "--tokens", "4", "--json", path)
    assert (done.code, path.exists()) == (1, False), done.err
    assert f"note: {path} is not written: no capture was begun\n" in done.err


def test_fewest_breaks_leaves_attention_out_where_that_is_right(bcg: Any) -> None:
    words = ("capture", "--device", "cpu", "--tokens", "4,8", "--expect-breaks")
    assert bcg(*words, 4).code == 0
    assert bcg(*words, 0, "--fewest-breaks").code == 0
    done = bcg("capture", "--fewest-breaks", "--no-auto-break")
    assert (done.code, done.err) == (
        2,
        "error: --fewest-breaks needs --auto-break: it tries which breaks are needed\n",
    )


def test_a_function_as_a_break(bcg: Any) -> None:
    name = "transformers.models.qwen3.modeling_qwen3:apply_rotary_pos_emb"
    words = ("capture", "--device", "cpu", "--tokens", "4", "--no-attention-break")
    assert bcg(*words, "--break", name, "--expect-breaks", 4).code == 0
    for wrong in ("nowhere:f", "math:nothing", "math:pi"):
        done = bcg(*words, "--break", wrong)
        assert done.code == 2
        assert f"--break {wrong!r}" in done.err
    done = bcg(*words, "--break", "transformers.models.gemma.modeling_gemma:rotate_half")
    assert done.code == 2
    assert "its forward never calls that function" in done.err


def test_buckets_for_a_workload(bcg: Any, tmp_path: Path) -> None:
    steps = tmp_path / "steps"
    steps.write_text("5\n5\n6\n17\n")
    path = tmp_path / "report.json"
    words = ("capture", "--device", "cpu", "--workload", steps)
    done = bcg(*words, "--buckets", 2, "--json", path)
    assert done.code == 0, done.err
    report = read_report(path)
    assert isinstance(report, CaptureReport)
    assert [bucket.tokens for bucket in report.buckets] == [17, 6]
    assert report.options["buckets"] == 2
    chosen, ladder = report.workload
    assert (chosen.padded_tokens, chosen.replayed_steps, chosen.num_steps) == (2, 4, 4)
    assert (ladder.name, ladder.padded_tokens, ladder.used_buckets) == ("engines' ladder", 3 + 3 + 2 + 3, 2)
    assert "Workload of 4 steps" in done.out
    assert "--tokens 6,17" in done.out


def test_default_buckets_of_a_profile_are_those_that_the_model_takes(bcg: Any, short: str, tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    done = bcg("profile", short, "--device", "cpu", "--modes", "eager", "--rounds", 1, "--json", path)
    assert done.code == 0, done.err
    report = read_report(path)
    assert report.options["tokens"] == [4, 8, 16]


@pytest.mark.parametrize("budget", [(), ("--memory-budget", "1GiB")])
@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_steps_beyond_what_the_model_takes_are_left_to_eager(
    bcg: Any, short: str, tmp_path: Path, budget: tuple[str, ...], dry: tuple[str, ...]
) -> None:
    steps, path = tmp_path / "steps", tmp_path / "report.json"
    steps.write_text("5\n9\n40\n")
    done = bcg("capture", short, "--device", "cpu", "--workload", steps, *budget, *dry, "--json", path)
    assert done.code == 0, done.err
    report = read_report(path)
    assert [bucket.tokens for bucket in report.buckets] == [9, 5]
    assert (
        "note: 1 of 3 steps of the workload have more than 16 tokens, the most that the model takes in one request: "
        "no bucket holds them, they run eagerly\n" in done.err
    )
    steps.write_text("40\n")
    done = bcg("capture", short, "--device", "cpu", "--workload", steps, *budget, *dry)
    assert done.code == 2
    assert done.err.startswith("error: no step of the workload has at most 16 tokens\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--workload", "none.txt"), "cannot read workload none.txt: No such file or directory"),
        (("--workload", "none.txt", "--tokens", "4"), "--tokens and --workload both say which buckets"),
        (("--buckets", "4"), "--buckets chooses buckets for a workload, and there is none"),
    ],
)
def test_wrong_words_about_buckets(bcg: Any, words: tuple[str, ...], message: str) -> None:
    done = bcg("capture", *words)
    assert done.code == 2
    assert done.err.startswith(f"error: {message}\n")
