"""The yardstick: eager in a wider dtype, the target left as it was, and what may be off how far."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bcg import Target, load_target
from bcg.checking.yardstick import Exact, ExactErrors, exact_errors, exact_results, widened
from bcg.device.precision import full_precision
from bcg.inputs import Batch
from bcg.modes.base import bucket_batch
from bcg.modes.eager import Eager
from bcg.structure import same_bits
from tests.targets import own_target

BUCKETS = (4, 16)


def run_exact(target: Target, buckets: tuple[int, ...] = BUCKETS) -> tuple[dict[int, list[Any]], Exact]:
    """What eager gives in the target's own dtype, and what in a wider one."""
    run = Eager(target).run
    batches = {tokens: [bucket_batch(target, tokens, seed) for seed in (1, 2)] for tokens in buckets}
    eager = {tokens: [run(batch) for batch in given] for tokens, given in batches.items()}
    return eager, exact_results(target, run, batches, eager)


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    return dict(module.named_parameters()) | dict(module.named_buffers())


def randn_in(dtype: torch.dtype) -> Any:
    def make(num_tokens: int, device: torch.device, generator: torch.Generator) -> dict[str, Tensor]:
        return {"x": torch.randn(num_tokens, 8, device=device, generator=generator).to(dtype)}

    return make


def half_target(module: nn.Module) -> Target:
    return own_target(module.to(torch.bfloat16), "cpu", randn_in(torch.bfloat16))


def test_errors_are_relative_to_the_exact_result() -> None:
    exact = torch.tensor([3.0, 4.0])
    errors = exact_errors(exact + torch.tensor([0.0, 0.05]), exact + torch.tensor([0.1, 0.0]), exact)
    assert errors.dtype == "float32"
    assert (errors.eager, errors.result) == (pytest.approx(0.01, rel=1e-4), pytest.approx(0.02, rel=1e-4))
    assert ExactErrors("float32", 0.0199, 0.01).within
    assert not ExactErrors("float32", 0.0201, 0.01).within
    assert str(ExactErrors("float32", 0.0312, 0.0078)) == (
        "its error against float32 is 0.031, eager's own 0.0078: expected at most twice that"
    )


def test_nothing_against_nothing_is_within_and_anything_against_nothing_is_not() -> None:
    zeros = torch.zeros(4)
    assert exact_errors(zeros, zeros, zeros).within
    assert not exact_errors(zeros, zeros + 1e-3, zeros).within


def test_what_is_not_finite_in_eager_has_no_part_in_the_errors() -> None:
    eager = torch.tensor([1.0, torch.inf, torch.nan]).half()
    errors = exact_errors(eager, eager, torch.tensor([1.0, 1e5, torch.nan]))
    assert (errors.result, errors.eager) == (0.0, 0.0)


@pytest.mark.parametrize("preset", ["qwen3-tiny", "nemotron-h-tiny", "qwen3-moe-tiny"])
def test_a_preset_in_half_precision_is_run_in_float32_and_left_as_it_was(preset: str) -> None:
    target = load_target(preset, device="cpu", dtype="bfloat16")
    before = {
        name: (tensor, tensor.dtype, tensor.data_ptr(), tensor.clone())
        for name, tensor in tensors_of(target.module).items()
    }
    eager, exact = run_exact(target)
    assert exact.lack is None
    after = tensors_of(target.module)
    assert after.keys() == before.keys()
    for name, (tensor, dtype, address, contents) in before.items():
        assert after[name] is tensor
        assert (tensor.dtype, tensor.data_ptr()) == (dtype, address)
        assert same_bits(contents, tensor)
    modules = list(target.module.modules())
    assert not any(module._forward_pre_hooks or module._forward_hooks_always_called for module in modules)
    again, _ = run_exact(target)
    for tokens in BUCKETS:
        for one, other, exactly in zip(eager[tokens], again[tokens], exact.results[tokens], strict=True):
            assert one.dtype == torch.bfloat16 and exactly.dtype == torch.float32
            assert same_bits(one, other)
            assert 1e-3 < exact_errors(one, one, exactly).eager < 5e-2


def test_a_float32_preset_is_run_in_float64() -> None:
    eager, exact = run_exact(load_target("qwen3-tiny", device="cpu", dtype="float32"))
    assert exact.lack is None
    errors = exact_errors(eager[4][0], eager[4][0], exact.results[4][0])
    assert errors.dtype == "float64"
    assert 1e-8 < errors.eager < 1e-5


