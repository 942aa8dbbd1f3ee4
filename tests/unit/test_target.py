from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from bcg.errors import ModelError
from bcg.models.build import Made, build_target
from bcg.structure import tensors_in
from bcg.target import Target, make_batch, plain_output
from bcg.words import TargetWords
from tests.targets import own_target

CPU = torch.device("cpu")


def rows(num_tokens: int, device: torch.device, generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {"x": torch.rand(num_tokens, 4, device=device, generator=generator)}


def load(forward: Any, make_inputs: Any = rows, **options: Any) -> Target:
    return load_module(model_of(forward), make_inputs, **options)


def load_module(module: nn.Module, make_inputs: Any = rows, **options: Any) -> Target:
    return build_target(Made(module, "factory", "user", make_inputs=make_inputs), TargetWords("mine", **options))


def model_of(forward: Any) -> nn.Module:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> Any:
            return forward(self.linear(x))

    return Model()


class Holder:
    def __init__(self, x: torch.Tensor) -> None:
        self.x = x


def test_output_structures_and_their_token_dimensions() -> None:
    assert load(lambda y: y).output_token_dims == (0,)
    target = load(lambda y: {"rows": y, "turned": (y.T, None), "mean": y.mean(0)})
    assert target.output_token_dims == (0, 1, None)
    assert target(rows(5, CPU, torch.Generator()))["turned"][0].shape == (4, 5)


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda y: None, "^the forward of mine returns no tensor, got NoneType"),
        (lambda y: [1, "two"], "^the forward of mine returns no tensor, got list"),
        (Holder, "^the forward of mine returns no tensor, got Holder"),
        (lambda y: y.mean(), "^no output of mine grows with the number of tokens"),
        (lambda y: y @ y.T, "^the token dimension of output 0 of mine is ambiguous"),
        (lambda y: list(y), "^the forward of mine returns more tensors for more tokens"),
        (lambda y: y.view(3, -1), rf"^the forward of mine raised at {__file__}:\d+, given x .8, 4.: Run.*: shape"),
    ],
)
def test_outputs_that_cannot_be_used(forward: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load(forward)


def test_a_model_that_does_not_take_its_inputs_keeps_the_cause() -> None:
    def other(n: int, device: torch.device, generator: torch.Generator) -> dict[str, torch.Tensor]:
        return {"y": torch.zeros(n, 4)}

    with pytest.raises(ModelError, match=r"^mine does not take its inputs \(y \[8, 4\]\): TypeError") as caught:
        load(lambda y: y, other)
    assert isinstance(caught.value.__cause__, TypeError)


def test_a_target_runs_in_inference_mode_and_eval() -> None:
    target = load(lambda y: y)
    assert target(rows(3, CPU, torch.Generator())).is_inference()
    assert not target.module.training


def test_a_plain_model_without_attention_gets_no_warning() -> None:
    target = load(lambda y: y)
    assert target.packs_requests
    assert target.warnings == []


def test_a_model_that_mixes_rows_is_warned_about() -> None:
    target = load(lambda y: y - y.mean(0))
    assert [warning.code for warning in target.warnings] == ["no-default-break", "requests-mix"]
    assert not target.packs_requests
    assert load(lambda y: y - y.mean(0), attention_break=False).warnings == []


def test_an_output_without_elements_is_no_mixing_of_requests() -> None:
    assert load(lambda y: (y, y[:, :0])).packs_requests


def test_random_numbers_are_no_mixing_of_requests() -> None:
    noisy = load(lambda y: y + torch.rand_like(y), attention_break=True)
    assert "requests-mix" not in [warning.code for warning in noisy.warnings]
    mixing = load(lambda y: y - y.mean(0) + torch.rand_like(y) * 1e-6)
    assert "requests-mix" in [warning.code for warning in mixing.warnings]
    assert not (noisy.packs_requests or mixing.packs_requests)


class Stateful(nn.Module):
    """Scales by what forwards before it left: in a buffer, in a parameter, on the host, or in a generator."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.num_calls = 0
        self.register_buffer("steps", torch.zeros(()))
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.num_calls += 1
        self.steps += 1
        if self.kind == "parameter":
            self.gain.mul_(2)
        scales = {"buffer": self.steps, "parameter": self.gain, "host": self.num_calls, "generator": torch.rand(())}
        return x * scales[self.kind]


@pytest.mark.parametrize("kind", ["buffer", "parameter", "host", "generator"])
def test_state_that_moves_on_is_no_mixing_of_requests(kind: str) -> None:
    target = load_module(Stateful(kind))
    assert target.packs_requests
    assert target.warnings == []


def test_last_hidden_state_is_taken_of_a_transformers_output() -> None:
    from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutput

    tensor = torch.ones(1, 2)
    assert plain_output(BaseModelOutputWithPast(last_hidden_state=tensor), "mine") is tensor
    plain = plain_output(CausalLMOutput(logits=tensor), "mine")
    assert plain == {"logits": tensor}
    assert type(plain) is dict


def test_dataclasses_are_looked_into_at_any_depth() -> None:
    @dataclass
    class Inner:
        h: torch.Tensor
        nothing: None = None

    tensor = torch.ones(1, 2)
    plain = plain_output((tensor, [Inner(tensor + 1)], deque([Inner(tensor + 2)])), "mine")
    assert [held.tolist() for held in tensors_in(plain)] == [[[n, n]] for n in (1.0, 2.0, 3.0)]
    assert plain[1][0].keys() == {"h"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_refused_in_words() -> None:
    with pytest.raises(ModelError, match="^mine is TorchScript, which tells neither its inputs nor its operations$"):
        load_module(torch.jit.trace(nn.Linear(4, 4), torch.rand(2, 4)))


def test_tensors_in_objects_that_nobody_looks_into_are_warned_of() -> None:
    class Model(nn.Linear):
        def forward(self, x: torch.Tensor) -> Any:
            y = super().forward(x)
            cache, mode = SimpleNamespace(layers=[SimpleNamespace(keys=y + 1)]), SimpleNamespace(a=1)
            mode.itself = [mode]
            return {"y": y, "cache": cache, "mode": mode}

    (warning,) = (one for one in load_module(Model(4, 4)).warnings if one.code == "hidden-outputs")
    assert warning.message == "the output has tensors inside a SimpleNamespace: they are neither compared nor cut"


def test_rows_that_see_those_behind_them_are_no_packed_prefill() -> None:
    class SeesTheNext(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = super().forward(x)
            return y + torch.cat([y[1:], torch.zeros_like(y[:1])])

    target = load_module(SeesTheNext(4, 4))
    assert not target.packs_requests


def test_batches_are_seeded_and_positions_restart_at_each_request() -> None:
    class Model(nn.Embedding):
        def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
            return super().forward((input_ids + position_ids) % 64)

    target = own_target(Model(64, 4), "cpu", name="mine", attention_break=True)
    assert [(spec.name, spec.shape, spec.token_dim) for spec in target.input_specs] == [
        ("input_ids", (1, -1), 1),
        ("position_ids", (1, -1), 1),
    ]
    first, again, other = (make_batch(target, (3, 2), torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert first.num_tokens == 5
    assert first.request_lengths == (3, 2)
    assert first.inputs["position_ids"].tolist() == [[0, 1, 2, 0, 1]]
    assert torch.equal(first.inputs["input_ids"], again.inputs["input_ids"])
    assert not torch.equal(first.inputs["input_ids"], other.inputs["input_ids"])
    assert first.inputs["input_ids"].max() < 64
