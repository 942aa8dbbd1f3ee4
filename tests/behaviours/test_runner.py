"""Behaviours 32 to 40: the runner captures every bucket and replays batches of any size."""

from __future__ import annotations

import contextlib
import gc
import logging
import threading
import weakref
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from bcg import (
    Batch,
    BreakableCUDAGraphCapture,
    CaptureError,
    GraphRunner,
    ModelError,
    ReplayError,
    Target,
    UsageError,
    check,
    current_capture,
    current_forward_context,
    eager_on_graph,
    make_batch,
    make_target,
)
from bcg.report import decode_report, encode_report
from bcg.structure import tensors_in
from bcg.summary import capture_report
from bcg.sweep import _silent_logging
from tests.targets import own_target

WIDTH = 4


def make_inputs(num_tokens: int, device: torch.device, generator: torch.Generator) -> dict[str, Tensor]:
    return {"x": torch.rand((num_tokens, WIDTH), device=device, generator=generator)}


def target_of(module: nn.Module, device: str) -> Target:
    target = own_target(module, device, make_inputs)
    target.packs_requests = True  # rows get their request's index, which the probe takes for a leak
    return target


class Requests(nn.Module):
    """Adds each request's index to its rows, in a break that reads the live context."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[int, bool]] = []
        self.contexts: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append((len(x), isinstance(current_capture(), BreakableCUDAGraphCapture)))
        return self.add_index(x * 2) + 0.5

    @eager_on_graph
    def add_index(self, x: Tensor) -> Tensor:
        context = current_forward_context()
        assert context is not None
        self.contexts.append(context.request_lengths)
        result = x.clone()
        for index, (start, end) in enumerate(zip(context.offsets(), context.offsets()[1:], strict=False)):
            result[start:end] += index
        return result


@pytest.fixture
def module() -> Requests:
    return Requests()


@pytest.fixture
def runner(module: Requests, device: str) -> GraphRunner:
    return GraphRunner(target_of(module, device))


@pytest.fixture
def generator(runner: GraphRunner) -> torch.Generator:
    return torch.Generator(runner.target.device).manual_seed(5)


def test_32_each_bucket_is_warmed_up_and_then_captured_once(runner: GraphRunner, module: Requests) -> None:
    module.calls.clear()
    runner.capture([8, 16])
    assert dict.fromkeys(module.calls) == dict.fromkeys([(16, False), (16, True), (8, False), (8, True)])
    assert [tokens for tokens, captured in module.calls if captured] == [16, 8]


def test_33_a_batch_between_buckets_is_padded_and_cut(runner: GraphRunner, generator: torch.Generator) -> None:
    runner.capture([8, 16])
    batch = make_batch(runner.target, (6, 5), generator)
    replayed = runner.replay(batch).clone()
    assert replayed.shape == (11, WIDTH)
    assert torch.equal(replayed, runner.eager(batch))
    assert runner.graphs[16].num_replays == 1
    assert runner.graphs[8].num_replays == 0


def test_34_a_batch_above_the_largest_bucket_runs_eagerly_and_is_counted(
    runner: GraphRunner, generator: torch.Generator
) -> None:
    runner.capture([8])
    batch = make_batch(runner.target, (9,), generator)
    assert torch.equal(runner.replay(batch), runner.eager(batch))
    assert (runner.num_fallbacks, runner.num_replays) == (1, 0)


def test_35_without_a_bucket_there_is_a_clear_error(runner: GraphRunner, generator: torch.Generator) -> None:
    with pytest.raises(ReplayError, match="^no bucket was captured$"):
        runner.replay(make_batch(runner.target, (3,), generator))
    with pytest.raises(UsageError, match="^no token counts were given$"):
        runner.capture([])


@pytest.mark.parametrize("buckets", [[], [0], [-4], [8.0], ["8"], 8, [2**21]])
def test_buckets_that_are_none_cost_nothing(runner: GraphRunner, generator: torch.Generator, buckets: Any) -> None:
    runner.capture([4])
    batch = make_batch(runner.target, (3,), generator)
    with pytest.raises(UsageError):
        runner.capture(buckets)
    assert torch.equal(runner.replay(batch).clone(), runner.eager_padded(batch))


def test_a_batch_above_the_largest_bucket_is_checked_like_any_other(
    runner: GraphRunner, generator: torch.Generator
) -> None:
    runner.capture([4])
    batch = make_batch(runner.target, (6,), generator)
    wrong = {
        "wrong inputs": Batch({"y": batch.inputs["x"]}, (6,)),
        "wrong input 'x': expected float32": Batch({"x": batch.inputs["x"].double()}, (6,)),
        r"wrong input 'x': expected float32 \[5, 4\]": Batch(batch.inputs, (5,)),
        "wrong input 'x': expected a tensor, got list": Batch({"x": [1.0]}, (6,)),  # type: ignore[dict-item]
    }
    for message, one in wrong.items():
        with pytest.raises(ReplayError, match=f"^{message}"):
            runner.replay(one)
    assert runner.replay(batch).shape == (6, WIDTH)


class Paged(nn.Module):
    """Writes its rows to a cache, where the forward context tells."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("cache", torch.zeros(64, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(x * 2) + 1

    @eager_on_graph
    def attend(self, x: Tensor) -> Tensor:
        context = current_forward_context()
        assert context is not None
        slots = context.extras["slots"]
        self.cache[slots] = x[: len(slots)]
        result = torch.zeros_like(x)
        result[: len(slots)] = self.cache[slots] + slots.unsqueeze(1)
        return result


