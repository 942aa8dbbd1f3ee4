"""Dry runs: from shapes alone, what a capture with weights comes to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from bcg.diagnose import UncapturableError
from bcg.errors import ModelError, UsageError
from bcg.gpus import find_gpu
from bcg.guesses import Guesses
from bcg.models import load_target
from bcg.models.shapes import load_shapes
from bcg.planning import UNKNOWN_MIXERS, plan
from bcg.report import PlanReport
from bcg.runner import GraphRunner
from bcg.sizes import MIB
from bcg.words import TargetWords


def plan_of(model: str, *buckets: int, **options: Any) -> PlanReport:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    return plan(load_shapes(TargetWords(model, **options), mode), mode, buckets, {})


@pytest.mark.parametrize("model", ["qwen3-tiny", "qwen3-moe-tiny", "deepseek-v3-tiny"])
def test_a_plan_has_the_steps_of_the_capture(model: str) -> None:
    found = plan_of(model, 8, 16, dtype="bfloat16")
    runner = GraphRunner(load_target(model, dtype="bfloat16"))
    runner.capture([16])
    graph = runner.graphs[16]
    assert (len(found.segments), len(found.breaks)) == (graph.num_segments, graph.num_breaks)
    assert [row.module for row in found.breaks] == [step.label.module for step in graph.breaks]
    assert [row.boundary_bytes for row in found.breaks] == [step.boundary_bytes for step in graph.breaks]
    assert found.segments[1].num_externals == len(graph.segments[1].tape.externals)
    assert found.map_tokens == 16
    assert len(found.map) == len(graph.steps)
    assert found.totals.weight_bytes >= found.model.weight_bytes
    assert [bucket.tokens for bucket in found.buckets] == [16, 8]


def test_memory_of_a_true_shape() -> None:
    """On an H200 (torch 2.11, bfloat16) the eager forward at 4096 tokens holds at most 418 MiB at once."""
    (bucket,) = plan_of("qwen3-8b", 4096).buckets
    assert bucket.used_bytes == pytest.approx(418 * MIB, rel=0.01)
    assert bucket.used_bytes <= bucket.pool_bytes <= 1.15 * bucket.used_bytes


def test_what_mixers_are_on_the_gpu_is_said_to_be_unknown() -> None:
    assert UNKNOWN_MIXERS in plan_of("nemotron-h-tiny", 8).unknown
    assert UNKNOWN_MIXERS not in plan_of("qwen3-tiny", 8).unknown


def test_no_weights_are_made() -> None:
    found = plan_of("qwen3-235b-a22b", 64)
    assert found.totals.weight_bytes > 400 * 2**30
    assert (len(found.segments), len(found.breaks)) == (95, 94)


def test_a_value_that_shapes_cannot_give_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.py"
    path.write_text(
        "import torch\n"
        "class Reads(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        "        return x * x.max().item()\n"
        "class Model(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.embedding = torch.nn.Embedding(10, 4)\n"
        "        self.reads = Reads()\n"
        "    def forward(self, input_ids):\n"
        "        return self.reads(self.embedding(input_ids))\n"
    )
    (row,) = plan_of(f"{path}:Model", 8).automatic_breaks
    assert (row.size, row.module, row.option, row.card.operation) == (
        "module",
        "reads",
        "--break 'reads'",
        "Tensor.item",
    )
    assert row.doubt
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with pytest.raises(UncapturableError, match=r"^.* can't be captured: Tensor.item at .*model.py:4: ") as caught:
        plan(load_shapes(TargetWords(f"{path}:Model"), mode), mode, [8], {}, auto_break=False)
    (card,) = caught.value.cards
    assert (card.module, card.operation, card.break_option) == ("reads", "Tensor.item", "--break 'reads'")


def test_a_model_that_copies_a_layer_is_planned_without_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "model.py"
    path.write_text(
        "import copy\n"
        "import torch\n"
        "def model():\n"
        "    layer = torch.nn.Linear(4, 4)\n"
        "    model = torch.nn.Sequential(layer, copy.deepcopy(layer))\n"
        "    return model, lambda n, device, generator: {'input': torch.rand(n, 4, device=device)}\n"
    )
    torch.set_warn_always(True)
    try:
        assert len(plan_of(f"{path}:model", 8).segments) == 1
    finally:
        torch.set_warn_always(False)


@pytest.mark.parametrize(("conversion", "dtype"), [("", "bfloat16"), (".half()", None), (".to(torch.float64)", None)])
def test_a_model_may_change_its_dtype(tmp_path: Path, conversion: str, dtype: str | None) -> None:
    path = tmp_path / "model.py"
    path.write_text(
        "import copy\n"
        "import torch\n"
        "def model():\n"
        "    layer = torch.nn.Linear(4, 4)\n"
        f"    model = torch.nn.Sequential(torch.nn.Embedding(10, 4), layer, copy.deepcopy(layer)){conversion}\n"
        "    return model, lambda n, device, generator: {'input': torch.randint(0, 10, (n,), device=device)}\n"
    )
    found = plan_of(f"{path}:model", 8, dtype=dtype)
    wanted = dtype or ("float64" if "64" in conversion else "float16")
    assert (found.model.dtype, len(found.segments)) == (wanted, 1)


def test_a_factory_that_needs_values_is_told_to_be_captured(tmp_path: Path) -> None:
    path = tmp_path / "model.py"
    path.write_text("import torch\ndef model():\n    return torch.nn.Linear(4, int(torch.rand(4).argmax()) + 1)\n")
    with pytest.raises(ModelError, match="in a dry run, without data$") as caught:
        plan_of(f"{path}:model", 8)
    assert str(caught.value.hint).endswith("a factory that needs values can only be captured, without --dry-run")


GUESSED = """
import torch
class Halves(torch.nn.Module):
    def forward(self, x):
        while x.abs().max() > 0.1:
            x = x * 0.5
        return x
