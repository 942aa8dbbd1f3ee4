"""`bcg.check` and `bcg.assert_graph_safe`: from a model to a report, or to one line of a test."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bcg import (
    BcgError,
    CheckFailure,
    ModelError,
    Target,
    UsageError,
    assert_graph_safe,
    check,
    current_forward_context,
    eager_on_graph,
    load_target,
)
from bcg.checking.outcome import failure_of
from bcg.report import decode_report, encode_report
from tests.targets import own_target


def make_inputs(num_tokens: int, device: torch.device, generator: torch.Generator) -> dict[str, Tensor]:
    return {"x": torch.rand((num_tokens, 4), device=device, generator=generator)}


class Pokes(nn.Module):
    """Clears its result behind torch's back: no operation, number or tensor tells."""

    def forward(self, x: Tensor) -> Tensor:
        result = x * 2
        ctypes.memset(result.data_ptr(), 0, result.numel() * result.element_size())
        return result + 1


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.doubling, self.poking = Doubles(), Pokes()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.poking(self.doubling(x))
        return result


class Parent(nn.Module):
    """Multiplies by the longest request of the capture between two children."""

    def __init__(self, first: nn.Module) -> None:
        super().__init__()
        self.first, self.last = first, Doubles()

    def forward(self, x: Tensor) -> Tensor:
        context = current_forward_context()
        result: Tensor = self.last(self.first(x) * (context.max_length if context else 1))
        return result


def target_of(module: nn.Module, device: str) -> Target:
    return own_target(module, device, make_inputs)