def make_slots(request_lengths: tuple[int, ...], device: torch.device, generator: torch.Generator) -> dict[str, Any]:
    return {"slots": torch.randperm(64, device=device, generator=generator)[: sum(request_lengths)]}


def test_extras_of_a_batch_reach_its_breaks(device: str, generator: torch.Generator) -> None:
    module = Paged().to(device)
    target = make_target(module, make_inputs, make_slots)
    runner = GraphRunner(target)
    runner.capture([4, 8])
    for tokens in (4, 3, 8, 11):
        batch = make_batch(target, (tokens,), generator)
        module.cache.zero_()
        replayed = runner.replay(batch).clone()
        assert torch.equal(module.cache[batch.extras["slots"]], batch.inputs["x"] * 2)
        assert torch.equal(replayed, runner.eager(batch))
    options = {"make_inputs": make_inputs, "make_extras": make_slots}
    assert check(Paged(), buckets=(4, 8), device=device, **options).verdict == "match"
    with pytest.raises(ModelError, match="KeyError: 'slots'"):
        make_target(Paged(), make_inputs)


def test_a_runner_of_something_else_says_what_makes_a_target() -> None:
    with pytest.raises(UsageError, match="^a runner captures a target, got Linear$") as caught:
        GraphRunner(nn.Linear(4, 4))  # type: ignore[arg-type]
    assert "make_target" in (caught.value.hint or "")


def test_36_breaks_read_the_live_batch(runner: GraphRunner, module: Requests, generator: torch.Generator) -> None:
    runner.capture([8])
    module.contexts.clear()
    for lengths in ((8,), (3, 5), (1, 1, 1), (2,)):
        batch = make_batch(runner.target, lengths, generator)
        replayed = runner.replay(batch).clone()
        assert module.contexts.pop() == lengths
        assert torch.equal(replayed, runner.eager(batch))
    assert current_forward_context() is None


def test_37_no_batch_is_kept_alive(runner: GraphRunner, generator: torch.Generator) -> None:
    runner.capture([8])
    batch = make_batch(runner.target, (5,), generator)
    tensor, whole = weakref.ref(batch.inputs["x"]), weakref.ref(batch)
    runner.replay(batch)
    del batch
    gc.collect()
    assert tensor() is None and whole() is None


