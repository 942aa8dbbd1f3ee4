"""Words and numbers of pages, from hand-made reports; how pages are drawn is in `tests/browser`."""

from __future__ import annotations

import re
from html import unescape

import msgspec

from bcg.report import Report
from bcg_cli.views.kinds import html_page
from tests.cli.reports import gpu_report, profile_report


def text_of(report: Report) -> str:
    """Returns what a page says, in one line."""
    body = html_page(report).partition("<main>")[2].partition("</main>")[0]
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", body)).split())


def test_what_breaks_allocate_is_not_said_to_be_in_the_pool() -> None:
    words = "What breaks allocate for themselves is part of eager's peak, and stays outside the pool at replay."
    assert words in text_of(gpu_report())
    assert words not in text_of(gpu_report(num_layers=0))


def test_a_profile_says_what_its_peak_is_and_is_not() -> None:
    text = text_of(profile_report())
    assert "driver MiB tensors, peak MiB" in text
    assert "weights included; memory that a graph keeps in its pool without a tensor is not in it." in text
    unknown = [msgspec.structs.replace(mode, peak_bytes=None) for mode in profile_report().modes]
    assert "Peak of tensors" not in text_of(profile_report(modes=unknown))
