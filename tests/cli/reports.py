"""Hand-made reports: views are tested without measuring anything."""

from __future__ import annotations

from typing import Any

import msgspec

from bcg.report import (
    BreakRow,
    CaptureBucket,
    CaptureReport,
    CaptureTotals,
    Card,
    CheckBucket,
    CheckReport,
    CheckTiming,
    Divergence,
    Environment,
    ModelInfo,
    ModeName,
    ModeRow,
    ModeSummary,
    ProfileBucket,
    ProfileReport,
    ProfileTotals,
    PromptCheck,
    ReportWarning,
    SegmentRow,
    Timeline,
    TimelineStep,
)
from bcg.sizes import MIB


def gpu_report(num_layers: int = 28, **changes: Any) -> CaptureReport:
    """Makes the report of a transformer with two buckets on a GPU."""
    breaks = [
        BreakRow(
            index=layer,
            name="sdpa_attention_forward",
            module=f"layers.{layer}.self_attn",
            source="attention",
            boundary_bytes=4 * MIB,
        )
        for layer in range(num_layers)
    ]
    segments = [
        SegmentRow(index=index, modules=_modules(index, num_layers), num_operations=30, num_kernels=14)
        for index in range(num_layers + 1)
    ]
    steps = [step for i in range(num_layers) for step in (f"segment:{i}", f"break:{i}")]
    report = CaptureReport(
        environment=Environment(
            device="NVIDIA H100 80GB HBM3",
            device_type="cuda",
            driver="580.95.05",
            cuda="13.0",
            torch="2.11.0+cu130",
            cuda_python="13.0.3",
            transformers="5.17.0",
            kernel_packages={"nvidia-cudnn-frontend": "1.24.0"},
            bcg="0.1.0",
            python="3.11.7",
        ),
        model=ModelInfo(
            name="qwen3-0.6b",
            source="preset",
            architecture="Qwen3Model",
            num_parameters=596_049_920,
            weight_bytes=1_192_099_840,
            dtype="bfloat16",
            seed=0,
            weights="random",
        ),
        options={"tokens": [2048, 4096]},
        buckets=[bucket(2048, num_layers), bucket(4096, num_layers)],
        totals=CaptureTotals(
            num_captured=2,
            capture_ms=140.0,
            pool_bytes=320 * MIB,
            driver_bytes=14 * MIB,
            boundary_bytes=168 * MIB,
            eager_peak_bytes=301 * MIB,
        ),
        map_tokens=4096,
        map=[*steps, f"segment:{num_layers}"],
        segments=segments,
        breaks=breaks,
    )
    return msgspec.structs.replace(report, **changes)


def host_report(**changes: Any) -> CaptureReport:
    """Makes the report of a small transformer on the host device."""
    report = gpu_report(num_layers=4)
    host = msgspec.structs.replace(
        report.environment,
        device="host (x86_64)",
        device_type="cpu",
        driver=None,
        cuda=None,
        torch="2.13.0+cpu",
    )
    segments = [msgspec.structs.replace(row, num_kernels=None) for row in report.segments]
    return msgspec.structs.replace(report, environment=host, segments=segments, **changes)


def bucket(tokens: int, num_breaks: int, **changes: Any) -> CaptureBucket:
    """Makes a captured bucket."""
    made = CaptureBucket(
        tokens=tokens,
        status="captured",
        num_segments=num_breaks + 1,
        num_breaks=num_breaks,
        num_kernels=14 * (num_breaks + 1),
        warmup_ms=12.5,
        capture_ms=70.0,
        pool_bytes=160 * MIB,
        driver_bytes=7 * MIB,
        boundary_bytes=tokens * 28 * 1024,
        eager_peak_bytes=301 * MIB * tokens // 4096,
    )
    return msgspec.structs.replace(made, **changes)


def warning() -> ReportWarning:
    """Makes a warning whose texts can be told apart."""
    return ReportWarning(code="W1", message="the message", cause="the cause", remedy="the remedy")


def _modules(index: int, num_layers: int) -> list[str]:
    before = ["embed_tokens", "rotary_emb"]
    if index > 0:
        before = [f"layers.{index - 1}.self_attn.o_proj", f"layers.{index - 1}.mlp.down_proj"]
    if index == num_layers:
        return [*before, "norm"]
    return [*before, f"layers.{index}.input_layernorm", f"layers.{index}.self_attn.k_norm"]


TOKENS = (16, 64, 256, 1024, 4096)
STEP_MS: dict[ModeName, tuple[float, ...]] = {
    "eager": (50.0, 50.2, 50.9, 88.0, 340.0),
    "full": (11.0, 11.4, 16.9, 81.0, 331.0),
    "breakable": (11.1, 11.5, 17.1, 81.9, 333.0),
    "compiled": (7.5, 7.9, 14.8, 76.0, 312.0),
    "fused": (7.3, 7.6, 14.4, 74.8, 309.0),
}
STARTUP_S: dict[ModeName, float] = {"eager": 0.4, "full": 1.6, "breakable": 1.9, "compiled": 170.0, "fused": 14.2}


def profile_report(**changes: Any) -> ProfileReport:
    """Makes the report of five modes at five token counts on a GPU; `piecewise` fell back."""
    captured = gpu_report(num_layers=36)
    report = ProfileReport(
        environment=captured.environment,
        model=msgspec.structs.replace(captured.model, name="qwen3-8b", num_parameters=8_190_735_360),
        options={"tokens": list(TOKENS), "modes": [*STEP_MS, "piecewise"], "rounds": 20},
        buckets=[
            ProfileBucket(tokens=tokens, modes=[*(_mode_row(mode, index) for mode in STEP_MS), _fallen()])
            for index, tokens in enumerate(TOKENS)
        ],
        modes=[*(_mode_summary(mode) for mode in STEP_MS), ModeSummary(mode="piecewise", **_FALLEN)],
        totals=ProfileTotals(
            num_rounds=20, steps_per_round=10, rounds="interleaved", fastest={str(tokens): "fused" for tokens in TOKENS}
        ),
        timelines=[Timeline(mode="breakable", tokens=16, steps=_timeline_steps(captured))],
        map_tokens=4096,
        map=captured.map,
        segments=captured.segments,
        breaks=captured.breaks,
        warnings=[warning()],
    )
    return msgspec.structs.replace(report, **changes)


