"""Words and numbers of pages, from hand-made reports; how pages are drawn is in `tests/browser`."""

from __future__ import annotations

import re
from collections.abc import Callable
from html import unescape

import msgspec
import pytest
from rich.console import Console

from bcg.report import AutomaticBreak, BucketFitRow, Card, ModeRow, Report
from bcg_cli.views.kinds import html_page, terminal_view
from tests.cli.reports import check_report, gpu_report, profile_report, warning

console = Console(width=140, highlight=False, force_terminal=False, color_system=None)


def text_of(report: Report) -> str:
    """Returns what a page says, in one line."""
    body = html_page(report).partition("<main>")[2].partition("</main>")[0]
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", body)).split())


def test_what_breaks_allocate_is_not_said_to_be_in_the_pool() -> None:
    words = "What breaks allocate for themselves is part of eager's peak, and stays outside the pool at replay."
    assert words in text_of(gpu_report())
    assert words not in text_of(gpu_report(num_layers=0))


def test_an_unknown_peak_of_eager_is_said_to_be_unknown() -> None:
    totals = msgspec.structs.replace(gpu_report().totals, eager_peak_bytes=None)
    assert "unknown eager's transient peak" in text_of(gpu_report(totals=totals))


def test_a_profile_says_what_its_peak_is_and_is_not() -> None:
    text = text_of(profile_report())
    assert "driver MiB tensors, peak MiB" in text
    assert "weights included; memory that a graph keeps in its pool without a tensor is not in it." in text
    unknown = [msgspec.structs.replace(mode, peak_bytes=None) for mode in profile_report().modes]
    assert "Peak of tensors" not in text_of(profile_report(modes=unknown))


def test_what_an_unfollowed_segment_reads_is_not_known() -> None:
    """A capture without the tape, as of compiled code, wrote zeros, which are no counts."""
    followed = [msgspec.structs.replace(row, kernels={"gemm": 14}) for row in gpu_report().segments]
    unfollowed = [msgspec.structs.replace(row, modules=[], num_operations=0) for row in followed]
    recorded = gpu_report(segments=unfollowed)
    words = "captured without following operations: modules and what it reads are not known"
    text = text_of(recorded)
    assert f"segment 0: 14 kernels, {words}" in text
    assert "reads 0 external tensors" not in text
    with console.capture() as capture:
        console.print(terminal_view(recorded))
    assert re.search(rf"^segment 0 +14 kernels +{words}$", capture.get(), re.MULTILINE)
    text = text_of(gpu_report(segments=followed))
    assert words not in text
    assert "segment 0: 14 kernels, reads 0 external tensors" in text


def test_a_column_in_which_nothing_is_known_is_left_out() -> None:
    text = text_of(profile_report())
    assert "× compiled error" in text
    assert "× piecewise" not in text, "it fell back everywhere"


def test_a_row_without_a_time_says_why_unless_its_whole_mode_does() -> None:
    report = profile_report()
    first, *others = report.buckets
    lost = ModeRow(mode="fused", status="out of memory", reason="tried to allocate 2 GiB")
    rows = [lost if row.mode == "fused" else row for row in first.modes]
    text = text_of(profile_report(buckets=[msgspec.structs.replace(first, modes=rows), *others]))
    assert "fused, 16 tokens: tried to allocate 2 GiB" in text
    assert text.count("the compiler skipped 5 of 5 graphs: mutated inputs") == 1


def test_the_page_of_a_check_says_what_the_terminal_says() -> None:
    text, report = text_of(check_report()), check_report()
    with console.capture() as capture:
        console.print(terminal_view(report))
    for words in (
        "1,024 tokens: 2 of 6 replays differ",
        "1,024 tokens: the output of layers.3.mlp (model.py:13) differs first",
        "Eager differs from itself by 1.0e-03: no bits are compared.",
        "4 of 5 replayed, 1,500 tokens in 2 batches, 3 of 4 next tokens the same",
        "S2 0.25 is baked in (7 places)",
        "--break 'layers.3.mlp'",
    ):
        assert words in text
        assert words in capture.get()
    assert "inconclusive : max error 3.0e-02, relative 4.0e-02" in text


def test_a_verdict_has_its_colour_on_the_page_of_a_check() -> None:
    page = html_page(check_report())
    assert '<div class="tile bad"><b>mismatch</b><span>verdict</span>' in page
    assert '<span class="good">match (bitwise)</span>' in page
    assert '<span class="bad">mismatch</span>' in page
    assert '<span class="warn">inconclusive</span>' in page


def test_graphs_are_those_of_a_step_as_on_the_terminal() -> None:
    text = text_of(profile_report())
    assert "busy graphs × eager" in text
    assert "37,000" not in text, "launches of the whole run"


def test_a_workload_is_told_as_on_the_terminal() -> None:
    def row(name: str, buckets: list[int], padded: int) -> BucketFitRow:
        counts = {"padded_tokens": padded, "real_tokens": 400, "replayed_steps": 9, "num_steps": 12}
        return BucketFitRow(name=name, buckets=buckets, used_buckets=2, **counts)

    text = text_of(gpu_report(workload=[row("chosen", [6, 17], 10), row("engines' ladder", [4, 8, 16], 50)]))
    assert "observed. buckets count used padded of real replayed chosen 2 2 10 2.5% 75.0%" in text
    assert "--tokens 6,17" in text


def test_an_automatic_break_has_its_decorator_on_the_page() -> None:
    card = Card(hazard="L1", title="it reads", cause="so")
    decorator = "@bcg.eager_on_graph  # above forward at model.py:8"
    row = AutomaticBreak(
        size="module", name="Inner", module="layers.1", option="--break 'layers.1'", decorator=decorator, card=card
    )
    assert f"--break 'layers.1' or {' '.join(decorator.split())}" in text_of(gpu_report(automatic_breaks=[row]))


def test_no_field_of_an_automatic_break_is_markup() -> None:
    card = Card(hazard="<img>", title="<img>", cause="<img>", source_line="<img>")
    row = AutomaticBreak(size="module", name="<img>", module="<img>", option="<img>", decorator="<img>", card=card)
    assert "<img" not in html_page(gpu_report(automatic_breaks=[row], cards=[card])).partition("<main>")[2]


@pytest.mark.parametrize("make", [gpu_report, profile_report, check_report])
def test_warnings_come_before_everything_else(make: Callable[..., Report]) -> None:
    text = text_of(make(warnings=[warning()]))
    assert text.index("the message cause the cause") < text.index("Token counts")


def test_weights_are_called_as_on_the_terminal() -> None:
    report = gpu_report()
    users = msgspec.structs.replace(report.model, weights="user", seed=None)
    told = "596.05 million bfloat16 weights (1.11 GiB), as the factory made them, in eval mode"
    assert told in text_of(gpu_report(model=users))


def test_a_name_ends_no_attribute() -> None:
    rows = [msgspec.structs.replace(row, name='" onclick="x') for row in gpu_report().breaks]
    assert '" onclick="' not in html_page(gpu_report(breaks=rows)).partition("<main>")[2].partition("</main>")[0]


def test_a_kernels_name_is_no_markup() -> None:
    rows = [msgspec.structs.replace(row, kernels={"<img>": 1}) for row in gpu_report().segments]
    assert "<img" not in html_page(gpu_report(segments=rows)).partition("<main>")[2]
