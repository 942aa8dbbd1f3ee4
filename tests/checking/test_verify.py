"""`verify` tells a right replay from a wrong one, on both devices; every fault here is planted."""

from __future__ import annotations

import itertools
import os
import random
import traceback
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

from bcg import Batch, GraphRunner, ReplayError, Target, current_forward_context, eager_on_graph, load_target
from bcg.checking import Tolerance, UnfinishedCheckError, check, verify
from bcg.checking.plan import Trial
from bcg.checking.verdicts import worst_trial
from bcg.device.host import HostDevice
from tests.targets import own_target

BUCKETS = (4, 8, 16)


def make_inputs(num_tokens: int, device: torch.device, generator: torch.Generator) -> dict[str, Tensor]:
    return {"x": torch.rand((num_tokens, 4), device=device, generator=generator)}


def target_of(module: nn.Module, device: str) -> Target:
    return own_target(module, device, make_inputs)


def verified(module: nn.Module, device: str, **options: Any) -> Any:
    runner = GraphRunner(target_of(module, device))
    runner.capture(BUCKETS)
    return verify(runner, **options)


class Healthy(nn.Module):
    """Reads the live context, but in a break."""

    def forward(self, x: Tensor) -> Tensor:
        return self.add_lengths(x * 2) + 1

    @eager_on_graph
    def add_lengths(self, x: Tensor) -> Tensor:
        context = current_forward_context()
        assert context is not None
        result = x.clone()
        for start, end in zip(context.offsets(), context.offsets()[1:], strict=False):
            result[start:end] += end - start
        return result


