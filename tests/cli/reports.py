"""Hand-made reports: views are tested without measuring anything."""

from __future__ import annotations

from typing import Any

import msgspec

from bcg.report import (
    BreakRow,
    CaptureBucket,
    CaptureReport,
    CaptureTotals,
    Environment,
    ModelInfo,
    ReportWarning,
    SegmentRow,
)

MEBIBYTE = 2**20


def gpu_report(num_layers: int = 28, **changes: Any) -> CaptureReport:
    """Makes the report of a transformer with two buckets on a GPU."""
    breaks = [
        BreakRow(
            index=layer,
            name="sdpa_attention_forward",
            module=f"layers.{layer}.self_attn",
            source="attention",
            boundary_bytes=4 * MEBIBYTE,
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
            pool_bytes=320 * MEBIBYTE,
            driver_bytes=14 * MEBIBYTE,
            boundary_bytes=168 * MEBIBYTE,
            eager_peak_bytes=301 * MEBIBYTE,
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
        pool_bytes=160 * MEBIBYTE,
        driver_bytes=7 * MEBIBYTE,
        boundary_bytes=tokens * 28 * 1024,
        eager_peak_bytes=301 * MEBIBYTE * tokens // 4096,
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
