"""Automatic breaks: a planted fault each, the smallest break that helps, and replays that show it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from bcg.checking import verify
from bcg.diagnose import Diagnosis, UncapturableError, break_where_needed, failures_explained
from bcg.errors import CaptureError
from bcg.runner import GraphRunner
from tests.diagnose import models
from tests.diagnose.models import Model, target_of
from tests.targets import own_target

BUCKETS = (4, 8)


def captured(module: torch.nn.Module, device: str) -> tuple[Diagnosis, GraphRunner]:
    target = target_of(module, device)
    diagnosis = break_where_needed(target, BUCKETS)
    runner = GraphRunner(target)
    runner.capture(BUCKETS)
    found = verify(runner, num_rounds=1)
    assert not any(bucket.failed or bucket.errors for bucket in found.buckets)
    assert all(bucket.num_launches for bucket in found.buckets)
    return diagnosis, runner


@pytest.mark.parametrize(
    ("fault", "size", "name", "module", "operation"),
    [
        (models.reads_a_value, "module", "Inner", "layers.1.inner", "Tensor.item"),
        (models.takes_a_branch, "module", "Inner", "layers.1.inner", "Tensor.__bool__"),
        (models.reads_in_an_operation, "module", "Inner", "layers.1.inner", "aten.item.default"),
        (models.fills_by_mask, "operation", "aten.index_put_.default", "layers.1.inner", "aten.index_put_.default"),
        (models.calls_a_function, "function", "scaled_by_nonzero", "layers.1.inner", "aten.nonzero.default"),
        (models.makes_a_constant, "pin", "torch.tensor", "layers.1.inner", "torch.tensor"),
        (models.chooses_by_value, "operation", "higher_order.cond", "layers.1.inner", "higher_order.cond"),
    ],
)
def test_one_fault_gives_the_smallest_break_that_replays_right(
    device: str, fault: Callable[..., Any], size: str, name: str, module: str, operation: str
) -> None:
    diagnosis, runner = captured(Model(None, fault, None), device)
    (found,) = diagnosis.automatic_breaks
    assert (found.size, found.module, found.card.operation) == (size, module, operation)
    assert found.name.endswith(name)
    assert found.card.hazard == "L1"
    assert found.card.source_line.startswith(models.__file__)
    assert [graph.num_breaks for graph in runner.graphs.values()] == [0 if size == "pin" else 1] * 2
    for graph in runner.graphs.values():
        assert all(step.label.source == "automatic" and step.label.module == module for step in graph.breaks)


def test_code_that_computes_something_else_when_captured_is_a_break(device: str) -> None:
    diagnosis, _ = captured(Model(None, models.asks_whether_it_is_captured, None), device)
    (found,) = diagnosis.automatic_breaks
    assert (found.size, found.card.hazard) == ("function", "S3")
    assert found.name.endswith("is_captured")


def test_a_constant_that_only_a_capture_makes_can_not_be_pinned(device: str) -> None:
    diagnosis, _ = captured(Model(None, models.makes_a_constant_only_when_captured, None), device)
    (found,) = diagnosis.automatic_breaks
    assert (found.size, found.card.operation) == ("function", "torch.tensor")
    assert found.name.endswith("a_constant")


def test_a_generator_that_the_graph_does_not_know(device: str) -> None:
    diagnosis, _ = captured(Model(None, models.draws_from_its_own_generator, None), device)
    (found,) = diagnosis.automatic_breaks
    assert (found.size, found.card.hazard, found.card.operation) == ("operation", "L8", "aten.rand.generator")


@pytest.mark.gpu
@pytest.mark.parametrize("fault", [models.allocates_pinned_memory, models.copies_to_pinned_memory])
def test_pinned_memory(fault: Any) -> None:
    diagnosis, _ = captured(Model(None, fault, None), "cuda")
    (found,) = diagnosis.automatic_breaks
    assert (found.module, found.card.hazard) == ("layers.1.inner", "L2")


def test_what_makes_an_automatic_break_explicit_makes_it(device: str) -> None:
    for fault in (models.reads_a_value, models.calls_a_function):
        diagnosis, _ = captured(Model(None, fault, None), device)
        glob = diagnosis.automatic_breaks[0].option.removeprefix("--break ").strip("'")
        target = target_of(Model(None, fault, None), device, break_globs=(glob,))
        assert break_where_needed(target, BUCKETS).automatic_breaks == []
        runner = GraphRunner(target)
        runner.capture(BUCKETS)
        (step,) = runner.graphs[8].breaks
        assert step.label.source == "rule"


def test_a_pin_that_is_not_constant_gives_way_to_a_larger_break(device: str) -> None:
    diagnosis, runner = captured(Model(None, models.makes_a_live_value, None), device)
    (found,) = diagnosis.automatic_breaks
    assert found.size in ("function", "module")
    assert diagnosis.num_trials == 2
    assert runner.graphs[8].num_breaks == 1


def test_a_break_that_returns_a_sparse_tensor_is_named(device: str) -> None:
    target = target_of(models.TakesSparse(models.makes_sparse), device, break_globs=("layers.0.inner",))
    with pytest.raises(UncapturableError, match=r"can't be captured: break Inner at .*: it returns a sparse tensor"):
        break_where_needed(target, BUCKETS)
    with pytest.raises(CaptureError, match=r"break Inner returned a sparse tensor \(torch.sparse_coo\)"):
        GraphRunner(target).capture(BUCKETS)


def test_the_same_fault_in_every_layer(device: str) -> None:
    diagnosis, runner = captured(Model(*[models.reads_a_value] * 3), device)
    assert [found.module for found in diagnosis.automatic_breaks] == [f"layers.{index}.inner" for index in range(3)]
    assert diagnosis.num_trials == 1
    assert runner.graphs[8].num_breaks == 3
    diagnosis, runner = captured(Model(*[models.calls_a_function] * 3), device)
    assert [found.size for found in diagnosis.automatic_breaks] == ["function"]
    assert runner.graphs[8].num_breaks == 3


def test_a_number_that_changes_from_run_to_run_is_not_frozen(device: str) -> None:
    diagnosis, _ = captured(Model(None, models.counts_its_calls, None), device)
    (found,) = diagnosis.automatic_breaks
    assert (found.size, found.module, found.card.hazard) == ("module", "layers.1.inner", "S2")
    assert "its numbers are" in found.card.title
    assert diagnosis.cards == []  # in the break, the count changes at every replay


def test_state_that_no_break_covers_has_its_card(device: str) -> None:
    diagnosis, _ = captured(Model(models.counts_on_the_side, models.reads_a_value), device)
    (card,) = diagnosis.cards
    assert (card.hazard, card.title) == ("S12", "the forward changes layers.0.inner.num_calls, a replay does not")


def test_what_a_larger_break_replaces_is_still_told(device: str) -> None:
    diagnosis, _ = captured(Model(None, models.reads_and_counts, None), device)
    (found,) = diagnosis.automatic_breaks
    assert (found.size, found.module, found.card.hazard) == ("module", "layers.1.inner", "L1")
    assert [card.hazard for card in found.other_cards] == ["S2"]


def test_replays_that_tell_nothing_verify_nothing(device: str) -> None:
    target = target_of(Model(models.gives_nothing_but_nan, models.reads_a_value), device)
    diagnosis = break_where_needed(target, BUCKETS)
    (found,) = diagnosis.automatic_breaks
    assert found.doubt == diagnosis.doubt == "eager itself gives nothing but NaN at 4 tokens"


def test_one_hot_vectors_of_a_given_size_need_no_break(device: str) -> None:
    diagnosis, runner = captured(Model(models.one_hot, None), device)
    assert (diagnosis, runner.graphs[8].num_breaks) == (Diagnosis(), 0)
    diagnosis, _ = captured(Model(models.one_hot_of_the_largest, None), device)
    (found,) = diagnosis.automatic_breaks
    assert (found.size, found.card.operation) == ("module", "aten.one_hot.default")


def test_the_break_of_a_sparse_tensor_reaches_to_where_it_is_used_up(device: str) -> None:
    diagnosis, _ = captured(Model(models.mixes_by_a_sparse_matrix), device)
    (found,) = diagnosis.automatic_breaks
    assert (found.size, found.card.hazard, found.card.operation) == ("module", "L1", "aten.to_sparse.default")
    diagnosis, _ = captured(Model(models.mixes_by_a_break_s_sparse_matrix), device)
    (found,) = diagnosis.automatic_breaks
    assert (found.size, found.card.hazard, found.card.operation) == ("module", "S9", "break sparse_scores")


def test_at_the_root_there_is_only_the_card(device: str) -> None:
    with pytest.raises(UncapturableError, match="^planted can't be captured: Tensor.item at .*models.py:") as caught:
        break_where_needed(target_of(models.ReadsInTheRoot(None), device), BUCKETS)
    (card,) = caught.value.cards
    assert (card.hazard, card.module, card.break_option) == ("L1", "", "")


def test_nothing_to_break_costs_no_trial(device: str) -> None:
    diagnosis, runner = captured(Model(None, None), device)
    assert diagnosis == Diagnosis()
    assert runner.graphs[8].num_breaks == 0


def test_without_automatic_breaks_the_failure_carries_the_card(device: str) -> None:
    target = target_of(Model(None, models.reads_a_value), device)
    with pytest.raises(UncapturableError, match="the host reads a device value") as caught:
        with failures_explained(target, BUCKETS):
            GraphRunner(target).capture(BUCKETS)
    (card,) = caught.value.cards
    assert (card.hazard, card.module, card.break_option) == ("L1", "layers.1.inner", "--break 'layers.1.inner'")


def test_functions_mean_what_they_meant_afterwards(device: str) -> None:
    function = models.scaled_by_nonzero
    captured(Model(models.calls_a_function), device)
    assert models.scaled_by_nonzero is function


def test_breaks_that_leave_no_segment_do_not_help() -> None:
    target = own_target(
        torch.nn.Sequential(models.Inner(models.takes_a_branch)),
        "cpu",
        lambda n, device, generator: {"input": torch.rand((1, n, 8), generator=generator)},
    )
    with pytest.raises(UncapturableError, match="no automatic break helps: no segment is left, everything runs as bre"):
        break_where_needed(target, BUCKETS)