class Baked(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        context = current_forward_context()
        return x * (context.max_length if context else 1)


class Leaking(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(dim=0)


class Counting(nn.Module):
    num_calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.num_calls += 1
        return x + 1


class InPlace(nn.Module):
    """Advances a buffer on the device: in replay as in eager."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("num_calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.num_calls += 1
        return x + self.num_calls


class Random(nn.Module):
    """Draws from where no seed reaches."""

    def forward(self, x: Tensor) -> Tensor:
        return self.noise(x)

    @eager_on_graph
    def noise(self, x: Tensor) -> Tensor:
        return x + int.from_bytes(os.urandom(2)) / 2**16


CALLS = itertools.count()


class NaNAndBaked(nn.Module):
    """Freezes a number; full batches of the smallest bucket are NaN at every other call."""

    def forward(self, x: Tensor) -> Tensor:
        context = current_forward_context()
        return self.spoil(x * (context.max_length if context else 1))

    @eager_on_graph
    def spoil(self, x: Tensor) -> Tensor:
        context = current_forward_context()
        is_smallest = context is not None and context.num_tokens == BUCKETS[0]
        return x * torch.nan if is_smallest and next(CALLS) % 2 else x.clone()


class WritesOutside(nn.Module):
    """Adds up what it is given in a tensor that no module holds."""

    def __init__(self, total: dict[str, Tensor]) -> None:
        super().__init__()
        self.read = lambda: total["value"]

    def forward(self, x: Tensor) -> Tensor:
        self.read().add_(x[:1])
        return x + self.read()


class DrawsInBreak(nn.Module):
    """Draws from generators of every kind, the module's own among them."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, x: Tensor) -> Tensor:
        return self.noise(x) + 1

    @eager_on_graph
    def noise(self, x: Tensor) -> Tensor:
        own = torch.rand(4, generator=self.generator).to(x.device) * 1e-5
        return x + own + 1e-5 * (random.random() + numpy.random.random()) + 1e-5 * torch.rand(4, device=x.device)


class Raising(nn.Module):
    """Its break returns a number that segments have frozen in them."""

    def forward(self, x: Tensor) -> Tensor:
        result, _ = self.longest(x * 2)
        return result + 1

    @eager_on_graph
    def longest(self, x: Tensor) -> Any:
        context = current_forward_context()
        return x.clone(), context.max_length if context else 0


def test_a_healthy_module_matches_bitwise(device: str) -> None:
    found = verified(Healthy(), device)
    assert found.verdict == "match" and found.matches
    assert [bucket.tokens for bucket in found.buckets] == [4, 8, 16]
    assert all(bucket.comparison.bitwise for bucket in found.buckets)
    assert [bucket.num_replays for bucket in found.buckets] == [6, 6, 6]
    assert [bucket.num_launches for bucket in found.buckets] == [12, 12, 12]


@pytest.mark.parametrize("model", ["qwen3-tiny", "qwen3-moe-tiny", "nemotron-h-tiny", "deepseek-v3-tiny"])
def test_presets_match_bitwise(model: str) -> None:
    runner = GraphRunner(load_target(model))
    runner.capture((4, 16))
    found = verify(runner, num_rounds=1)
    assert found.verdict == "match"
    assert all(bucket.comparison.bitwise for bucket in found.buckets)


def test_a_baked_number_is_a_mismatch_in_every_bucket(device: str) -> None:
    found = verified(Baked(), device)
    assert [bucket.verdict for bucket in found.buckets] == ["mismatch"] * 3
    assert not found.buckets[0].leaks


def test_padding_that_reaches_real_rows_is_a_mismatch(device: str) -> None:
    found = verified(Leaking(), device)
    assert found.verdict == "mismatch"
    assert all(bucket.leaks and not bucket.failed for bucket in found.buckets)
    assert all(trial.num_padding > 0 for bucket in found.buckets for trial in bucket.leaks)


def test_a_counter_that_stands_still_is_a_mismatch(device: str) -> None:
    module = Counting()
    found = verified(module, device)
    assert found.verdict == "mismatch"
    assert [change.path for change in found.buckets[0].state_changes] == ["num_calls"]


def test_state_on_the_device_is_restored_and_compared(device: str) -> None:
    module = InPlace()
    runner = GraphRunner(target_of(module, device))
    runner.capture(BUCKETS)
    before = module.num_calls.clone()
    assert verify(runner).verdict == "match"
    assert torch.equal(module.num_calls, before)


def test_eager_that_differs_from_itself_is_inconclusive(device: str) -> None:
    found = verified(Random(), device)
    assert found.spread.largest > 0
    assert {bucket.verdict for bucket in found.buckets} <= {"inconclusive", "match"}
    assert found.verdict == "inconclusive"


def test_eager_that_is_nan_now_and_then_excuses_no_finite_difference(device: str) -> None:
    found = verified(NaNAndBaked(), device)
    assert (found.spread.largest, found.spread.largest_finite) == (float("inf"), 0.0)
    assert [bucket.verdict for bucket in found.buckets[1:]] == ["mismatch", "mismatch"]
    assert not found.buckets[1].unsteady


def test_tensors_that_no_module_holds_are_state_too(device: str) -> None:
    total = {"value": torch.zeros(1, 4, device=device)}
    target = target_of(WritesOutside(total), device)
    target.packs_requests = False
    runner = GraphRunner(target)
    runner.capture(BUCKETS)
    before = total["value"].clone()
    found = verify(runner)
    assert found.verdict == "match"
    assert torch.equal(total["value"], before)


def test_random_generators_are_put_back(device: str) -> None:
    found = verified(DrawsInBreak(), device)
    assert found.spread.largest == 0
    assert found.verdict == "match"


def test_a_replay_that_raises_is_a_mismatch_with_its_words(device: str) -> None:
    found = verified(Raising(), device)
    assert found.verdict == "mismatch"
    assert "break Raising.longest[1] returned" in found.buckets[0].errors[0]


def test_only_breaks_launch_nothing_and_prove_nothing(device: str) -> None:
    runner = GraphRunner(target_of(Healthy(), device), everything_eager=True)
    runner.capture(BUCKETS)
    assert verify(runner).verdict == "inconclusive"


def test_nothing_captured_is_an_error(device: str) -> None:
    with pytest.raises(ReplayError, match="^no bucket was captured$"):
        verify(GraphRunner(target_of(Healthy(), device)))


def test_a_tolerance_may_be_wider(device: str) -> None:
    assert verified(Baked(), device, tolerance=Tolerance(atol=1e6)).verdict == "match"


def test_several_requests_are_refused_where_requests_mix(device: str) -> None:
    runner = GraphRunner(target_of(Leaking(), device))
    runner.capture((8,))
    batch = Batch(make_inputs(6, runner.target.device, torch.Generator(device)), (2, 4))
    for run in (runner.replay, runner.eager, runner.eager_padded):
        with pytest.raises(ReplayError, match="^test takes one request at a time, got a batch of 2$"):
            run(batch)


def is_replaying() -> bool:
    return any(frame.name == "replay" for frame in traceback.extract_stack())


class LosingTheDevice(nn.Module):
    """Its break fails as a kernel would that read what it may not, once a batch is smaller than its bucket.

    A host can't be lost, so the test has to say that it is.
    """

    is_lost = False

    def forward(self, x: Tensor) -> Tensor:
        return self.touch(x * 2) + 1

    @eager_on_graph
    def touch(self, x: Tensor) -> Tensor:
        context = current_forward_context()
        if context is not None and context.num_tokens == 3 and is_replaying():
            LosingTheDevice.is_lost = True
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return x.clone()


def test_a_lost_device_ends_the_check_with_the_report_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LosingTheDevice, "is_lost", False)
    monkeypatch.setattr(HostDevice, "is_lost", lambda _: LosingTheDevice.is_lost)
    with pytest.raises(UnfinishedCheckError, match="^the device is lost to this process: CUDA error: an il") as caught:
        check(target_of(LosingTheDevice(), "cpu"), buckets=BUCKETS)
    report = caught.value.report
    assert report.verdict == "inconclusive"
    assert all("the check could not be ended" in bucket.reasons[-1] for bucket in report.buckets)


def test_a_replay_that_raises_is_told_in_its_words() -> None:
    report = check(target_of(Raising(), "cpu"), buckets=BUCKETS)
    assert report.verdict == "mismatch"
    (card,) = report.findings
    assert card.title.startswith("break Raising.longest[1] returned")


class ReplaysInside(nn.Module):
    """A break that replays a graph of the very pool that is in use."""

    runner: Any = None

    def forward(self, x: Tensor) -> Tensor:
        return self.again(x * 2) + 1

    @eager_on_graph
    def again(self, x: Tensor) -> Tensor:
        if is_replaying():
            next(iter(self.runner.graphs.values())).replay()
        return x.clone()


def test_replaying_a_pool_that_is_in_use_is_named(device: str) -> None:
    module = ReplaysInside()
    runner = GraphRunner(target_of(module, device))
    runner.capture((4,))
    module.runner = runner
    found = verify(runner)
    assert found.buckets[0].hazard == "S17"
    assert found.verdict == "mismatch"


class ChangesItsInput(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(2) + 1


def test_a_forward_that_changes_its_input_in_place_is_healthy(device: str) -> None:
    assert verified(ChangesItsInput(), device).verdict == "match"


class Scaled(nn.Module):
    scale = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def test_what_making_inputs_leaves_on_a_module_is_no_match(device: str) -> None:
    module = Scaled()

    def make(num_tokens: int, place: torch.device, generator: torch.Generator) -> dict[str, Tensor]:
        module.scale = 1.0 + torch.rand((), device=place, generator=generator).item()
        return make_inputs(num_tokens, place, generator)

    runner = GraphRunner(own_target(module, device, make))
    runner.capture(BUCKETS)
    assert verify(runner).verdict != "match"


class CountsItsRows(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, float]:
        return x * 2, len(x) * 1.5


def test_a_number_beside_the_tensors_that_depends_on_the_rows_is_a_mismatch(device: str) -> None:
    found = check(target_of(CountsItsRows(), device), buckets=BUCKETS)
    assert found.verdict == "mismatch"
    assert [card.hazard for card in found.findings] == ["S2"]
    assert "beside its tensors" in found.findings[0].title
    assert "return tensors only" in found.findings[0].remedy
    assert all(any("beside its tensors" in reason for reason in bucket.reasons) for bucket in found.buckets)


class TellsItsWidth(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        return x * 2, x.shape[1]


def test_a_number_beside_the_tensors_that_stays_the_same_is_a_match(device: str) -> None:
    assert verified(TellsItsWidth(), device).verdict == "match"


class ChangesItsType(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x.half() if len(x) % 2 else x.double()


def test_a_result_of_another_type_for_other_rows_is_a_mismatch(device: str) -> None:
    assert verified(ChangesItsType(), device).verdict == "mismatch"


def test_a_tensor_that_no_module_holds_is_warned_of(device: str) -> None:
    total = torch.zeros(4, device=device)

    class AddsUp(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            total.add_(x.sum(0))
            return x * 2

    (warning,) = check(target_of(AddsUp(), device), buckets=BUCKETS).warnings
    assert warning.code == "S13"
    assert "which no module holds, is written by the forward" in warning.message


class Counts(nn.Module):
    """Adds up its rows, padding among them, and returns more the more it has seen."""

    def __init__(self, *, reads: bool) -> None:
        super().__init__()
        self.reads = reads
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add_(torch.ones_like(x[:, 0]).sum())
        return x + (self.seen if self.reads else self.seen * 0)


@pytest.mark.parametrize("reads", [True, False])
def test_padding_that_changes_what_later_forwards_give_is_found(device: str, reads: bool) -> None:
    report = check(target_of(Counts(reads=reads), device), buckets=BUCKETS)
    padded = [reason for bucket in report.buckets for reason in bucket.reasons if "padding changes seen" in reason]
    assert bool(padded) == reads
    assert (report.verdict == "mismatch") == reads


class Draws(nn.Module):
    """Draws on the host in a segment, and does something with it once in a while."""

    def __init__(self, generator: Any) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if self.generator.random() < 0.001 else x + 1


@pytest.mark.parametrize(
    ("generator", "name"),
    [
        (random, "random"),
        (numpy.random, "numpy.random"),
        (random.Random(3), "a Random of the model"),
        (numpy.random.default_rng(3), "a Generator of the model"),
    ],
)
def test_draws_that_replays_leave_out_are_warned_of(generator: Any, name: str) -> None:
    report = check(target_of(Draws(generator), "cpu"), buckets=BUCKETS)
    (warning,) = (warning for warning in report.warnings if warning.code == "S16")
    assert f"eager draws from {name}, a replay does not" in warning.message


@pytest.mark.parametrize("draws", [True, False])
def test_numbers_that_are_drawn_for_nothing_hide_nothing(draws: bool) -> None:
    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if draws:
                torch.rand((), device=x.device)
            return x / len(x)

    report = check(target_of(Mean(), "cpu"), buckets=BUCKETS)
    assert report.verdict == "mismatch"
    assert {card.hazard for card in report.findings} == {"S2"}


def test_breaks_that_draw_from_generators_of_the_model_match() -> None:
    class Noise(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.generators = [random.Random(1), numpy.random.default_rng(1), numpy.random.RandomState(1)]

        def forward(self, x: Tensor) -> Tensor:
            return self.noise(x * 2) + 1

        @eager_on_graph
        def noise(self, x: Tensor) -> Tensor:
            return x + sum(float(generator.random()) for generator in self.generators)

    assert check(target_of(Noise(), "cpu"), buckets=BUCKETS).verdict == "match"


def test_a_break_of_two_turns_is_no_mismatch() -> None:
    """Its second run equals the first replay's, its third one eager's first."""

    class TakesTurns(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.turns = itertools.cycle((1.0, 2.0))

        def forward(self, x: Tensor) -> Tensor:
            return self.scale(x * 2) + 1

        @eager_on_graph
        def scale(self, x: Tensor) -> Tensor:
            return x * next(self.turns)

    assert check(target_of(TakesTurns(), "cpu"), buckets=BUCKETS).verdict == "inconclusive"


def test_an_input_that_is_kept_is_overwritten_by_the_next_batch(device: str) -> None:
    class KeepsItsInput(nn.Module):
        kept: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            self.keep(x)
            return x + 1

        @eager_on_graph
        def keep(self, x: Tensor) -> None:
            self.kept = x

    report = check(target_of(KeepsItsInput(), device), buckets=BUCKETS)
    assert "S11" in {card.hazard for card in report.findings}
    assert any("kept keeps an output" in reason for bucket in report.buckets for reason in bucket.reasons)


class DividesByZeros(nn.Module):
    """Zeros, which replays pad with, change real rows; what `make_inputs` makes, and so poison, holds none."""

    def forward(self, x: Tensor) -> Tensor:
        return x / (1 + (x == 0).sum())


def test_padding_by_zeros_is_asked_about_beside_poison(device: str) -> None:
    verification = verified(DividesByZeros(), device)
    assert verification.verdict == "mismatch"
    assert all(bucket.leaks for bucket in verification.buckets)


class BakedBesideLargeNumbers(Baked):
    """Of the columns of its result only the smallest is wrong, and there is no gap between their sizes."""

    def forward(self, x: Tensor) -> Tensor:
        units = 10.0 ** torch.arange(9, device=x.device)
        return torch.cat([(x[..., :1].abs() + 1) * units, super().forward(x)[..., :1]], -1)


def test_a_small_number_that_is_baked_in_does_not_hide_beside_large_ones(device: str) -> None:
    assert verified(BakedBesideLargeNumbers(), device).verdict == "mismatch"


def test_inputs_of_eight_bits_are_poisoned_too() -> None:
    def make(num_tokens: int, device: torch.device, generator: torch.Generator) -> dict[str, Tensor]:
        return {"x": torch.randn(num_tokens, 4, generator=generator).to(torch.float8_e4m3fn)}

    module = Widens()
    assert check(module, make_inputs=make, buckets=(8,), device="cpu").verdict == "match"


class Widens(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.float() * 2


def test_the_worst_trial_is_of_the_smallest_bucket() -> None:
    assert worst_trial([Trial(16, (1,), 0), Trial(8, (8,), 0)]).tokens == 8