def test_38_a_mix_of_sizes_equals_eager(runner: GraphRunner, module: Requests, generator: torch.Generator) -> None:
    runner.capture([4, 8, 16])
    captures = sum(captured for _, captured in module.calls)
    for lengths in [(16,), (1,), (4, 4), (3,), (8, 7), (5,), (2, 2), (16,), (1, 1, 1, 1, 1)] * 3:
        batch = make_batch(runner.target, lengths, generator)
        assert torch.equal(runner.replay(batch), runner.eager(batch))
    assert sum(captured for _, captured in module.calls) == captures == 3
    assert runner.num_replays == 27


def test_39_replays_are_counted(runner: GraphRunner, generator: torch.Generator) -> None:
    runner.capture([8])
    assert runner.num_replays == 0
    for _ in range(3):
        runner.replay(make_batch(runner.target, (8,), generator))
    assert runner.num_replays == 3


def test_40_everything_eager_through_the_graph_path(device: str, module: Requests) -> None:
    runner = GraphRunner(target_of(module, device), everything_eager=True)
    results = runner.capture([8])
    assert (runner.graphs[8].num_segments, runner.graphs[8].num_breaks) == (0, 1)
    report = capture_report(runner, results, {})
    assert decode_report(encode_report(report)) == report
    generator = torch.Generator(runner.target.device).manual_seed(5)
    for lengths in ((8,), (2, 3)):
        batch = make_batch(runner.target, lengths, generator)
        assert torch.equal(runner.replay(batch), runner.eager(batch))


def test_without_a_warm_up_eagers_peak_is_unknown(module: Requests) -> None:
    runner = GraphRunner(target_of(module, "cpu"), num_warmups=0)
    report = capture_report(runner, runner.capture([8, 16]), {})
    assert [row.eager_peak_bytes for row in report.buckets] == [None, None]
    assert report.totals.eager_peak_bytes is None


def test_replay_equals_eager_on_the_padded_batch(runner: GraphRunner, generator: torch.Generator) -> None:
    runner.capture([8, 16])
    batch = make_batch(runner.target, (3, 7), generator)
    replayed = runner.replay(batch).clone()
    assert torch.equal(replayed, runner.eager_padded(batch))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"x": torch.zeros(5, WIDTH)}, None),
        ({"y": torch.zeros(5, WIDTH)}, "wrong inputs: expected x, got y"),
        ({"x": torch.zeros(4, WIDTH)}, "wrong input 'x': expected float32 .5, 4., got float32 .4, 4."),
        ({"x": torch.zeros(5, WIDTH, dtype=torch.float64)}, "wrong input 'x': expected float32 .*, got float64"),
    ],
)
def test_other_inputs_are_refused(runner: GraphRunner, inputs: dict[str, Tensor], message: str | None) -> None:
    runner.capture([8])
    batch = Batch({name: value.to(runner.target.device) for name, value in inputs.items()}, (5,))
    if message is None:
        assert runner.replay(batch).shape == (5, WIDTH)
        return
    with pytest.raises(ReplayError, match=message):
        runner.replay(batch)


class Greedy(nn.Module):
    """Runs out of memory above a size."""

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 16:
            raise torch.OutOfMemoryError("planted: tried to allocate everything")
        return x + 1


def test_a_bucket_out_of_memory_is_reported_and_the_smaller_ones_are_captured(device: str) -> None:
    runner = GraphRunner(target_of(Greedy(), device))
    seen: list[tuple[int, str]] = []
    results = runner.capture([8, 32, 16], on_bucket=lambda result: seen.append((result.tokens, result.status)))
    assert seen == [(32, "out of memory"), (16, "captured"), (8, "captured")]
    assert results[0].error == "planted: tried to allocate everything"
    assert sorted(runner.graphs) == [8, 16]


@dataclass
class Rows:
    rows: Tensor
    nothing: Tensor | None = None


