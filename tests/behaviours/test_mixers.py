"""Recurrent mixers: captured where their kernels take the number of each row's request, else breaks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bcg import Batch, GraphRunner, Target, make_batch
from tests.targets import own_target


class Scan(nn.Module):
    """Sums the rows of a request up, as mamba-ssm's kernels do, or all rows, as kernels that know no requests."""

    def __init__(self, heeds: bool) -> None:
        super().__init__()
        self.heeds = heeds

    def forward(self, hidden_states: Tensor, cache_params: Any = None, seq_idx: Tensor | None = None) -> Tensor:
        sums = torch.ones(hidden_states.shape[1], hidden_states.shape[1], device=hidden_states.device).tril()
        if seq_idx is not None and self.heeds:
            sums = sums * (seq_idx[0, :, None] == seq_idx[0])
        return sums @ hidden_states


class Model(nn.Module):
    def __init__(self, mixer: Scan) -> None:
        super().__init__()
        self.embedding, self.mixer = nn.Embedding(32, 4), mixer

    def forward(self, input_ids: Tensor, **kwargs: Any) -> Tensor:
        hidden: Tensor = self.mixer(self.embedding(input_ids) * 2, **kwargs)
        return hidden + 1


def own_numbers(num_tokens: int, device: torch.device, generator: torch.Generator) -> dict[str, Tensor]:
    ids = torch.randint(32, (1, num_tokens), device=device, generator=generator)
    return {"input_ids": ids, "seq_idx": torch.zeros(num_tokens, dtype=torch.int64, device=device)}


def target_with(device: str, *, heeds: bool, break_globs: tuple[str, ...] = ()) -> Target:
    torch.manual_seed(0)
    return own_target(Model(Scan(heeds)), device, attention_break=True, break_globs=break_globs)


def captured(target: Target) -> GraphRunner:
    runner = GraphRunner(target)
    runner.capture((8, 16))
    return runner


def packed(target: Target) -> Batch:
    return make_batch(target, (3, 2, 1), torch.Generator(target.device).manual_seed(0))


def each_alone(runner: GraphRunner, batch: Batch) -> Tensor:
    parts = batch.inputs["input_ids"].split(batch.request_lengths, dim=1)
    return torch.cat([runner.eager(Batch({"input_ids": part}, (part.shape[1],))) for part in parts], dim=1)


@pytest.mark.parametrize(("heeds", "globs", "num_breaks"), [(True, (), 0), (False, (), 1), (True, ("mixer",), 1)])
def test_requests_stay_apart_with_and_without_a_break(
    device: str, heeds: bool, globs: tuple[str, ...], num_breaks: int
) -> None:
    target = target_with(device, heeds=heeds, break_globs=globs)
    assert target.numbers_requests == (num_breaks == 0)
    assert target.break_rules.mixers == (("mixer",) if num_breaks else ())
    assert target.packs_requests
    assert target.warnings == []
    runner = captured(target)
    assert {graph.num_breaks for graph in runner.graphs.values()} == {num_breaks}
    batch = packed(target)
    replayed = runner.replay(batch).clone()
    assert torch.equal(replayed, runner.eager_padded(batch))
    torch.testing.assert_close(replayed, each_alone(runner, batch))


def test_requests_are_numbered_where_a_batch_does_not_say_which_rows_are_whose(device: str) -> None:
    target = target_with(device, heeds=True)
    runner, batch = captured(target), packed(target)
    assert batch.inputs["seq_idx"].tolist() == [[0, 0, 0, 1, 1, 2]]
    unsaid = Batch({"input_ids": batch.inputs["input_ids"]}, batch.request_lengths)
    expected = runner.replay(batch).clone()
    assert torch.equal(runner.replay(unsaid), expected)
    assert torch.equal(runner.eager(unsaid), runner.eager(batch))


def test_numbers_of_requests_are_inputs_and_not_baked_in(device: str) -> None:
    target = target_with(device, heeds=True)
    runner = captured(target)
    ids = torch.arange(6, device=target.device)[None]
    for lengths in ((6,), (1, 5), (2, 2, 2)):
        batch = Batch({"input_ids": ids}, lengths)
        torch.testing.assert_close(runner.replay(batch), each_alone(runner, batch))


def test_an_input_of_ones_own_by_that_name_is_left_alone(device: str) -> None:
    torch.manual_seed(0)
    target = own_target(Model(Scan(False)), device, own_numbers, attention_break=True)
    assert not target.numbers_requests
    assert target.break_rules.mixers == ("mixer",)
    assert packed(target).inputs["seq_idx"].tolist() == [0] * 6


def test_numbers_of_requests_that_a_batch_has_stay_its_own(device: str) -> None:
    runner = captured(target_with(device, heeds=True))
    batch = packed(runner.target)
    own = torch.zeros(1, batch.num_tokens, dtype=torch.int32, device=runner.target.device)
    given = Batch({**batch.inputs, "seq_idx": own}, batch.request_lengths)
    as_one = Batch({"input_ids": batch.inputs["input_ids"]}, (batch.num_tokens,))
    assert torch.equal(runner.replay(given).clone(), runner.replay(as_one))
