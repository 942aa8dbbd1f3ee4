from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from torch import nn

from bcg import rules
from bcg.breaks import BreakLabel
from bcg.context import ForwardContext, forward_context
from bcg.errors import ReplayError, UsageError
from bcg.models import load_target
from bcg.rules import break_mixers, break_modules, unbreak_modules
from bcg.whereabouts import source_line_of


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight


class RunningSum(nn.Module):
    """A recurrent mixer in one line: each row is the sum of all before it."""

    def forward(self, hidden_states: torch.Tensor, cache_params: Any = None) -> torch.Tensor:
        return hidden_states.cumsum(1)


class ShortConvolution(nn.Module):
    """A mixer as transformers 5.24 writes it: any cache is called ``cache``, and the class says what it keeps."""

    def forward(self, hidden_states: torch.Tensor, cache: Any = None) -> torch.Tensor:
        return self.convolve(hidden_states, cache)

    def convolve(self, hidden_states: torch.Tensor, cache: Any) -> torch.Tensor:
        if cache is not None:
            hidden_states = cache.update_conv_state(hidden_states, 0)
        return hidden_states.cumsum(1)


class KeyValues(nn.Module):
    def forward(self, hidden_states: torch.Tensor, cache: Any = None) -> torch.Tensor:
        return hidden_states if cache is None else cache.update(hidden_states)


class Wrapper(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mixer = RunningSum()

    def forward(self, hidden_states: torch.Tensor, cache_params: Any = None) -> torch.Tensor:
        return self.mixer(hidden_states, cache_params=cache_params)


@pytest.fixture
def labels(monkeypatch: pytest.MonkeyPatch) -> list[BreakLabel]:
    seen: list[BreakLabel] = []

    def recording(function: Any, args: Any, kwargs: Any, label: BreakLabel) -> Any:
        seen.append(label)
        return function(*args, **kwargs)

    monkeypatch.setattr(rules, "call_break", recording)
    return seen


@pytest.mark.parametrize("globs", [(), ("mixer",)])
def test_the_line_of_a_break_is_that_of_the_modules_own_forward(
    globs: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, lines = Wrapper(), []
    own = source_line_of(RunningSum.forward)
    monkeypatch.setattr(rules, "call_break", lambda function, *_: lines.append(source_line_of(function)))
    if globs:
        break_modules(root, globs)
    else:
        break_mixers(root)
    root(torch.ones(1, 2, 1))
    assert own and lines == [own]


@pytest.mark.parametrize(
    ("glob", "paths"),
    [
        ("*.mlp.experts", [f"layers.{index}.mlp.experts" for index in range(4)]),
        ("Qwen3MoeSparseMoeBlock", [f"layers.{index}.mlp" for index in range(4)]),
        ("layers.[02].mlp", ["layers.0.mlp", "layers.2.mlp"]),
        ("norm", ["norm"]),
    ],
)
def test_globs_match_paths_and_class_names(glob: str, paths: list[str], labels: list[BreakLabel]) -> None:
    target = load_target("qwen3-moe-tiny", break_globs=[glob])
    assert target.break_rules.globs == {glob: tuple(paths)}
    labels.clear()
    target({"input_ids": torch.arange(4)[None], "position_ids": torch.arange(4)[None]})
    assert [label.module for label in labels] == paths
    assert {label.source for label in labels} == {"rule"}


def test_a_rule_changes_no_output() -> None:
    inputs = {"input_ids": torch.arange(6)[None], "position_ids": torch.arange(6)[None]}
    plain = load_target("qwen3-tiny")
    broken = load_target("qwen3-tiny", break_globs=["*.mlp", "Qwen3RMSNorm"])
    assert torch.equal(plain(inputs), broken(inputs))


@pytest.mark.parametrize(
    ("glob", "near"),
    [("*.mpl", "*.mlp"), ("Qwen3MLPP", "Qwen3MLP"), ("layers.9.mlp", "layers.0.mlp"), ("attn", "*.self_attn")],
)
def test_a_glob_that_matches_nothing_lists_near_names(glob: str, near: str) -> None:
    with pytest.raises(UsageError, match=r"^--break '.*' matches no module") as caught:
        load_target("qwen3-tiny", break_globs=[glob])
    assert near in (caught.value.hint or "")


def test_a_glob_like_nothing_lists_class_names() -> None:
    with pytest.raises(UsageError) as caught:
        break_modules(nn.Sequential(Scale()), ["zzzzzz"])
    assert caught.value.hint == "class names: Scale"


def test_wrapping_is_on_the_instance_only() -> None:
    root = nn.ModuleDict({"one": Scale(), "two": Scale()})
    before = Scale.forward
    break_modules(root, ["one"])
    assert "forward" in vars(root["one"])
    assert "forward" not in vars(root["two"])
    assert Scale.forward is before
    assert root["one"](torch.ones(1)).item() == 2


@pytest.mark.parametrize("called", ["forward", "_compiled_call_impl"])
def test_a_module_that_is_no_break_any_more_calls_what_it_called_before(called: str) -> None:
    root = nn.Sequential(Scale(), Scale())
    setattr(root[0], called, lambda x: x * 5)
    break_modules(root, ["*"])
    unbreak_modules(root, ["0", "1", "1"])
    assert "forward" not in vars(root[1])
    assert root(torch.ones(1)).item() == 10


def test_a_dropped_model_is_freed_without_the_cycle_collector() -> None:
    root = Wrapper()
    break_mixers(root)
    break_modules(root, ["*"])
    assert root(torch.ones(1, 3, 1)).flatten().tolist() == [1, 2, 3]
    alive = weakref.ref(root.mixer)
    gc.disable()
    try:
        del root
        assert alive() is None
    finally:
        gc.enable()


def test_only_innermost_mixers_are_broken() -> None:
    root = nn.ModuleList([Wrapper(), Scale()])
    assert break_mixers(root) == ("0.mixer",)


def test_a_class_that_keeps_recurrent_state_is_a_mixer_and_one_that_keeps_keys_is_not() -> None:
    root = nn.Sequential(ShortConvolution(), KeyValues())
    assert break_mixers(root) == ("0",)


def test_a_mixer_runs_each_request_on_its_own(labels: list[BreakLabel]) -> None:
    root = Wrapper()
    break_mixers(root)
    rows = torch.ones(1, 8, 1)
    with forward_context(ForwardContext((3, 1, 2))):
        assert root(rows).flatten().tolist() == [1, 2, 3, 1, 1, 2, 0, 0]
    assert root(rows).flatten().tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert labels == [BreakLabel("RunningSum", "mixer", "mixer")] * 2


def test_a_mixer_refuses_a_context_larger_than_its_rows() -> None:
    root = Wrapper()
    break_mixers(root)
    with forward_context(ForwardContext((9,))), pytest.raises(ReplayError, match="^the forward context"):
        root(torch.ones(1, 8, 1))


@pytest.mark.parametrize("keeps_the_original", [True, False])
def test_a_deep_copy_runs_its_own_modules(keeps_the_original: bool) -> None:
    root = nn.Sequential(Scale(), Scale())
    break_modules(root, ["1"])
    copied = copy.deepcopy(root)
    with torch.no_grad():
        copied[1].weight.fill_(5.0)
    if not keeps_the_original:
        del root
        gc.collect()
    assert copied(torch.ones(1)).tolist() == [10.0]
    unbreak_modules(copied, ["1"])
    assert "forward" not in vars(copied[1])
