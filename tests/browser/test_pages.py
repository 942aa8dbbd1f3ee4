"""Reports as pages: drawn, silent, and alone with themselves."""

from __future__ import annotations

import re
from html import escape

import msgspec
import pytest

from bcg.report import AutomaticBreak, CaptureReport, Card, ProfileReport, Report, ReportWarning
from bcg_cli.views.kinds import html_page
from tests.cli.reports import gpu_report, host_report, profile_report, warning

HOSTILE = (
    "</script><script>document.title='owned'</script><img src=http://127.0.0.1:9/x onerror=alert(1)><b>&amp;"
    "\u202ereversed\u2066"
)
MEASURE = """<script>
const count = (selector, isWide) => [...document.querySelectorAll(selector)].filter(isWide).length;
document.documentElement.dataset.tables = count(".scroll", (box) => box.scrollWidth > box.clientWidth + 1);
document.documentElement.dataset.cells = count("td, th", (cell) => cell.offsetWidth > 400);
</script>"""
"""Counts tables that have to be scrolled, and cells that a phone can't show whole."""


@pytest.mark.parametrize(
    ("report", "num_plots"),
    [(gpu_report(warnings=[warning()]), 2), (host_report(), 2), (profile_report(), 7)],
    ids=["capture", "host", "profile"],
)
def test_a_page_draws_its_plots_in_silence(visit, report: Report, num_plots: int) -> None:
    seen = visit(html_page(report))
    assert seen.console == []
    assert seen.requests == []
    assert f'data-drawn="{num_plots}"' in seen.root
    boxes = re.findall(r'<div class="plot[^"]*" id="([\w-]+)"', seen.dom)
    assert len(boxes) == num_plots
    for box in boxes:
        drawn = seen.dom.split(f'id="{box}"', 1)[1].split("</section>", 1)[0]
        assert 'class="main-svg"' in drawn
        assert 'class="point' in drawn, f"{box} is empty"


def test_a_plot_that_fails_says_so_and_the_others_are_drawn(visit) -> None:
    report, rename = profile_report(), msgspec.structs.replace
    (first, *_) = report.buckets
    tiny = [rename(row, p50_ms=1e-320, p95_ms=1e-320) if row.p50_ms else row for row in first.modes]
    seen = visit(html_page(rename(report, buckets=[rename(first, modes=tiny)])))
    assert 'data-drawn="6"' in seen.root
    assert re.search(r'id="against"[^>]*>This plot could not be drawn: \w', seen.dom)


@pytest.mark.parametrize("scheme", ["0", "1"], ids=["dark", "light"])
def test_a_page_follows_the_systems_theme(visit, scheme: str) -> None:
    seen = visit(html_page(gpu_report()), f"--blink-settings=preferredColorScheme={scheme}")
    assert f'data-theme="{"dark" if scheme == "0" else "light"}"' in seen.root


def test_tables_fit_a_desktop_and_cells_a_phone(visit) -> None:
    card = Card(hazard="S2", title="baked in " * 20, cause="a cause " * 40, remedy="a remedy " * 40)
    found = gpu_report(cards=[card], warnings=[warning()])
    for report in (profile_report(), found):
        page = html_page(report).replace("</body>", f"{MEASURE}</body>")
        assert 'data-tables="0"' in visit(page, "--window-size=1400,900").root
        assert 'data-cells="0"' in visit(page, "--window-size=500,900").root


def test_a_hostile_report_is_only_text(visit) -> None:
    for report in (_hostile_capture(), _hostile_profile()):
        seen = visit(html_page(report))
        assert seen.console == []
        assert seen.requests == []
        assert "data-drawn" in seen.root
        shown = report.model.name.replace("\u202e", "?").replace("\u2066", "?")
        assert f"<title>{escape(shown, quote=False)}" in seen.dom
        assert not {"\u202e", "\u2066"} & {*seen.dom}
        assert "<img" not in seen.dom
        assert seen.dom.count("<script") == 3


def test_numbers_on_axes_are_whole(visit) -> None:
    slow = [msgspec.structs.replace(one, capture_ms=40_000.0) for one in gpu_report().buckets]
    seen = visit(html_page(gpu_report(buckets=slow)))
    assert ">30,000<" in seen.dom and ">30k<" not in seen.dom


def test_these_tests_would_see_a_request_and_an_error(visit) -> None:
    seen = visit("<!doctype html><img src='http://127.0.0.1:9/planted.png'><script>nothing.at.all</script>")
    assert seen.requests == ["http://127.0.0.1:9/planted.png"]
    assert any("nothing is not defined" in line for line in seen.console)


def _hostile_capture() -> CaptureReport:
    report = gpu_report(num_layers=2)
    rename = msgspec.structs.replace
    card = Card(**{field.name: HOSTILE for field in msgspec.structs.fields(Card) if field.type is str})
    return rename(
        report,
        model=rename(report.model, name=HOSTILE, architecture=HOSTILE),
        environment=rename(report.environment, device=HOSTILE, torch=HOSTILE),
        options={HOSTILE: [HOSTILE]},
        segments=[rename(row, modules=[HOSTILE], kernels={HOSTILE: 1}) for row in report.segments],
        breaks=[rename(row, name=HOSTILE, module=HOSTILE, source_line=HOSTILE) for row in report.breaks],
        buckets=[rename(row, status="failed", error=HOSTILE) for row in report.buckets[:1]] + report.buckets[1:],
        warnings=[ReportWarning(code=HOSTILE, message=HOSTILE, cause=HOSTILE, remedy=HOSTILE)],
        cards=[card],
        automatic_breaks=[
            AutomaticBreak(
                size="module",
                name=HOSTILE,
                module=HOSTILE,
                option=HOSTILE,
                decorator=HOSTILE,
                card=card,
                other_cards=[card],
                doubt=HOSTILE,
            )
        ],
    )


def _hostile_profile() -> ProfileReport:
    report, rename = profile_report(), msgspec.structs.replace
    replay = report.timelines[0]
    return rename(
        report,
        model=rename(report.model, name=HOSTILE),
        modes=[rename(mode, reason=HOSTILE, notes=[HOSTILE]) for mode in report.modes],
        timelines=[rename(replay, steps=[rename(step, name=HOSTILE) for step in replay.steps])],
    )