_FALLEN: dict[str, Any] = {"status": "fell back", "reason": "the compiler skipped 5 of 5 graphs: mutated inputs"}


def _fallen() -> ModeRow:
    return ModeRow(mode="piecewise", **_FALLEN)


def _mode_row(mode: ModeName, index: int) -> ModeRow:
    p50_ms, eager_ms = STEP_MS[mode][index], STEP_MS["eager"][index]
    broken, is_compiled = mode in ("breakable", "fused"), mode in ("compiled", "fused")
    return ModeRow(
        mode=mode,
        status="measured",
        p50_ms=p50_ms,
        p95_ms=p50_ms * 1.03,
        round_ms=[p50_ms * (1 + 0.004 * (number % 5 - 2)) for number in range(20)],
        tokens_per_s=TOKENS[index] / p50_ms * 1e3,
        host_us=49_000.0 if mode == "eager" else 1_900.0 if broken else 120.0,
        segments_ms=0.9 * p50_ms if broken else None,
        breaks_ms=0.1 * p50_ms if broken else None,
        busy_share=0.2 if mode == "eager" else 0.97,
        graph_launches=0 if mode == "eager" else 37 if broken else 1,
        kernel_launches=1100 if mode == "eager" else 36 if broken else 0,
        compile_s=STARTUP_S[mode] / len(TOKENS) if is_compiled else 0.0,
        pool_bytes=0 if mode == "eager" else 300 * MIB // (len(TOKENS) - index),
        driver_bytes=0 if mode == "eager" else 12 * MIB,
        transient_bytes=TOKENS[index] * 75_000 if mode == "eager" else None,
        bitwise=not is_compiled,
        max_abs_error=0.0,
        relative_error=0.006 if is_compiled else 0.0,
        error_vs_exact=0.0075 if is_compiled else None,
        eager_error_vs_exact=0.008 if is_compiled else None,
        speedup_vs_eager=eager_ms / p50_ms,
        speedup_vs_full=STEP_MS["full"][index] / p50_ms,
        speedup_vs_compiled=STEP_MS["compiled"][index] / p50_ms,
    )


def _mode_summary(mode: ModeName) -> ModeSummary:
    compiles = mode in ("compiled", "fused")
    return ModeSummary(
        mode=mode,
        status="measured",
        startup_s=STARTUP_S[mode],
        compile_s=0.8 * STARTUP_S[mode] if compiles else 0.0,
        warmup_s=0.1 * STARTUP_S[mode],
        capture_s=0.1 * STARTUP_S[mode],
        pool_bytes=0 if mode == "eager" else 685 * MIB,
        driver_bytes=0 if mode == "eager" else 60 * MIB,
        memory_bytes=0 if mode == "eager" else 745 * MIB,
        peak_bytes=17_000 * MIB,
        num_graph_launches=0 if mode == "eager" else 37_000,
    )


def _timeline_steps(captured: CaptureReport) -> list[TimelineStep]:
    steps, host_us, device_us = [], 0.0, 12.0
    for key in captured.map:
        kind, _, index = key.partition(":")
        host, device = (4.5, 270.0) if kind == "segment" else (30.0, 38.0)
        steps.append(
            TimelineStep(
                kind=kind,
                index=int(index),
                name="sdpa_attention_forward layers.0.self_attn" if kind == "break" else "embed_tokens … norm",
                host_start_us=host_us,
                host_us=host,
                device_start_us=device_us,
                device_us=device,
            )
        )
        host_us, device_us = host_us + host + 0.5, device_us + device + 2.0
    return steps


def check_report(**changes: Any) -> CheckReport:
    """Makes the report of a check with one match, one mismatch that was located, prompts and a finding."""
    captured = gpu_report()
    report = CheckReport(
        environment=captured.environment,
        model=captured.model,
        options={"tokens": [16, 1024]},
        verdict="mismatch",
        buckets=[
            CheckBucket(tokens=16, verdict="match", bitwise=True, max_abs_error=0.0, num_replays=6, num_launches=174),
            CheckBucket(
                tokens=1024,
                verdict="mismatch",
                bitwise=False,
                max_abs_error=0.2,
                max_rel_error=0.5,
                num_replays=6,
                num_launches=174,
                reasons=["2 of 6 replays differ"],
                first_divergence=Divergence(module="layers.3.mlp", part="output", source_line="model.py:13"),
            ),
        ],
        spread=0.001,
        prompts=PromptCheck(
            verdict="inconclusive",
            num_prompts=5,
            num_replayed=4,
            num_eager=1,
            num_batches=2,
            num_tokens=1500,
            bitwise=False,
            max_abs_error=0.03,
            max_rel_error=0.04,
            num_next_tokens=4,
            num_other_next_tokens=1,
        ),
        findings=[
            Card(
                hazard="S2",
                title="0.25 is baked in",
                cause="a number is frozen",
                module="layers.3.mlp",
                break_option="--break 'layers.3.mlp'",
                occurrences=7,
            )
        ],
        timing=CheckTiming(eager_ms=12.0),
    )
    return msgspec.structs.replace(report, **changes)
