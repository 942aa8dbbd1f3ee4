"""How the first replays of a mode are judged: twice eager's own error where eager's kernels are not the mode's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bcg import Target, eager_on_graph, load_target
from bcg.inputs import Batch
from bcg.modes import make_mode
from bcg.modes.base import Counts, Preparation
from bcg.modes.eager import Eager
from bcg.profile import worker
from bcg.profile.agreement import agreement
from bcg.profile.checks import Checks, check_notes, checked, make_checks
from bcg.profile.messages import AllPrepared, Load, Loaded, Measured, Prepare
from bcg.profile.plan import ModeRun, Plan
from bcg.profile.summary import profile_report
from bcg.report import ModeName
from bcg.words import TargetWords
from tests.targets import own_target

BUCKETS = (4, 16)
OLD_LIMIT = 0.1
MODELS = Path(__file__).parent / "models.py"


@pytest.fixture(scope="module")
def target() -> Target:
    return load_target("qwen3-tiny", device="cpu", dtype="bfloat16")


@pytest.fixture(scope="module")
def checks(target: Target) -> Checks:
    return make_checks(target, "fused", BUCKETS)


class Off:
    """A mode that is off from exact `times` as far as eager, in the direction of its error and across it."""

    def __init__(self, checks: Checks, times: float) -> None:
        self._checks, self._times = checks, times

    def __call__(self, batch: Batch) -> Tensor:
        number = next(
            index
            for index, one in enumerate(self._checks.batches[batch.num_tokens])
            if torch.equal(one.inputs["input_ids"], batch.inputs["input_ids"])
        )
        eager = self._checks.eager[batch.num_tokens][number]
        exact = self._checks.exact.results[batch.num_tokens][number]
        return (exact + self._times * (exact - eager.float())).to(eager.dtype)


@pytest.mark.parametrize("tokens", BUCKETS)
def test_three_times_eagers_own_error_is_wrong_though_it_is_far_inside_the_fixed_limit(
    checks: Checks, tokens: int
) -> None:
    found = checked(Preparation(tokens), Off(checks, 3.0), checks)
    assert found.errors.relative_error < OLD_LIMIT / 2
    assert found.preparation.status == "wrong"
    assert found.errors.error_vs_exact == pytest.approx(3 * found.errors.eager_error_vs_exact, rel=0.1)
    assert found.preparation.reason == (
        f"its first replay differs from eager: its error against float32 is {found.errors.error_vs_exact:.2g}, "
        f"eager's own {found.errors.eager_error_vs_exact:.2g}: expected at most twice that"
    )


def test_about_eagers_own_error_is_measured(checks: Checks) -> None:
    found = checked(Preparation(16), Off(checks, 1.2), checks)
    assert (found.preparation.status, found.preparation.reason, found.errors.bitwise) == ("measured", None, False)
    assert found.errors.eager_error_vs_exact < found.errors.error_vs_exact < 2 * found.errors.eager_error_vs_exact


def test_eagers_own_bits_are_measured(target: Target, checks: Checks) -> None:
    found = checked(Preparation(4), Eager(target).run, checks)
    assert (found.preparation.status, found.errors.bitwise) == ("measured", True)
    assert found.errors.error_vs_exact == found.errors.eager_error_vs_exact > 0


def test_modes_with_eagers_kernels_need_no_exact_result(target: Target) -> None:
    checks = make_checks(target, "breakable", (4,))
    assert (checks.exact.results, checks.exact.lack) == ({}, None)
    found = checked(Preparation(4), Eager(target).run, checks)
    assert (found.preparation.status, found.errors.bitwise, found.errors.error_vs_exact) == ("measured", True, None)
    assert check_notes("breakable", [found], checks) == []


class Stateful(nn.Module):
    """Counts its forwards, makes a table for each size, draws random numbers, and changes its input in place."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("num_calls", torch.full((), 3.0))
        self.tables: dict[int, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        self.num_calls += 1
        if len(x) not in self.tables:
            self.tables[len(x)] = torch.ones(4)
        return self.look_up(x.add_(1) + self.num_calls + torch.rand_like(x))

    @eager_on_graph
    def look_up(self, x: Tensor) -> Tensor:
        return x * self.tables[len(x)]


def make_rows(num_tokens: int, device: torch.device, generator: torch.Generator) -> dict[str, Tensor]:
    return {"x": torch.rand(num_tokens, 4, device=device, generator=generator)}


@pytest.mark.parametrize("mode", ["eager", "breakable"])
def test_state_and_random_numbers_are_the_same_in_every_run(mode: ModeName) -> None:
    module: Any = Stateful()
    target = own_target(module, "cpu", make_rows)
    before, generator = int(module.num_calls), torch.get_rng_state()
    checks = make_checks(target, mode, BUCKETS)
    assert int(module.num_calls) == before
    assert torch.equal(torch.get_rng_state(), generator)
    made = make_mode(mode, target)
    found = [checked(one, made.run, checks) for one in made.prepare(BUCKETS)]
    assert [(one.preparation.status, one.errors.bitwise) for one in found] == [("measured", True)] * len(BUCKETS), found


def test_without_an_exact_result_the_fixed_limits_count_and_a_note_says_so(target: Target, checks: Checks) -> None:
    sharded = make_checks(target, "eager", BUCKETS)
    sharded = replace(sharded, exact=_lacking(target))
    run = Off(checks, 3.0)
    found = [checked(Preparation(tokens), run, sharded) for tokens in BUCKETS]
    assert [one.preparation.status for one in found] == ["measured", "measured"]
    (note,) = check_notes("fused", found, sharded)
    assert note.code == "fixed-limits"
    assert note.message == "fused at 4, 16 tokens was judged by fixed limits of error, not by twice eager's own"
    assert "sharded" in note.cause and note.remedy
    same = [checked(Preparation(tokens), Eager(target).run, sharded) for tokens in BUCKETS]
    assert check_notes("fused", same, sharded) == [], "what is equal to the last bit needs no yardstick"


def _lacking(target: Target) -> Any:
    target.alignment = Ticks()
    try:
        return make_checks(target, "fused", (4,)).exact
    finally:
        target.alignment = None


class Ticks:
    def tick(self) -> None:
        return None


def test_a_bucket_is_judged_by_the_worst_of_its_batches() -> None:
    exact = torch.full((8,), 4.0)
    first = agreement(exact + 0.04, exact + 0.06, exact)
    second = agreement(exact + 0.01, exact + 0.07, exact)
    assert first.within and not second.within
    both = first.joined(second)
    assert both.within, "0.07 is less than twice 0.04"
    assert both.worst.result == pytest.approx(0.07 / 4, rel=1e-3)
    assert both.worst.eager == pytest.approx(0.04 / 4, rel=1e-3)


def test_an_output_does_not_answer_for_another() -> None:
    exact = (torch.full((8,), 4.0), torch.full((8,), 4.0))
    eager = (exact[0] + 0.4, exact[1] + 0.001)
    found = agreement(eager, (exact[0] + 0.4, exact[1] + 0.1), exact)
    assert not found.within
    assert found.worst.result == pytest.approx(0.1 / 4, rel=1e-3)


def test_an_exact_result_excuses_neither_nan_nor_shapes_nor_whole_numbers() -> None:
    exact = torch.randn(8)
    eager = exact.bfloat16()
    assert agreement(eager, eager.clone(), exact).within
    assert not agreement(eager, torch.full_like(eager, torch.nan), exact).within
    assert not agreement(eager, eager[:4], exact).within
    assert not agreement((eager, torch.arange(3)), (eager, torch.arange(3) + 1), (exact, torch.arange(3))).within


@pytest.mark.parametrize("value", [torch.inf, -torch.inf])
def test_infinity_is_nowhere_near(value: float) -> None:
    eager = torch.ones(8)
    with_infinity = eager.clone()
    with_infinity[3] = value
    assert not agreement(eager, with_infinity).within
    assert not agreement(with_infinity, eager).within
    assert not agreement(with_infinity, -with_infinity).within
    assert agreement(with_infinity, with_infinity + 1e-6).within
    assert not agreement(with_infinity, with_infinity * 1.1).within


class Planted:
    """A mode whose results are off by a part of their norm."""

    runner = None

    def __init__(self, name: ModeName, target: Target) -> None:
        self.name, self._eager = name, Eager(target)

    def prepare(self, buckets: list[int]) -> list[Preparation]:
        return [Preparation(tokens) for tokens in buckets]

    def run(self, batch: Batch) -> Any:
        return self._eager.run(batch) * (1 + 1e-4)

    def counts(self) -> Counts:
        return Counts()

    def close(self) -> None:
        return None


def test_the_process_of_a_mode_judges_by_the_yardstick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit for float32 is 1e-3; eager's own error is below 1e-6."""
    monkeypatch.setattr(worker, "make_mode", Planted)
    judged = {mode: _prepared_by_a_worker(mode) for mode in ("fused", "breakable")}
    assert [one.preparation.status for one in judged["fused"].buckets] == ["wrong"]
    assert "its error against float64 is 0.0001, eager's own " in judged["fused"].buckets[0].preparation.reason
    assert [one.preparation.status for one in judged["breakable"].buckets] == ["measured"]
    assert judged["fused"].warnings == []


def test_the_process_of_a_mode_that_computes_something_else_calls_it_wrong() -> None:
    (breakable,) = _prepared_by_a_worker("breakable", "treacherous").buckets
    assert (breakable.preparation.status, breakable.errors.max_abs_error) == ("wrong", pytest.approx(1.0))
    assert "differs from eager" in breakable.preparation.reason
    (full,) = _prepared_by_a_worker("full", "treacherous").buckets
    assert full.preparation.status == "not capturable"
    assert "the host reads a device value" in full.preparation.reason


def _prepared_by_a_worker(mode: ModeName, factory: str = "layered") -> AllPrepared:
    words = TargetWords(f"{MODELS}:{factory}", attention_break=False)
    return worker.Worker(Load(mode=mode, words=words, nvtx=False)).prepare(Prepare(buckets=[4]))


def test_figures_and_notes_reach_the_report(target: Target, checks: Checks) -> None:
    from bcg.environment import environment
    from bcg.profile.notes import held_to_limits

    note = held_to_limits("fused", [16], "the cause", "the remedy")
    prepared = [checked(Preparation(tokens), Off(checks, 1.2), checks) for tokens in BUCKETS]
    run = ModeRun(
        "fused",
        loaded=Loaded(
            environment=environment(target.device), model=target.info, warnings=[], weight_bytes=1, free_bytes=1
        ),
        prepared=AllPrepared(buckets=prepared, startup_s=1.0, warnings=[note]),
        rounds={tokens: [Measured(step_ms=[1.0], host_us=[1.0])] for tokens in BUCKETS},
    )
    plan = Plan(words=TargetWords("qwen3-tiny"), buckets=BUCKETS, modes=("fused",))
    report = profile_report(plan, [run])
    assert note in report.warnings
    assert report.has_exact_errors
    for bucket, one in zip(report.buckets, prepared, strict=True):
        (row,) = bucket.modes
        assert row.error_vs_exact == one.errors.error_vs_exact
        assert row.eager_error_vs_exact == one.errors.eager_error_vs_exact


class CountsInPython(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


class CountsInABuffer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.calls.add_(1)


def given_x(num_tokens: int, device: torch.device, generator: torch.Generator) -> dict[str, Tensor]:
    return {"x": torch.rand((num_tokens, 4), device=device, generator=generator)}


@pytest.mark.parametrize("module", [CountsInPython, CountsInABuffer])
def test_state_that_a_graph_froze_is_found_by_a_replay_from_the_state_that_others_left(module: type[nn.Module]) -> None:
    target = own_target(module(), "cpu", given_x)
    checks = make_checks(target, "full", (4,))
    mode = make_mode("full", target)
    (prepared,) = mode.prepare([4])
    found = checked(prepared, mode.run, checks)
    if module is CountsInABuffer:
        assert (found.preparation.status, found.errors.bitwise) == ("measured", True)
    else:
        assert found.preparation.status == "wrong"
        assert "replay from the state that others left differs from eager" in (found.preparation.reason or "")


class GivesNan(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 0 * 0


def test_a_model_that_gives_no_number_is_not_measured() -> None:
    target = own_target(GivesNan(), "cpu", given_x)
    checks = make_checks(target, "eager", (4,))
    found = checked(Preparation(4), Eager(target).run, checks).preparation
    assert (found.status, found.reason) == ("failed", "eager gives nothing but NaN: nothing can be compared")
