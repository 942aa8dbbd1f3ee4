"""The parts of a profile that need no process: notes, agreement, traces, ranges, tools, compiled layers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import torch

from bcg import BreakableCUDAGraph, BreakableCUDAGraphCapture
from bcg.profile.agreement import agreement
from bcg.profile.launches import read_activity
from bcg.profile.notes import notes
from bcg.profile.steps import split_of
from bcg.profile.tools import ncu_command, nsys_command
from bcg.ranges import Ranges
from bcg.report import ProfileReport, TimelineStep
from bcg.report.profile import ProfileBucket
from tests.cli.reports import profile_report
from tests.targets import Around, own_target
from tests.unit.test_attention import SPARSE, load
from tests.unit.test_compare import times

rename = msgspec.structs.replace


def codes(report: ProfileReport) -> set[str]:
    return {note.code for note in notes(report)}


def rounds(report: ProfileReport, values: list[float]) -> ProfileReport:
    """The same report with these rounds, relative to each row's median."""
    buckets = [
        rename(
            bucket,
            modes=[
                rename(row, round_ms=[row.p50_ms * value for value in values]) if row.p50_ms else row
                for row in bucket.modes
            ],
        )
        for bucket in report.buckets
    ]
    return rename(report, buckets=buckets)


def test_quiet_rounds_have_no_note_but_what_fell_back_has() -> None:
    assert codes(profile_report()) == {"fell-back"}


def test_noise_and_drift_are_noted() -> None:
    assert "noisy-rounds" in codes(times(profile_report(), 1.0, noise=0.1))
    assert "thermal-drift" in codes(rounds(profile_report(), [1.0, 1.0, 1.0, 1.02, 1.04, 1.05, 1.06, 1.06, 1.06]))
    assert "thermal-drift" not in codes(rounds(profile_report(), [1.0, 1.01] * 5))


def test_too_few_rounds_for_a_spread_are_noted() -> None:
    noted = {note.code: note for note in notes(rounds(profile_report(), [1.0, 1.5, 1.0]))}
    assert noted["unknown-spread"].message == "how noisy 25 of 25 rows are is unknown"
    assert "noisy-rounds" not in noted
    assert "unknown-spread" not in codes(rounds(profile_report(), [1.0] * 4))


def test_an_eager_that_keeps_the_gpu_busy_is_noted_with_its_smallest_size() -> None:
    report = profile_report()
    buckets = [
        rename(
            bucket,
            modes=[
                rename(row, busy_share=0.98 if bucket.tokens >= 1024 else 0.3) if row.mode == "eager" else row
                for row in bucket.modes
            ],
        )
        for bucket in report.buckets
    ]
    (note,) = [note for note in notes(rename(report, buckets=buckets)) if note.code == "eager-is-busy"]
    assert note.message == "eager is already 98% GPU-busy at 1024 tokens: graphs cannot help there"
    assert note.cause and note.remedy


def test_rows_that_have_fewer_rounds_than_were_wanted_are_noted() -> None:
    """However many the other modes have."""
    report = profile_report()
    first = report.buckets[0]
    modes = [rename(row, round_ms=row.round_ms[:4]) if row.mode == "fused" else row for row in first.modes]
    (note,) = [
        note
        for note in notes(rename(report, buckets=[rename(first, modes=modes), *report.buckets[1:]]))
        if note.code == "cut-short"
    ]
    assert note.message == "1 of 25 rows have fewer than 20 rounds, fewest of all fused at 16 tokens: 4"


def test_rows_that_a_cut_profile_did_not_look_into_are_noted() -> None:
    report = profile_report()
    last = rename(
        report.buckets[-1],
        modes=[rename(row, graph_launches=None) if row.mode == "fused" else row for row in report.buckets[-1].modes],
    )
    (note,) = [
        note for note in notes(rename(report, buckets=[*report.buckets[:-1], last])) if note.code == "not-looked-into"
    ]
    assert note.message.startswith("1 of 25 rows have no launches")
    assert note.message.endswith("first fused at 4096 tokens")


