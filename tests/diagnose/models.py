"""Models with one planted fault each, in the middle one of three layers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot as one_hot_vectors

from bcg.breaks import eager_on_graph
from bcg.context import current_forward_context
from bcg.target import Target
from tests.targets import own_target


class Inner(nn.Module):
    """Applies a fault to its input."""

    def __init__(self, fault: Callable[[Inner, Tensor], Tensor] | None) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.fault = fault
        self.num_calls = 0

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        return x if self.fault is None else self.fault(self, x)


class Layer(nn.Module):
    def __init__(self, fault: Callable[[Inner, Tensor], Tensor] | None) -> None:
        super().__init__()
        self.inner = Inner(fault)
        self.out = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out(self.inner(x)).tanh()


class Model(nn.Module):
    def __init__(self, *faults: Callable[[Inner, Tensor], Tensor] | None) -> None:
        super().__init__()
        self.embedding = nn.Embedding(32, 8)
        self.layers = nn.ModuleList(Layer(fault) for fault in faults)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embedding(input_ids)
        for layer in self.layers:
            x = layer(x)
        return x


def chooses_by_value(inner: Inner, x: Tensor) -> Tensor:
    chosen: Tensor = torch.cond(x.sum() > 0, lambda t: t * 2, lambda t: t - 1, (x,))
    return chosen


@torch.library.custom_op("bcg_tests::scaled_by_sum", mutates_args=())
def scaled_by_sum(x: Tensor) -> Tensor:
    """Reads a value below the dispatcher."""
    return x * x.sum().item()


@scaled_by_sum.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def reads_in_an_operation(inner: Inner, x: Tensor) -> Tensor:
    scaled: Tensor = scaled_by_sum(x)
    return scaled


class ReadsInTheRoot(Model):
    def forward(self, input_ids: Tensor) -> Tensor:
        return super().forward(input_ids) * (1 if input_ids[0, 0].item() % 2 else 2)


class TakesSparse(Model):
    def forward(self, input_ids: Tensor) -> Tensor:
        return self.layers[0].inner(self.embedding(input_ids)).to_dense()


def target_of(module: nn.Module, device: str, *, break_globs: tuple[str, ...] = ()) -> Target:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.5)
    return own_target(module, device, name="planted", break_globs=break_globs)


def reads_a_value(inner: Inner, x: Tensor) -> Tensor:
    return x / (1 + x[0, 0].abs().max().item())


def takes_a_branch(inner: Inner, x: Tensor) -> Tensor:
    return x * 2 if x[0, 0, 0] > 0 else x - 1


def writes_by_mask(inner: Inner, x: Tensor) -> Tensor:
    y = x.clone()
    y[x > 0] = y[x > 0] * 2
    return y


def fills_by_mask(inner: Inner, x: Tensor) -> Tensor:
    y = x.clone()
    return y.index_put_((x > 1e9,), x.flatten()[:0])


def scaled_by_nonzero(x: Tensor) -> Tensor:
    """Has a result of fixed shape though its inside has none."""
    rows = (x[..., 0] > 0).nonzero()
    return x * (1 + rows.new_ones(()) * len(rows))


def calls_a_function(inner: Inner, x: Tensor) -> Tensor:
    return scaled_by_nonzero(x)


def makes_a_constant(inner: Inner, x: Tensor) -> Tensor:
    return x * torch.tensor([0.5, 2.0] * 4, device=x.device)


def makes_a_live_value(inner: Inner, x: Tensor) -> Tensor:
    context = current_forward_context()
    assert context is not None
    return x * torch.tensor(float(context.num_tokens), device=x.device)


def counts_its_calls(inner: Inner, x: Tensor) -> Tensor:
    inner.num_calls += 1
    return x * inner.num_calls


def counts_on_the_side(inner: Inner, x: Tensor) -> Tensor:
    inner.num_calls += 1
    return x


def reads_and_counts(inner: Inner, x: Tensor) -> Tensor:
    return counts_its_calls(inner, scaled_by_nonzero(x))


def gives_nothing_but_nan(inner: Inner, x: Tensor) -> Tensor:
    return x * float("nan")


def one_hot(inner: Inner, x: Tensor) -> Tensor:
    return x + one_hot_vectors(x.argmax(-1), num_classes=8)


def one_hot_of_the_largest(inner: Inner, x: Tensor) -> Tensor:
    return x + one_hot_vectors(x.argmax(-1)).sum(-1, keepdim=True)


def mixes_by_a_sparse_matrix(inner: Inner, x: Tensor) -> Tensor:
    return torch.sparse.mm((x[0] @ x[0].mT).relu().to_sparse(), x[0])[None]


def mixes_by_a_break_s_sparse_matrix(inner: Inner, x: Tensor) -> Tensor:
    return torch.sparse.mm(sparse_scores(x[0]), x[0])[None]


@eager_on_graph
def sparse_scores(x: Tensor) -> Tensor:
    return (x @ x.mT).relu().to_sparse()


def makes_sparse(inner: Inner, x: Tensor) -> Tensor:
    return x.to_sparse()


def draws_from_its_own_generator(inner: Inner, x: Tensor) -> Tensor:
    if "generator" not in vars(inner):  # none can be made while a stream is captured
        inner.generator = torch.Generator(x.device)
    return x * torch.rand(x.shape[-1], generator=inner.generator, device=x.device).clamp(0.5, 0.5)


def allocates_pinned_memory(inner: Inner, x: Tensor) -> Tensor:
    torch.empty(8, pin_memory=True)
    return x * 2


def copies_to_pinned_memory(inner: Inner, x: Tensor) -> Tensor:
    torch.empty(8).pin_memory()
    return x * 2


def asks_whether_it_is_captured(inner: Inner, x: Tensor) -> Tensor:
    return scaled_unless_captured(x)


def scaled_unless_captured(x: Tensor) -> Tensor:
    return x * (1 if is_captured() else 3)


def makes_a_constant_only_when_captured(inner: Inner, x: Tensor) -> Tensor:
    return x * 3 if not is_captured() else x * a_constant(x)


def a_constant(x: Tensor) -> Tensor:
    return torch.tensor(3.0, device=x.device)


def is_captured() -> bool:
    try:
        return torch.cuda.is_current_stream_capturing()
    except RuntimeError:  # a torch without CUDA does not know the question
        return False
