"""A dry run as one HTML page."""

from __future__ import annotations

import re
from html import escape

from bcg.report import PlanReport
from bcg.sizes import format_size
from bcg_cli.views.map_html import map_section
from bcg_cli.views.page import Tile, header, page, section, table, tiles
from bcg_cli.views.page_parts import automatic_sections, footer, options_section, warning_sections, workload_sections
from bcg_cli.views.plan_table import NOTHING_NEEDED, of_ranks, planned_words, shape_words
from bcg_cli.views.words import BOUNDARIES_EXPLAINED, format_mebibytes


def plan_page(report: PlanReport) -> str:
    """Returns a dry run as a page.

    Args:
        report: The report; nothing else is read.
    """
    totals = report.totals
    facts: list[Tile] = [
        (format_size(totals.weight_bytes), "weights"),
        (format_size(totals.input_bytes), "static inputs"),
        (format_size(totals.pool_bytes), "pool for all buckets"),
        (format_size(totals.graph_bytes), "graphs, about"),
        (format_size(totals.needed_bytes), "together"),
    ]
    if totals.gpu is not None:
        where = f"on {totals.gpu}"
        facts.append(("fits", where, "good") if totals.fits else ("doesn't fit", where, "bad"))
    rows = [
        [f"{bucket.tokens:,}", *map(format_mebibytes, (bucket.pool_bytes, bucket.used_bytes, bucket.boundary_bytes))]
        for bucket in report.buckets
    ]
    unknown = "".join(f"<li>{_with_code(line)}</li>" for line in report.unknown)
    body = [
        header("Dry run", report.model.name, [planned_words(report), NOTHING_NEEDED]),
        tiles(facts),
        *warning_sections(report.warnings),
        section(
            "Buckets",
            f"An estimate from shapes alone{of_ranks(report)}, of a pool whose largest bucket is the row's. "
            + BOUNDARIES_EXPLAINED,
            table(["tokens", "pool MiB", "of it used MiB", "boundaries MiB"], rows),
        ),
        section("Static inputs", "Buffers at fixed addresses, made for the largest bucket.", _input_table(report)),
        map_section(report, shows_externals=True),
        *automatic_sections(report.automatic_breaks),
        *workload_sections(report.workload),
        section("What a dry run can't know", "", f"<ul>{unknown}</ul>"),
        options_section(report.options),
        footer(report.environment, on_host=False),
    ]
    return page(f"{report.model.name}: dry run", body, {})


def _input_table(report: PlanReport) -> str:
    rows = [(escape(row.name), escape(shape_words(row)), format_size(row.num_bytes)) for row in report.inputs]
    return table(("name", "shape", "size"), rows, text_columns=(0, 1))


def _with_code(text: str) -> str:
    """Returns plain text as HTML, what stands between backticks as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))
