"""The map of a bucket on a page: a strip of its steps, a table in which repeated layers are folded, kernels."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from bcg.report import BreakRow, MappedReport, MapRow, SegmentRow
from bcg.sizes import format_size
from bcg_cli.views.folding import Fold, fold_map, step_of
from bcg_cli.views.map_table import NOT_FOLLOWED, modules_in_short, outside_words, work_words
from bcg_cli.views.page import fold, section, table
from bcg_cli.views.words import plural

SHOWN_KERNELS = 40


def map_section(report: MappedReport[Any, Any], *, shows_externals: bool = False) -> str:
    """Returns the segment map: a strip of all steps, and a table in which equal layers are folded.

    Args:
        report: Only its map is read.
        shows_externals: Say of each segment what it reads from outside, and of each break what its result takes.
    """
    if not report.map:
        return ""
    rows = report.rows_by_step()
    strip = "".join(_block(key, rows[key]) for key in report.map)
    lines = []
    for step in fold_map([step_of(key, rows[key]) for key in report.map]):
        if isinstance(step, Fold):
            lines.append([f'<span class="muted">… {step.num_steps} steps</span>', "", "", escape(str(step))])
        else:
            name, holds, where = _map_cells(step.key, rows[step.key])
            outside = outside_words(rows[step.key]) if shows_externals else ""
            lines.append([name, holds, outside, where])
    legend = '<p class="legend"><span class="segment">■ segment</span><span class="break-name">■ break</span></p>'
    content = f'<div class="strip">{strip}</div>{legend}' + table(
        ["step", "holds", "outside", "where"], lines, text_columns=(0, 1, 2), prose_columns=(3,)
    )
    details = "".join(_kernel_details(row) for row in _distinct(report.segments))
    title = f"{plural(len(report.segments), 'segment')} and {plural(len(report.breaks), 'break')}"
    return section(title, f"The steps of {report.map_tokens:,} tokens in the order of replay.", content + details)


def _block(key: str, row: MapRow) -> str:
    name = key.replace(":", " ")
    if isinstance(row, BreakRow):
        return f'<i class="break" title="{escape(f"{name}: {row.name} {row.module}")}"></i>'
    work = max(1, row.num_operations if row.num_kernels is None else row.num_kernels)
    title = escape(f"{name}: {work_words(row)}")
    return f'<i style="flex:{work} 1 {min(60.0, 4 + 0.5 * work):.0f}px" title="{title}"></i>'


def _map_cells(key: str, row: MapRow) -> list[str]:
    name = escape(key.replace(":", " "))
    if isinstance(row, BreakRow):
        where = f"<code>{escape(row.module)}</code> {escape(row.name)}"
        return [f'<span class="break-name">{name}</span>', escape(row.source), where]
    where = f"<code>{escape(modules_in_short(row.modules))}</code>" if row.is_followed else NOT_FOLLOWED
    return [f'<span class="segment">{name}</span>', work_words(row), where]


def _distinct(segments: Sequence[SegmentRow]) -> list[SegmentRow]:
    """Returns one segment of each set of equal ones: those that run the same kernels."""
    seen: dict[tuple[tuple[str, int], ...], SegmentRow] = {}
    for row in segments:
        seen.setdefault(tuple(row.kernels.items()), row)
    return [row for row in seen.values() if row.kernels]


def _kernel_details(row: SegmentRow) -> str:
    ordered = sorted(row.kernels.items(), key=lambda item: -item[1])
    rows = [[str(count), f"<code>{escape(name[:300])}</code>"] for name, count in ordered[:SHOWN_KERNELS]]
    if len(ordered) > SHOWN_KERNELS:
        rows.append(["", f"… and {len(ordered) - SHOWN_KERNELS} more"])
    externals = f"reads {plural(row.num_externals, 'external tensor')} ({format_size(row.external_bytes)})"
    what = externals if row.is_followed else NOT_FOLLOWED
    return fold(f"segment {row.index}: {work_words(row)}, {what}", table(["", "kernel"], rows, prose_columns=(1,)))