class Layers(nn.Module):
    """Linear layers in a list, and one outside; notes the dtypes of all weights at each layer's turn."""

    def __init__(self, fail_at: int | None = None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.head = nn.Linear(8, 8)
        self._fail_at = fail_at
        for number, layer in enumerate(self.layers):
            layer.register_forward_pre_hook(lambda *_, number=number: self._note(number))

    def _note(self, number: int) -> None:
        self.seen = [*getattr(self, "seen", []), [part.weight.dtype for part in (*self.layers, self.head)]]
        if number == self._fail_at:
            raise torch.OutOfMemoryError("planted")

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def test_a_layer_is_wide_only_while_it_runs() -> None:
    module, half, single = Layers().to(torch.bfloat16), torch.bfloat16, torch.float32
    with widened(module, single):
        module(torch.randn(2, 8))
    assert module.seen == [[single, half, single], [half, single, single]]
    assert all(tensor.dtype == half for tensor in module.parameters())


def test_weights_are_put_back_when_a_layer_fails() -> None:
    module = Layers(fail_at=1).to(torch.bfloat16)
    with pytest.raises(torch.OutOfMemoryError), widened(module, torch.float32):
        module(torch.randn(2, 8))
    assert all(tensor.dtype == torch.bfloat16 for tensor in module.parameters())


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(x)


class Awkward(nn.Module):
    """Does something when it is run in float32 that it does not do in bfloat16."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.up, self._what = nn.Linear(8, 8), what

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float32:
            if self._what == "too large" and x.shape[0] > 4:
                raise torch.OutOfMemoryError("planted")
            if self._what == "narrow":
                x = x.to(torch.bfloat16)
            if self._what == "nan":
                return self.up(x) * torch.nan
            if self._what == "rounded":
                return self.up(x).to(torch.bfloat16)
        return self.up(x)


@pytest.mark.parametrize(
    ("what", "cause", "served"),
    [
        ("too large", "^eager in float32 does not fit into memory$", [4]),
        ("narrow", "^eager does not run in float32: RuntimeError: .*dtype", []),
        ("nan", "^eager's results have no counterpart in float32$", []),
        ("rounded", "^eager's results have no counterpart in float32$", []),
    ],
)
def test_a_bucket_without_an_exact_result_says_why(what: str, cause: str, served: list[int]) -> None:
    target = half_target(Awkward(what))
    _, exact = run_exact(target)
    assert sorted(exact.results) == served
    assert re.search(cause, exact.lack.cause), exact.lack.cause
    assert exact.lack.remedy
    assert next(target.module.parameters()).dtype == torch.bfloat16


def test_what_has_no_wider_dtype_and_what_is_sharded_has_no_exact_result() -> None:
    widest = own_target(Plain().double(), "cpu", randn_in(torch.float64))
    _, exact = run_exact(widest)
    assert exact.results == {}
    assert exact.lack.cause == "weights in float64 have no wider dtype to be compared in"
    sharded = half_target(Plain())
    eager, _ = run_exact(sharded)
    sharded.alignment = object()
    exact = exact_results(sharded, lambda batch: pytest.fail("was run"), {}, eager)
    assert "sharded" in exact.lack.cause


class Remembering(nn.Module):
    """Writes a buffer and a counter, and keeps a table that it makes when it is first run."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.calls = nn.Linear(8, 8), 0
        self.register_buffer("last", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last.copy_(x[0])
        self.table = x.mean() if x.dtype == torch.float32 else x[0, 0].clone()
        return self.up(x) + self.last


def test_state_that_forwards_change_is_put_back() -> None:
    target = half_target(Remembering())
    run = Eager(target).run
    batch = bucket_batch(target, 4)
    expected = [run(batch)]
    module = target.module
    calls, last, table = module.calls, module.last.clone(), module.table
    exact = exact_results(target, run, {4: [bucket_batch(target, 4, 7)]}, {4: expected})
    assert exact.lack is None
    assert (module.calls, module.table) == (calls, table)
    assert module.last.dtype == torch.bfloat16
    assert same_bits(module.last, last)


def test_full_precision_leaves_the_settings_as_they_were() -> None:
    torch.set_float32_matmul_precision("high")
    try:
        with full_precision():
            assert torch.get_float32_matmul_precision() == "highest"
            assert not torch.backends.cudnn.allow_tf32
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision("highest")


def test_a_batch_is_widened_without_its_whole_numbers() -> None:
    seen = []

    def run(batch: Batch) -> Tensor:
        seen.append({name: value.dtype for name, value in batch.inputs.items()})
        return torch.zeros(4, 8)

    target = half_target(Plain())
    batch = Batch({"x": torch.zeros(4, 8).bfloat16(), "positions": torch.arange(4)}, (4,))
    exact_results(target, run, {4: [batch]}, {4: [torch.zeros(4, 8).bfloat16()]})
    assert seen == [{"x": torch.float32, "positions": torch.int64}]