def replay_of(*host_us: float) -> list[TimelineStep]:
    """A replay of a segment, a break and a segment on the host device."""
    kinds = ("segment", "break", "segment")
    return [
        TimelineStep(kind=kind, index=index // 2, name="", host_start_us=0.0, host_us=length)
        for index, (kind, length) in enumerate(zip(kinds, host_us, strict=True))
    ]


def test_segments_and_breaks_are_medians_over_replays() -> None:
    split = split_of([replay_of(100, 30, 200), replay_of(110, 20, 200), replay_of(5000, 900, 9000)])
    assert (split.segments_ms, split.breaks_ms) == pytest.approx((0.31, 0.03))
    assert (split.segments_host_us, split.breaks_host_us) == (310, 30)


def test_segments_and_breaks_longer_than_their_step_are_noted() -> None:
    report = profile_report()
    (first, *others) = report.buckets
    rows = [rename(row, segments_ms=30.0) if row.mode == "breakable" else row for row in first.modes]
    longer = rename(report, buckets=[rename(first, modes=rows), *others])
    (note,) = [note for note in notes(longer) if note.code == "longer-in-parts"]
    assert note.message == "segments and breaks of breakable at 16 tokens take 2.8 times its whole step"


def copying() -> ProfileReport:
    """A report of attention that was not written in place."""
    report = profile_report()
    return rename(report, environment=rename(report.environment, kernel_packages={}))


def test_results_that_are_copied_are_noted_with_the_bucket_that_they_slow_down_most() -> None:
    (note,) = [note for note in notes(copying()) if note.code == "copied-results"]
    assert note.message == "breakable takes 1.2% longer than full at 256 tokens"
    assert "bcg-cli[cudnn]" in note.remedy


def as_fast(bucket: ProfileBucket) -> ProfileBucket:
    return rename(bucket, modes=[rename(row, speedup_vs_full=0.995) for row in bucket.modes])


@pytest.mark.parametrize(
    "change",
    [
        lambda report: {"environment": rename(report.environment, device_type="cpu")},
        lambda report: {"breaks": [rename(one, source="explicit") for one in report.breaks]},
        lambda report: {"buckets": [as_fast(bucket) for bucket in report.buckets]},
        lambda report: {"buckets": [rename(one, modes=one.modes[:1]) for one in report.buckets]},
    ],
    ids=["host device", "no attention break", "as fast as full", "eager alone"],
)
def test_there_is_no_such_note_where_nothing_is_to_gain(change: Callable[[ProfileReport], dict[str, Any]]) -> None:
    assert "copied-results" not in codes(rename(copying(), **change(copying())))


@pytest.mark.parametrize(
    ("num_ranks", "cause"),
    [
        (2, "the processes of a sharded model run one mode at a time"),
        (None, "memory does not hold the model once for each mode"),
    ],
)
def test_alternated_rounds_are_noted(num_ranks: int | None, cause: str) -> None:
    """Also where no mode has a map, with which the rows of the ranks come."""
    report = profile_report()
    report = rename(report, options={**report.options, "tp": num_ranks}, ranks=[])
    alternated = rename(report, totals=rename(report.totals, rounds="alternated"))
    (note,) = [note for note in notes(alternated) if note.code == "alternated-rounds"]
    assert note.cause == cause


def test_agreement_compares_both_parts_of_complex_numbers() -> None:
    one = torch.complex(torch.linspace(1, 2, 8), torch.linspace(1, 2, 8))
    assert agreement(one, one * (1 + 1e-6)).within
    assert not agreement(one, one.conj().resolve_conj()).within
    spoilt = one.clone()
    spoilt.imag[3] = torch.nan
    assert agreement(spoilt, spoilt.clone()).within
    assert not agreement(spoilt, one).within and not agreement(one, spoilt).within


def test_an_exact_result_of_fewer_tensors_is_refused() -> None:
    one = torch.ones(4)
    with pytest.raises(ValueError, match="shorter"):
        agreement((one, one), (one, one + 1), (one,))


def test_agreement_tells_bits_rounding_and_wrong() -> None:
    one = torch.randn(8, 16)
    assert agreement(one, one.clone()).bitwise
    near = agreement(one, one * (1 + 1e-6))
    assert (near.bitwise, near.within) == (False, True)
    far = agreement(one, one + 0.1)
    assert not far.within
    assert far.max_abs_error == pytest.approx(0.1, rel=1e-4)
    assert not agreement(one, torch.full_like(one, torch.nan)).within
    assert not agreement(one, one[:4]).within
    assert not agreement((one, one), one).within
    assert not agreement(torch.zeros(4), torch.ones(4)).within
    with_nan = torch.where(one > 1, torch.nan, one)
    assert agreement(with_nan, with_nan.clone()).bitwise


def test_activity_of_a_trace() -> None:
    events = [
        {"cat": "kernel", "name": "a", "ts": 0, "dur": 10},
        {"cat": "kernel", "name": "b", "ts": 5, "dur": 10},
        {"cat": "gpu_memcpy", "name": "c", "ts": 100, "dur": 5},
        {"cat": "kernel", "name": "ncclDevKernel_AllReduce_Sum_bf16_RING_LL", "ts": 200, "dur": 900},
        {"cat": "cuda_runtime", "name": "cudaGraphLaunch", "ts": 0, "dur": 1},
        {"cat": "cuda_driver", "name": "cuLaunchKernelEx", "ts": 0, "dur": 1},
        {"cat": "cuda_runtime", "name": "cudaStreamSynchronize", "ts": 0, "dur": 1},
        {"cat": "cpu_op", "name": "aten::add", "ts": 0, "dur": 1000},
        {"ph": "M", "name": "process_name"},
    ]
    found = read_activity(events, num_steps=2)
    assert found is not None
    assert (found.busy_ms, found.graph_launches, found.kernel_launches) == (0.01, 0.5, 0.5)
    assert read_activity(events[3:], num_steps=2) is None, "a collective that waits is no work"


def test_without_a_tool_there_is_no_range_at_all() -> None:
    ranges = Ranges()
    assert not ranges.active
    with ranges.make("segment 0", "segment", 0)() as nothing:
        assert nothing is None


def test_with_a_tool_ranges_are_registered_prebuilt_and_balanced(monkeypatch: pytest.MonkeyPatch) -> None:
    import nvtx

    class Recorder:
        def __init__(self) -> None:
            self.made: list[dict] = []
            self.stack: list[object] = []
            self.log: list[str] = []

        def get_event_attributes(self, **attributes: object) -> dict:
            self.made.append(attributes)
            return attributes

        def push_range(self, attributes: dict) -> None:
            self.log.append(f"+{attributes['message']}")

        def pop_range(self) -> None:
            self.log.append("-")

    domain = Recorder()
    monkeypatch.setattr(nvtx, "get_domain", lambda name: domain if name == "bcg" else None)
    ranges = Ranges()
    assert ranges.active
    assert not Ranges(wanted=False).active
    segment, whole = ranges.make("segment 3", "segment", 3), ranges.make("profile", "replay")
    made = len(domain.made)
    with pytest.raises(ZeroDivisionError), whole(), segment():
        1 / 0  # noqa: B018
    with segment():
        pass
    assert domain.log == ["+profile", "+segment 3", "-", "-", "+segment 3", "-"]
    assert len(domain.made) == made == 2
    assert domain.made[0] == {"message": "segment 3", "color": 0xFF3B82F6, "category": "segment", "payload": 3}


def test_command_lines_of_the_tools() -> None:
    nsys = nsys_command(["qwen3-8b", "--tokens", "16"], "breakable")
    assert "--capture-range=nvtx --nvtx-capture=profile@bcg" in nsys
    assert nsys.endswith("bcg profile qwen3-8b --tokens 16 --modes breakable --rounds 1")
    ncu = ncu_command(["qwen3-8b"], "fused")
    assert "--nvtx --nvtx-include 'bcg@segment 0/'" in ncu
    assert ncu.endswith("bcg profile qwen3-8b --modes fused --rounds 1")


@pytest.mark.parametrize(("preset", "most"), [("qwen3-tiny", 2), ("nemotron-h-tiny", 5)])
def test_one_compilation_serves_all_layers_and_token_counts(
    monkeypatch: pytest.MonkeyPatch, preset: str, most: int
) -> None:
    """The back end is left out, which takes long and is not ours: tracing, cuts and guards are what is tested."""
    from bcg import load_target
    from bcg.modes.base import bucket_batch
    from bcg.modes.compilers import compiler_settings, read_counts
    from bcg.modes.eager import Eager
    from bcg.modes.fused import compile_layers

    plain, target = (load_target(preset, device="cpu") for _ in range(2))
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    before = read_counts()
    compiler_settings()
    assert compile_layers(target.module) >= 4
    assert target.module.config.hidden_size == 64
    for tokens in (64, 32, 4):  # as many tokens as the hidden size: the compiler must not take the two for one
        batch = bucket_batch(plain, tokens)
        assert agreement(Eager(plain).run(batch), Eager(target).run(batch)).within
        made = read_counts().since(before)
        assert made.graphs <= most, "a piece before and after the break of each kind of layer, and nothing beside them"
        assert made.notes == []
    torch._dynamo.reset()


def test_the_only_layer_is_compiled_and_what_is_beside_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    from bcg.modes.fused import compile_layers

    compiled = []
    monkeypatch.setattr(torch, "compile", lambda forward, **_: compiled.append(forward) or forward)
    module = load("qwen3", config={"num_hidden_layers": 1}).module
    assert compile_layers(module) == 1
    assert [type(forward.__self__).__name__ for forward in compiled] == ["Qwen3DecoderLayer"]


def test_gathers_of_flattened_matrices_divide_by_a_constant() -> None:
    """The compiler divides by the dynamic number of rows otherwise; negative indices count from the end."""
    from torch.fx.experimental.proxy_tensor import make_fx

    from bcg.modes.gathers import SplitFlatGathers

    def program(scores: torch.Tensor, index: torch.Tensor) -> tuple[torch.Tensor, ...]:
        chosen = scores.topk(3).values
        line, flat = scores.sum(1), chosen.reshape(-1)
        return flat[index], chosen.reshape(-1, 1)[index], line[index % 5], flat[flat > 0.5]

    scores, index = torch.rand(7, 5), torch.tensor([0, 20, -1, -21, 4, 11])
    graph = make_fx(program, tracing_mode="symbolic")(scores, index)
    gathers = [node for node in graph.graph.nodes if node.target == torch.ops.aten.index.Tensor]
    SplitFlatGathers()(graph.graph)
    graph.graph.lint()
    graph.recompile()
    assert [len(node.args[1]) for node in gathers] == [2, 1, 1, 1], "the first alone is a flattened matrix"
    for _ in range(2):
        assert all(map(torch.equal, graph(scores, index), program(scores, index)))
        scores, index = torch.rand(9, 5), torch.tensor([26, -27, 13, 8, 7, 0])  # other rows than were traced


def test_recurrent_mixers_are_left_to_their_own_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    from bcg import load_target
    from bcg.modes.base import bucket_batch
    from bcg.modes.fused import compile_layers

    compiled: set[str] = set()

    def collect(graph: torch.fx.GraphModule, _: Any) -> Any:
        compiled.update(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    target = load_target("nemotron-h-tiny", device="cpu", attention_break=False)
    assert target.break_rules.mixers == ()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=collect))
    compile_layers(target.module)
    target(bucket_batch(target, 8).inputs)
    assert any("rsqrt" in name for name in compiled), "the layers around them are compiled"
    assert not any("conv1d" in name or "cumsum" in name for name in compiled)
    torch._dynamo.reset()