class ReturnsRows(nn.Module):
    def forward(self, x: Tensor) -> Rows:
        return Rows(x * 2)


def test_a_dataclass_as_output_is_its_fields(device: str) -> None:
    runner = GraphRunner(target_of(ReturnsRows(), device))
    runner.capture([8])
    batch = make_batch(runner.target, (5,), torch.Generator(runner.target.device).manual_seed(0))
    assert torch.equal(runner.replay(batch)["rows"], batch.inputs["x"] * 2)


class Hungry(nn.Module):
    """Really asks for more memory than there is above a size."""

    def forward(self, x: Tensor) -> Tensor:
        return x + (torch.empty(2**48, device=x.device) if len(x) > 16 else 1)


def test_memory_that_really_runs_out_is_out_of_memory_on_the_host_too(device: str) -> None:
    results = GraphRunner(target_of(Hungry(), device)).capture([8, 32])
    assert [(result.tokens, result.status) for result in results] == [(32, "out of memory"), (8, "captured")]


class FailsIn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        return x * x.sum().item() if current_capture() else x


def test_a_failed_bucket_says_bucket_module_and_line(device: str) -> None:
    runner = GraphRunner(target_of(FailsIn(), device))
    with pytest.raises(CaptureError, match="^bucket of 8 tokens: the host reads a device value") as caught:
        runner.capture([8])
    assert caught.value.hazard == "L1"
    assert caught.value.place is not None and caught.value.place.module == "FailsIn"


class Structured(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"rows": x * 2, "pair": (x.t() + 1, x.sum(0))}


def test_a_structured_output_is_cut_along_each_tensors_token_dimension(device: str) -> None:
    runner = GraphRunner(target_of(Structured(), device))
    runner.capture([8])
    generator = torch.Generator(runner.target.device).manual_seed(1)
    batch = make_batch(runner.target, (5,), generator)
    output = runner.replay(batch)
    assert [tuple(tensor.shape) for tensor in tensors_in(output)] == [(5, WIDTH), (WIDTH, 5), (WIDTH,)]
    assert torch.equal(output["rows"], runner.eager(batch)["rows"])


class OtherOutputs(nn.Module):
    """Returns something else where there are many rows."""

    def __init__(self, more: bool) -> None:
        super().__init__()
        self.more = more

    def forward(self, x: Tensor) -> list[Tensor]:
        rows = [x * 2, (x + 1)[:20]]
        return [x.sum(0), *rows] if self.more and len(x) > 16 else rows


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (True, "the forward of test returns 3 tensors for 32 tokens, 2 for 8"),
        (False, r"output 1 of test has the shape \[20, 4\] for 32 tokens"),
    ],
)
def test_outputs_that_could_not_be_cut_are_refused_at_capture(more: bool, message: str, device: str) -> None:
    runner = GraphRunner(target_of(OtherOutputs(more), device))
    with pytest.raises(CaptureError, match=f"^bucket of 32 tokens: {message}$"):
        runner.capture([16, 32])
    runner.capture([16])


class Named(Tensor):
    """A tensor of a class of the user's own."""


class ReturnsNamed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.as_subclass(Named) * 2