class Guards(torch.nn.Module):
    def forward(self, x):
        if torch.isnan(x).any():
            raise ValueError("not a number")
        return x * 2
class Fails(torch.nn.Module):
    def forward(self, x):
        raise ValueError("planted")
class Model(torch.nn.Module):
    def __init__(self, reads):
        super().__init__()
        self.embedding = torch.nn.Embedding(1000, 64)
        self.reads = reads
    def forward(self, input_ids):
        return self.reads(self.embedding(input_ids))
def halves():
    return Model(Halves())
def guards():
    return Model(Guards())
def fails():
    return Model(Fails())
def plain():
    return Model(torch.nn.ReLU())
def on_meta():
    with torch.device("meta"):
        return plain()
"""


def test_conditions_that_are_guessed_end_loops_and_raise_no_errors(tmp_path: Path) -> None:
    path = tmp_path / "model.py"
    path.write_text(GUESSED)
    for name in ("halves", "guards"):
        (row,) = plan_of(f"{path}:{name}", 8).automatic_breaks
        assert (row.module, row.card.hazard) == ("reads", "L1")
    with pytest.raises(ModelError, match=r"fails on shapes alone at .*model.py:15: ValueError: planted$"):
        plan_of(f"{path}:fails", 8)


def test_a_model_without_values_is_planned_as_one_with_them(tmp_path: Path) -> None:
    path = tmp_path / "model.py"
    path.write_text(GUESSED)
    with_values, without = (plan_of(f"{path}:{name}", 8, 4096) for name in ("plain", "on_meta"))
    assert with_values.totals == without.totals
    assert with_values.totals.pool_bytes > 2**20
    with pytest.raises(ModelError, match="returned 1 parameters and buffers on the meta device"):
        load_target(f"{path}:on_meta")


SCORES = """
from torch import nn


class Scores(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Embedding(16, 8), nn.Linear(8, 8))

    def forward(self, input_ids):
        rows = super().forward(input_ids)
        return {returned}
"""


@pytest.mark.parametrize(
    ("returned", "refused"),
    [
        ("rows @ rows.transpose(1, 2)", "the token dimension of output 0 of .*Scores is ambiguous: asked for 8 and 16"),
        ("rows, rows.repeat(1, 2, 1)", "the token dimension of output 1 of .*Scores is ambiguous: asked for 8 and 16"),
        ("rows.mean(1)", "no output of .*Scores grows with the number of tokens"),
        ("list(rows.unbind(1))", "the forward of .*Scores returns more tensors for more tokens"),
    ],
)
def test_outputs_that_a_capture_refuses_are_refused_by_a_plan(tmp_path: Path, returned: str, refused: str) -> None:
    (tmp_path / "model.py").write_text(SCORES.format(returned=returned))
    model = f"{tmp_path / 'model.py'}:Scores"
    with pytest.raises(ModelError, match=refused):
        load_target(model, device="cpu")
    with pytest.raises(ModelError, match=refused):
        plan_of(model, 8)


def test_a_break_that_the_forward_never_calls_is_refused() -> None:
    with pytest.raises(UsageError, match="^--break 'os.path:join' is no break of qwen3-tiny"):
        plan_of("qwen3-tiny", 8, break_globs=("os.path:join",))


def test_guesses_have_the_shapes_of_values() -> None:
    """Every entry counts, as it does in these tensors of ones."""

    def ask(x: Tensor) -> list[Any]:
        mask = x > 0
        return [
            x.nonzero(),
            *torch.where(mask),
            x[mask],
            x[:, mask[0]],
            x.masked_select(mask),
            x.int().flatten().bincount(minlength=4),
            x.flatten().repeat_interleave(x.flatten().int()),
            x.sum().item() > 0,
            bool(mask.all()),
            torch.equal(x, x),
            x.int().tolist(),
        ]

    with torch.inference_mode(), FakeTensorMode(), Guesses():
        guessed = ask(torch.ones(2, 3))
        unique = torch.unique(torch.ones(2, 3), return_inverse=True, return_counts=True)
    assert [list(each.shape) for each in unique] == [[6], [2, 3], [6]]
    for guess, value in zip(guessed, ask(torch.ones(2, 3)), strict=True):
        if isinstance(value, Tensor):
            assert (guess.shape, guess.dtype) == (value.shape, value.dtype)
        else:
            assert guess == value


def test_gpus() -> None:
    assert find_gpu("H200-141GB") == ("h200-141gb", 141 * 10**9)
    assert find_gpu("2GiB") == ("2GiB", 2 * 2**30)
    with pytest.raises(UsageError, match="^unknown GPU 'h300'$"):
        find_gpu("h300")


def test_weights_that_share_memory_count_once() -> None:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    target = load_shapes(TargetWords("qwen3-tiny"), mode)
    before = plan(target, mode, (8,), {}).totals.weight_bytes
    module: Any = target.module
    with mode:
        module.again = torch.nn.Parameter(module.embed_tokens.weight[:4])
    assert plan(target, mode, (8,), {}).totals.weight_bytes == before


def test_boundaries_grow_with_the_tokens() -> None:
    large, small = plan_of("qwen3-tiny", 16, 8).buckets
    assert large.boundary_bytes == 2 * small.boundary_bytes > 0
