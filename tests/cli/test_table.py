"""The capture table, from hand-made reports."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console

from bcg.report import CaptureReport, CaptureTotals, write_report
from bcg.sizes import MIB, format_size
from bcg_cli.views.capture_table import capture_view
from bcg_cli.views.words import format_count, format_mebibytes
from tests.cli.reports import bucket, gpu_report, host_report, profile_report, warning


def shown(report: CaptureReport, width: int = 80) -> list[str]:
    console = Console(width=width, highlight=False, markup=False, force_terminal=False, color_system=None)
    with console.capture() as capture:
        console.print(capture_view(report), crop=False)
    return [line.rstrip() for line in capture.get().splitlines()]


def row_of(lines: list[str], first_word: str) -> list[str]:
    return next(line.split() for line in lines if line.split()[:1] == [first_word])


def test_every_column_of_a_bucket() -> None:
    lines = shown(gpu_report())
    assert row_of(lines, "tokens") == [
        *["tokens", "segments", "breaks", "kernels", "ms", "MiB"],
        "Δ",
        "MiB",
        "MiB",
        "peak",
        "status",
    ]
    assert row_of(lines, "4,096") == ["4,096", "29", "28", "406", "70.0", "160.0", "7.00", "112.0", "301.0", "captured"]
    assert row_of(lines, "total") == ["total", "140.0", "320.0", "14.00", "301.0", "2", "of", "2"]


def test_boundaries_are_said_to_share_the_pool() -> None:
    words = "Boundaries, the results of breaks, lie in the pool and share its memory: not all are in use at once."
    assert words in " ".join(shown(gpu_report()))
    assert words not in " ".join(shown(gpu_report(num_layers=0)))


def test_words_and_numbers_stay_whole_on_a_narrow_terminal() -> None:
    lines = shown(gpu_report(map=[]), width=40)
    assert "…" not in "".join(lines)
    assert row_of(lines, "4,096") == ["4,096", "29", "28", "406", "70.0", "160.0", "7.00", "112.0", "301.0", "captured"]
    assert "boundary" in "".join(lines)


def test_a_narrow_terminal_shows_the_whole_table(bcg: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_report(profile_report(), tmp_path / "p.json")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "50")
    done = bcg("report", tmp_path / "p.json")
    assert re.search(r"^.*eager +16 +50.000 +51.500 +320 49,000 +20% +0 +1.00 +0 +–", done.out, re.MULTILINE)


def test_the_header_says_model_and_machine() -> None:
    text = " ".join(shown(gpu_report()))
    assert "qwen3-0.6b: Qwen3Model, 596.05 million bfloat16 weights (1.11 GiB), random, seed 0" in text
    machine = "NVIDIA H100 80GB HBM3: driver 580.95.05, CUDA 13.0, torch 2.11.0+cu130, transformers 5.17.0"
    assert f"{machine}, nvidia-cudnn-frontend 1.24.0, bcg" in text


def test_the_header_says_which_packages_the_kernels_can_come_from() -> None:
    environment = msgspec.structs.replace(gpu_report().environment, kernel_packages={"mamba-ssm": "2.3.2"})
    assert "transformers 5.17.0, mamba-ssm 2.3.2, bcg 0.1.0" in " ".join(shown(gpu_report(environment=environment)))


def test_the_pool_stands_beside_eagers_peak() -> None:
    text = " ".join(shown(gpu_report()))
    peak = "One pool of 320.00 MiB serves every bucket; an eager forward takes up to 301.00 MiB for a moment."
    breaks = "What breaks allocate for themselves is part of eager's peak, and stays outside the pool at replay."
    assert f"{peak} {breaks}" in text
    whole = " ".join(shown(gpu_report(num_layers=0)))
    assert peak in whole and breaks not in whole


def test_the_host_device_says_operations_and_is_no_gpu() -> None:
    lines = shown(host_report())
    assert row_of(lines, "tokens")[3] == "operations"
    assert "Captured on the host device: its times say nothing about a GPU." in lines
    assert "CUDA" not in "\n".join(lines)


def test_the_map_is_folded_and_in_order() -> None:
    lines = shown(gpu_report())
    start = lines.index("Map of 4,096 tokens: 29 segments and 28 breaks in order")
    assert [line.split("  ")[0].strip() for line in lines[start + 1 :]] == [
        *("segment 0", "break 0", "segment 1", "…", "break 27", "segment 28")
    ]
    assert re.search(r"^…\s+52 steps\s+layers\.1–26: as layers\.0$", "\n".join(lines), re.MULTILINE)
    assert "break 0     attention   layers.0.self_attn (sdpa_attention_forward)" in lines


def test_layers_that_differ_in_size_are_not_folded() -> None:
    report = gpu_report()
    odd = msgspec.structs.replace(report.segments[9], num_kernels=15)
    report = msgspec.structs.replace(report, segments=[*report.segments[:9], odd, *report.segments[10:]])
    assert any(line.startswith("segment 9 ") for line in shown(report))


def test_no_break_at_all() -> None:
    report = gpu_report(num_layers=0, breaks=[], buckets=[bucket(4096, 0)])
    lines = shown(report)
    assert "Map of 4,096 tokens: 1 segments and 0 breaks in order" not in lines
    assert "Map of 4,096 tokens: 1 segment and 0 breaks in order" in lines


def test_a_bucket_without_memory_is_shown_and_explained() -> None:
    lost = bucket(8192, 28, status="out of memory", error="tried to allocate 2 GiB")
    lines = shown(gpu_report(buckets=[bucket(4096, 28), lost]))
    assert row_of(lines, "8,192") == ["8,192", *["–"] * 7, "602.0", "out", "of"]
    assert "8,192 tokens: tried to allocate 2 GiB" in lines


def test_an_unknown_peak_of_eager_is_said_to_be_unknown() -> None:
    report = gpu_report()
    report = gpu_report(
        buckets=[bucket(4096, 28, eager_peak_bytes=None)],
        totals=msgspec.structs.replace(report.totals, eager_peak_bytes=None),
    )
    lines = shown(report)
    words = "One pool of 320.00 MiB serves every bucket; an eager forward takes unknown memory for a moment."
    assert words in " ".join(lines)
    assert row_of(lines, "4,096")[8] == "–"


def test_nothing_captured_shows_no_map() -> None:
    lost = bucket(8192, 28, status="out of memory", eager_peak_bytes=None)
    totals = CaptureTotals(num_captured=0, capture_ms=0, pool_bytes=0, driver_bytes=0, boundary_bytes=0)
    lines = shown(gpu_report(buckets=[lost], totals=totals, map=[], segments=[], breaks=[], map_tokens=0))
    assert not any("Map of" in line or "One pool" in line for line in lines)
    assert row_of(lines, "total")[-3:] == ["0", "of", "1"]


def test_a_warning_has_cause_and_remedy() -> None:
    assert shown(gpu_report(warnings=[warning()]))[-3:] == [
        "warning: the message",
        "  cause:  the cause",
        "  remedy: the remedy",
    ]


@pytest.mark.parametrize("make", [gpu_report, host_report])
def test_it_fits_into_80_columns_and_has_no_escapes(make: Any) -> None:
    big = bucket(4096, 1000, num_kernels=123_456, pool_bytes=123_456 * MIB, boundary_bytes=9999 * MIB)
    lines = shown(make(buckets=[big]))
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in "\n".join(lines)
    assert row_of(lines, "4,096")[:6] == ["4,096", "1,001", "1,000", "123,456", "70.0", "123,456"]


def test_names_are_no_markup() -> None:
    report = gpu_report()
    model = msgspec.structs.replace(report.model, name="[red]x[/red]")
    assert any("[red]x[/red]: " in line for line in shown(msgspec.structs.replace(report, model=model)))


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        *((None, "–"), (0, "0"), (1, "<0.01"), (MIB // 2, "0.50"), (-MIB, "-1.00")),
        *((99 * MIB, "99.00"), (100 * MIB, "100.0"), (9999 * MIB, "9,999.0"), (2**40, "1,048,576")),
    ],
)
def test_mebibytes(num_bytes: int | None, text: str) -> None:
    assert format_mebibytes(num_bytes) == text


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 B"), (1023, "1,023 B"), (1024, "1.00 KiB"), (3 * 2**29, "1.50 GiB"), (2**52, "4,096.00 TiB")],
)
def test_sizes(num_bytes: int, text: str) -> None:
    assert format_size(num_bytes) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (180_928, "180,928"), (596_049_920, "596.05 million"), (8_190_735_360, "8.19 billion")],
)
def test_counts(count: int, text: str) -> None:
    assert format_count(count) == text