class Gradient(nn.Module):
    """Forces from an energy: a gradient that is part of the forward."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            place = x.clone().requires_grad_()
            (force,) = torch.autograd.grad(place.tanh().square().sum(), place)
        return force


@pytest.mark.parametrize("module", [ReturnsNamed(), Gradient()], ids=["subclass", "gradient"])
def test_what_autograd_and_classes_of_tensors_make_is_replayed(module: nn.Module) -> None:
    runner = GraphRunner(target_of(module, "cpu"))
    runner.capture([8])
    batch = make_batch(runner.target, (5,), torch.Generator().manual_seed(1))
    assert torch.equal(runner.replay(batch), runner.eager(batch))


def test_the_first_error_of_a_bucket_leaves_the_earlier_buckets(device: str) -> None:
    class Fails(nn.Module):
        at_tokens = 8

        def forward(self, x: Tensor) -> Tensor:
            if len(x) == self.at_tokens and current_capture() is not None:
                raise ValueError("planted")
            return x + 1

    module = Fails()
    runner = GraphRunner(target_of(module, device))
    with pytest.raises(CaptureError, match="^bucket of 8 tokens: ValueError: planted, in segment 0"):
        runner.capture([8, 16])
    assert sorted(runner.graphs) == [16]
    module.at_tokens = 0
    runner.capture([8, 16])
    assert sorted(runner.graphs) == [8, 16]


class ShapeCache(nn.Module):
    """Reads tables from a global cache that no module holds and that keeps only the newest two."""

    tables: ClassVar[dict[int, Tensor]] = {}

    def forward(self, x: Tensor) -> Tensor:
        tables = type(self).tables
        if len(x) not in tables:
            tables[len(x)] = torch.arange(len(x), device=x.device, dtype=x.dtype)
            for old in list(tables)[:-2]:
                del tables[old]
        return x + tables[len(x)][:, None]


def test_tables_that_no_module_holds_are_kept_for_their_graphs(device: str) -> None:
    runner = GraphRunner(target_of(ShapeCache(), device))
    runner.capture([4, 8, 16, 32])
    ShapeCache.tables.clear()
    churn = [torch.full((size,), float("nan"), device=device) for size in (4, 8, 16, 32) for _ in range(64)]
    generator = torch.Generator(runner.target.device).manual_seed(2)
    for tokens in (32, 4, 16, 8):
        batch = make_batch(runner.target, (tokens,), generator)
        assert torch.equal(runner.replay(batch), batch.inputs["x"] + torch.arange(tokens, device=device)[:, None])
    del churn


class Weighted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)
        self.tables = {"shift": torch.ones(WIDTH)}

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.tables = {name: fn(table) for name, table in self.tables.items()}
        return super()._apply(fn, recurse)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + self.tables["shift"]


def test_the_module_tree_explains_an_ordinary_model(device: str) -> None:
    runner = GraphRunner(target_of(Weighted(), device))
    runner.capture([4, 8])
    taped = [bool(segment.tape.operations) for tokens in (8, 4) for segment in runner.graphs[tokens].segments]
    assert taped == [True, device == "cpu"]
    module = runner.target.module
    module.tables = {}
    generator = torch.Generator(runner.target.device).manual_seed(2)
    churn = [torch.full((WIDTH,), float("nan"), device=device) for _ in range(64)]
    for tokens in (4, 8):
        batch = make_batch(runner.target, (tokens,), generator)
        expected = module.inner(batch.inputs["x"]) + 1
        assert torch.equal(runner.replay(batch), expected)
    del churn


def test_a_bucket_beyond_the_models_positions_is_refused(device: str) -> None:
    target = target_of(Weighted(), device)
    target.max_tokens = 8
    with pytest.raises(UsageError, match="^test has positions for 8 tokens, asked for a bucket of 16$"):
        GraphRunner(target).capture([8, 16])


def test_the_buckets_pool_bytes_add_up_to_the_pool(device: str) -> None:
    runner = GraphRunner(target_of(Weighted(), device))
    results = runner.capture([4, 16, 2**16])
    assert runner.pool is not None
    assert sum(result.pool_bytes for result in results) == runner.pool.reserved_bytes() > 0


class Waits(nn.Module):
    """Stands in a break, when it is told to, until it may go on."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.go_on = threading.Event(), threading.Event()
        self.is_waiting = False

    def forward(self, x: Tensor) -> Tensor:
        return self.wait(x * 2) + x

    @eager_on_graph
    def wait(self, x: Tensor) -> Tensor:
        if self.is_waiting:
            self.inside.set()
            self.go_on.wait(30)
        return x + 0