class Doubles(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2


class Counts(nn.Module):
    num_calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.num_calls += 1
        return x * 2


class Steps(nn.Module):
    """Adds a table row that a counter on the device chooses."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("table", torch.rand(1000, 4))

    def forward(self, x: Tensor) -> Tensor:
        self.step += 1
        return x + self.table.index_select(0, (self.step % 1000).view(1))


def test_a_module_is_checked_and_left_as_it_was(device: str) -> None:
    module: Any = Steps()
    target = target_of(module, device)
    before = int(module.step)
    report = check(target, buckets=(4, 8))
    assert {bucket.verdict for bucket in report.buckets} == {"match"}
    assert [card.hazard for card in report.findings] == ["S13"]
    assert report.findings[0].title.startswith("step has moved on")
    assert report.verdict == "mismatch"
    assert int(module.step) == before
    failure = failure_of(report)
    assert failure is not None
    assert failure.message.startswith(
        "all 2 buckets match, but only from a state that the captures had changed: S13: step has moved on"
    )


class NeedsTwoRows(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if len(x) == 1:
            raise ValueError("got a single row")
        return x * 2


def test_a_size_at_which_eager_fails_alone_is_warned_of(device: str) -> None:
    report = check(target_of(NeedsTwoRows(), device), buckets=(4, 8))
    assert (report.verdict, report.findings) == ("match", [])
    (warning,) = report.warnings
    assert warning.message == "eager fails for 1 token without padding: ValueError: got a single row"
    assert warning.remedy


def test_a_make_inputs_that_fails_at_one_size_is_told_in_one_line() -> None:
    def make(num_tokens: int, device: torch.device, generator: torch.Generator) -> dict[str, Tensor]:
        if num_tokens == 3:
            raise RuntimeError("no three")
        return make_inputs(num_tokens, device, generator)

    with pytest.raises(ModelError, match="^make_inputs raised RuntimeError for 3 tokens: no three$"):
        check(own_target(Doubles(), "cpu", make), buckets=(4,))


class Reshapes(nn.Module):
    def __init__(self, reshape: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.reshape = reshape

    def forward(self, x: Tensor) -> Tensor:
        return self.reshape(x).reshape(-1, 4) * 2


@pytest.mark.parametrize("reshape", [lambda x: x.unsqueeze_(0), lambda x: x.t_().t()], ids=["unsqueeze_", "t_"])
def test_a_forward_may_reshape_its_inputs_in_place(device: str, reshape: Callable[[Tensor], Tensor]) -> None:
    """Found by hand: the next batch was loaded into what the forward had made of the input."""
    report = check(target_of(Reshapes(reshape), device), buckets=(4, 8))
    assert (report.verdict, report.findings) == ("match", [])


class Calls(nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, **inputs: Tensor) -> Tensor:
        return self.function(**inputs)


class NeedsSmallNumbers(nn.Module):
    """Fails with the poisoned padding of a batch, which no capture meets."""

    def forward(self, x: Tensor) -> Tensor:
        return self.checked(x * 2) + 1

    @eager_on_graph
    def checked(self, x: Tensor) -> Tensor:
        if float(x.max()) > 3:
            raise ValueError("too large a number")
        return x.clone()


def test_an_eager_forward_that_fails_ends_the_check_in_one_line(device: str) -> None:
    with pytest.raises(ModelError, match=r"^the eager forward of test fails for 3 tokens in the bucket of 4: ValueErr"):
        check(target_of(NeedsSmallNumbers(), device), buckets=(4,))


def test_an_eager_forward_that_fails_beside_the_padding_of_a_replay_is_told_in_one_line() -> None:
    """On a GPU the same operation would cost this process the device."""

    def sample(x: Tensor) -> Tensor:
        return torch.multinomial(x / x.sum(-1, keepdim=True), 1)

    with pytest.raises(ModelError, match=r"^the eager forward of test fails for 3 tokens in the bucket of 4 beside ze"):
        check(target_of(Calls(sample), "cpu"), buckets=(4,))


class Masked(nn.Module):
    """A mean over the real rows, that it knows by a mask."""

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        weights = real.to(x.dtype).unsqueeze(-1)
        return x - (x * weights).sum(0) / weights.sum(0)


@pytest.mark.parametrize(("name", "dtype"), [("real", torch.bool), ("attention_mask", torch.int64)])
def test_padding_that_a_mask_tells_is_no_leak(name: str, dtype: torch.dtype, device: str) -> None:
    def make(num_tokens: int, device: torch.device, generator: torch.Generator) -> dict[str, Tensor]:
        return make_inputs(num_tokens, device, generator) | {name: torch.ones(num_tokens, dtype=dtype, device=device)}

    masked = Masked()
    module = Calls(lambda x, **masks: masked(x, masks[name]))
    assert check(own_target(module, device, make), buckets=(4, 8)).verdict == "match"
    blind = Calls(lambda x, **_: masked(x, torch.ones_like(x[:, 0])))
    report = check(own_target(blind, device, make), buckets=(4, 8))
    assert [card.hazard for card in report.findings] == ["S10"]


def test_padding_that_an_id_of_zero_tells_is_no_leak(device: str) -> None:
    def make(num_tokens: int, device: torch.device, generator: torch.Generator) -> dict[str, Tensor]:
        ids = torch.randint(1, 9, (num_tokens,), device=device, generator=generator)
        return make_inputs(num_tokens, device, generator) | {"ids": ids}

    masked = Masked()
    module = Calls(lambda x, ids: masked(x, ids != 0))
    assert check(own_target(module, device, make), buckets=(4, 8)).verdict == "match"
    blind = Calls(lambda x, ids: x - ids.to(x.dtype).mean())
    report = check(own_target(blind, device, make), buckets=(4, 8))
    assert [card.hazard for card in report.findings] == ["S10"]


class WritesParameter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        self.scale.mul_(1.25)
        return x * self.scale


def test_a_parameter_that_the_forward_writes_is_state(device: str) -> None:
    module = WritesParameter()
    target = target_of(module, device)
    before = module.scale.detach().clone()
    report = check(target, buckets=(4, 8))
    assert {bucket.verdict for bucket in report.buckets} == {"match"}
    assert [(card.hazard, card.title.split()[0]) for card in report.findings] == [("S13", "scale")]
    assert torch.equal(module.scale, before)


OF_THIS_FILE = torch.Generator().manual_seed(0)


class DrawsFromGlobal(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return self.noise(x) + 1

    @eager_on_graph
    def noise(self, x: Tensor) -> Tensor:
        return x + torch.rand(4, generator=OF_THIS_FILE).to(x.device)


def test_a_generator_of_the_models_file_is_put_back(device: str) -> None:
    target = target_of(DrawsFromGlobal(), device)
    target.packs_requests = False
    before = OF_THIS_FILE.get_state()
    report = check(target, buckets=(4, 8))
    assert (report.verdict, report.spread) == ("match", 0.0)
    assert torch.equal(OF_THIS_FILE.get_state(), before)


def test_a_module_stays_in_training_mode(device: str) -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4).eval())
    module[1].bias.requires_grad_(False)
    modes, wants = [part.training for part in module.modules()], [one.requires_grad for one in module.parameters()]
    for run in (check, assert_graph_safe):
        report = run(module, buckets=(4,), make_inputs=make_input, device=device)
        assert report.verdict == "match"
        assert [part.training for part in module.modules()] == modes
        assert [one.requires_grad for one in module.parameters()] == wants


def test_a_module_keeps_the_state_it_had_before_its_first_forward(device: str) -> None:
    module: Any = Steps()
    module.step += 7
    check(module, buckets=(4,), make_inputs=make_inputs, device=device)
    assert int(module.step) == 7


class FailsAfterAWhile(Steps):
    def forward(self, x: Tensor) -> Tensor:
        if self.step > 3:
            raise ValueError("four")
        return super().forward(x)


def test_a_module_is_left_as_it_was_by_a_check_that_fails(device: str) -> None:
    module: Any = FailsAfterAWhile()
    with pytest.raises(BcgError):
        check(module, buckets=(4,), make_inputs=make_inputs, device=device)
    assert (int(module.step), module.step.device.type, module.training) == (0, "cpu", True)


def test_a_module_is_on_its_own_device_again(device: str) -> None:
    module = nn.Linear(4, 4)
    module.register_buffer("scale", torch.ones(1))
    module(torch.ones(1, 4)).sum().backward()
    check(module, buckets=(4,), make_inputs=make_input, device=device)
    tensors = [*module.parameters(), *module.buffers(), *(one.grad for one in module.parameters())]
    assert [tensor.device.type for tensor in tensors if tensor is not None] == ["cpu"] * 5


@pytest.mark.parametrize("preset", ["qwen3-tiny", "nemotron-h-tiny"])
def test_a_model_attends_and_mixes_as_it_did(preset: str) -> None:
    module: Any = load_target(preset, attention_break=False).module
    forwards = [vars(part).get("forward") for part in module.modules()]
    check(module, buckets=(4,))
    assert module.config._attn_implementation == "sdpa"
    assert [vars(part).get("forward") for part in module.modules()] == forwards


def make_input(num_tokens: int, device: torch.device, generator: torch.Generator) -> dict[str, Tensor]:
    return {"input": make_inputs(num_tokens, device, generator)["x"]}


def test_what_nothing_explains_still_has_a_place() -> None:
    report = check(target_of(Chain(), "cpu"), buckets=(4,))
    (card,) = report.findings
    assert (card.hazard, card.module) == ("", "poking")
    assert card.title == "the first module that gives something else in replay; nothing frozen was found in it"
    place = report.buckets[0].first_divergence
    assert place is not None and (place.module, place.part) == ("poking", "output")


def test_a_fault_between_two_modules_is_their_parents(device: str) -> None:
    report = check(target_of(Parent(Doubles()), device), buckets=(4,))
    (card,) = report.findings
    assert (card.hazard, card.module) == ("S2", "")
    assert card.source_line.startswith(__file__)
    place = report.buckets[0].first_divergence
    assert place is not None and (place.module, place.part) == ("last", "input")


def test_a_report_survives_its_file(device: str) -> None:
    report = check(Doubles(), buckets=(4,), make_inputs=make_inputs, device=device)
    assert decode_report(encode_report(report)) == report
    assert report.environment.device_type == device
    assert report.model.architecture == "Doubles"


def test_one_line_of_a_test(device: str, tmp_path: Path) -> None:
    assert assert_graph_safe(Doubles(), buckets=(4,), make_inputs=make_inputs, device=device).verdict == "match"
    with pytest.raises(CheckFailure, match=r"^replay is not eager in 1 of 1 buckets: S12: num_calls is \d+ after a re"):
        assert_graph_safe(Counts(), buckets=(4,), make_inputs=make_inputs, device=device)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rtol": -1.0}, "^rtol must be a number of at least 0, got -1.0$"),
        ({"atol": float("nan")}, "^atol must be a number of at least 0, got nan$"),
        ({"num_rounds": 0}, "^a check needs at least one round, got 0$"),
        ({"buckets": (4, 4)}, "^token count 4 is given twice$"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check("qwen3-tiny", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"buckets": ()}, "^no token counts were given$"),
        ({"buckets": 8}, "^buckets must be whole numbers in a list, got 8$"),
        ({"buckets": (8.0,)}, r"^buckets must be whole numbers in a list, got \(8.0,\)$"),
        ({"buckets": "8"}, "^buckets must be whole numbers in a list, got '8'$"),
        ({"device": "nowhere"}, "^there is no device 'nowhere'$"),
        ({"device": "meta"}, "^device 'meta' can't record graphs$"),
        ({"model": lambda x: x}, "^a model must be a module, a target or a name, got function$"),
        ({"model": "qwen3-tiny"}, "^make_inputs is for a module: qwen3-tiny has inputs of its own$"),
    ],
)
def test_arguments_that_mean_nothing(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check(options.pop("model", Doubles()), make_inputs=make_inputs, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there() -> None:
    with pytest.raises(UsageError, match="^device 'cuda' was asked for, but torch .* sees no GPU$"):
        check(Doubles(), make_inputs=make_inputs, device="cuda")


def test_parameters_that_were_made_in_inference_mode() -> None:
    with torch.inference_mode():
        module = nn.Sequential(nn.Linear(4, 4))
    make: Any = lambda n, device, generator: {"input": torch.rand((n, 4), generator=generator)}  # noqa: E731
    assert check(module, buckets=(4,), make_inputs=make).verdict == "match"
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_without_the_attention_break_padding_leaks_in_a_bidirectional_model(minilm: Path) -> None:
    report = check(load_target(str(minilm), attention_break=False), buckets=(8, 16), num_rounds=1)
    assert [card.hazard for card in report.findings] == ["S10"]
    assert report.findings[0].module == "encoder.layer.0.attention.self"
    assert all(bucket.bitwise for bucket in report.buckets)


class Scripted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("two", torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x) * self.two


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_a_scripted_part_is_healthy() -> None:
    model = nn.Sequential(nn.Linear(4, 4), torch.jit.script(Scripted()))

    def make_inputs(num_tokens: int, device: torch.device, generator: torch.Generator) -> dict[str, Tensor]:
        return {"input": torch.rand(num_tokens, 4, generator=generator)}

    report = check(model, buckets=[4, 8], make_inputs=make_inputs)
    assert report.verdict == "match", report


@eager_on_graph
def mixed(matrix: Tensor, x: Tensor) -> Tensor:
    return torch.sparse.mm(matrix, x.T).T


class Mixes(nn.Module):
    """Holds a sparse tensor, which only its break works with."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("matrix", torch.eye(4).to_sparse())

    def forward(self, x: Tensor) -> Tensor:
        return mixed(self.matrix, x * 2) + 1


def test_a_model_may_hold_a_sparse_tensor() -> None:
    assert check(Mixes(), make_inputs=make_inputs, device="cpu", buckets=(4, 8)).verdict == "match"


class Spectrum(nn.Module):
    """Takes and gives complex numbers; the phase alone may be wrong, and padding may be mixed in."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault

    def forward(self, x: Tensor) -> Tensor:
        x = torch.fft.fft(x, dim=-1)
        if self.fault == "phase":
            context = current_forward_context()
            x = x * 1j ** (context.max_length if context else 1)
        return x * x.sum(0) if self.fault == "padding" else x


@pytest.mark.parametrize(("fault", "rows"), [("", []), ("phase", ["S2"]), ("padding", ["S10"])])
def test_complex_numbers_are_compared_with_both_parts(fault: str, rows: list[str]) -> None:
    def make_complex(num_tokens: int, device: torch.device, generator: torch.Generator) -> dict[str, Tensor]:
        return {"x": torch.rand((num_tokens, 4), dtype=torch.complex64, generator=generator)}

    report = check(Spectrum(fault), buckets=(4, 8), make_inputs=make_complex)
    assert [card.hazard for card in report.findings] == rows
    assert report.verdict == ("mismatch" if fault else "match")


def test_a_module_without_parameters_runs_where_it_is_told_to(device: str) -> None:
    class Doubles(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2

    places: set[str] = set()

    def make_noted(num_tokens: int, place: torch.device, generator: torch.Generator) -> dict[str, Tensor]:
        places.add(place.type)
        return {"x": torch.rand((num_tokens, 4), device=place, generator=generator)}

    assert check(Doubles(), buckets=(4, 8), make_inputs=make_noted, device=device).verdict == "match"
    assert places == {device}