def test_attention_that_goes_by_its_name_is_not_left_to_the_compiler() -> None:
    from bcg.modes.fused import Fused

    (preparation,) = Fused(load("deepseek_v32", config=SPARSE)).prepare((8,))
    assert preparation.status == "not available"
    assert (preparation.reason or "").startswith("attention of DeepseekV32Model asks for its name")
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiler_that_skips_its_graphs_fell_back() -> None:
    """On the host device the compiler runs, but has no CUDA graphs: that must never look like a time."""
    from pathlib import Path

    from bcg import load_target
    from bcg.modes.compiled import Compiled

    target = load_target(f"{Path(__file__).parent / 'models.py'}:layered", device="cpu", attention_break=False)
    (preparation,) = Compiled(target).prepare((4,))
    assert preparation.status == "fell back", preparation.reason
    assert "CUDA graphs skipped" in preparation.reason
    torch._dynamo.reset()


def test_breaks_at_compiled_modules_are_none_to_the_compiled_modes() -> None:
    from bcg.modes.compiled import remove_module_breaks

    module = Around(torch.nn.Linear(4, 4))
    module.inner.compile(backend="eager")
    target = own_target(
        module, "cpu", lambda n, device, generator: {"x": torch.rand(n, 4, generator=generator)}, break_globs=("inner",)
    )
    for num_breaks in (1, 0):
        graph = BreakableCUDAGraph("cpu")
        with torch.inference_mode(), BreakableCUDAGraphCapture(graph):
            target({"x": torch.zeros(2, 4)})
        assert graph.num_breaks == num_breaks
        remove_module_breaks(target)


def test_functions_that_are_breaks_are_no_modules_to_the_compiled_modes() -> None:
    from bcg import load_target
    from bcg.modes.compiled import remove_module_breaks

    target = load_target("qwen3-tiny", device="cpu", break_globs=["torch.nn.functional:silu", "layers.0.mlp"])
    assert "forward" in vars(target.module.layers[0].mlp)
    remove_module_breaks(target)
    assert "forward" not in vars(target.module.layers[0].mlp)


def test_what_eager_has_no_number_for_is_compared_beside_an_exact_result() -> None:
    one = torch.linspace(1, 2, 8)
    spoilt = one.clone()
    spoilt[3] = torch.nan
    assert agreement(spoilt, spoilt * (1 + 1e-7), one.double()).alike
    assert not agreement(spoilt, one, one.double()).within


def test_the_numbers_of_noise_and_drift() -> None:
    noted = {note.code: note for note in notes(rounds(profile_report(), [0.9, 1.0, 1.0, 1.1]))}
    assert noted["noisy-rounds"].message.endswith("spread over 15% of their median")
    noted = {note.code: note for note in notes(rounds(profile_report(), [1.0] * 6 + [1.06] * 3))}
    assert noted["thermal-drift"].message == "rounds became 6% slower from the first third to the last"