@pytest.mark.parametrize("way", ["replay", "eager_padded"])
def test_a_batch_that_comes_while_another_runs_is_refused_and_changes_nothing(device: str, way: str) -> None:
    module = Waits()
    target = target_of(module, device)
    runner = GraphRunner(target)
    runner.capture([8])
    first, second = (make_batch(target, (8,), torch.Generator(device).manual_seed(seed)) for seed in (1, 2))
    expected, results = runner.eager(first), []
    module.is_waiting = True
    thread = threading.Thread(target=lambda: results.append(runner.replay(first).clone()))
    thread.start()
    try:
        assert module.inside.wait(30)
        with pytest.raises(ReplayError, match="by another thread") as caught:
            getattr(runner, way)(second)
        assert caught.value.hazard == "S17"
    finally:
        module.go_on.set()
        thread.join()
    assert torch.equal(results[0], expected)


class ReturnsItsTable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = torch.ones(1000)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x * 2, self.table


def test_an_output_that_the_pool_does_not_own_is_kept() -> None:
    module = ReturnsItsTable()
    target = target_of(module, "cpu")
    runner = GraphRunner(target)
    runner.capture([8])
    module.table = torch.zeros(1000)
    churn = [torch.full((1000,), 7.0) for _ in range(64)]
    _, table = runner.replay(make_batch(target, (8,), torch.Generator()))
    assert table.tolist() == [1.0] * 1000
    assert len(churn) == 64


def test_inputs_that_require_gradients_leave_no_trace(device: str) -> None:
    target = target_of(Requests(), device)
    runner = GraphRunner(target)
    runner.capture([8])
    for _ in range(2):
        batch = make_batch(target, (8,), torch.Generator(device))
        runner.replay(Batch({"x": batch.inputs["x"].requires_grad_() * 1}, (8,)))
    assert not any(view.requires_grad for view in runner.input_views(8).values())


def test_a_runner_that_captured_in_inference_mode_replays_outside_of_it(device: str) -> None:
    target = target_of(Requests(), device)
    runner = GraphRunner(target)
    with torch.inference_mode():
        runner.capture([8])
    batch = make_batch(target, (5,), torch.Generator(device))
    assert torch.equal(runner.replay(batch), runner.eager(batch))


def test_a_callers_frozen_garbage_stays_frozen(device: str) -> None:
    target = target_of(Requests(), device)
    gc.freeze()
    try:
        GraphRunner(target).capture([8])
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()


def test_steps_are_looked_at_one_for_one(device: str) -> None:
    target = target_of(Requests(), device)
    runner = GraphRunner(target)
    runner.capture([8])
    (graph,) = runner.graphs.values()
    with pytest.raises(ValueError, match="longer than argument 1"):
        graph.replay([contextlib.nullcontext])
    assert graph.num_replays == 0


class KeepsACache(nn.Module):
    def forward(self, x: Tensor, cache: Tensor) -> Tensor:
        cache[: len(x)].add_(x)
        return x + 1


def test_an_input_that_the_forward_writes_to_is_told(device: str) -> None:
    def make(num_tokens: int, where: torch.device, generator: torch.Generator) -> dict[str, Tensor]:
        given = make_inputs(num_tokens, where, generator)
        return given | {"cache": torch.zeros(64, WIDTH, device=where)}

    runner = GraphRunner(own_target(KeepsACache(), device, make))
    results = runner.capture([8, 4])
    assert runner.written_inputs() == ("cache",)
    (warning,) = [one for one in capture_report(runner, results, {}).warnings if one.code == "written-input"]
    assert warning.message == "the forward writes to its input 'cache'"
    quiet = GraphRunner(target_of(Requests(), device))
    quiet.capture([8])
    assert quiet.written_inputs() == ()


def test_an_inner_capture_leaves_the_outer_one_silent() -> None:
    with _silent_logging():
        with _silent_logging():
            pass
        assert not logging.raiseExceptions
    assert logging.raiseExceptions
