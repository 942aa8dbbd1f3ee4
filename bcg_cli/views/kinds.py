"""Which view belongs to which kind of report."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from bcg.report import CheckReport, PlanReport, ProfileReport, Report
from bcg_cli.views.capture_html import capture_page
from bcg_cli.views.capture_table import capture_view
from bcg_cli.views.check_html import check_page
from bcg_cli.views.check_table import check_view
from bcg_cli.views.plan_html import plan_page
from bcg_cli.views.plan_table import plan_view
from bcg_cli.views.profile_html import profile_page
from bcg_cli.views.profile_table import profile_view
from bcg_cli.views.ranks import ranks_view


def terminal_view(report: Report) -> RenderableType:
    """Returns a report as its command shows it."""
    if isinstance(report, CheckReport):
        return check_view(report)
    if isinstance(report, PlanReport):
        return plan_view(report)
    view = profile_view(report) if isinstance(report, ProfileReport) else capture_view(report)
    return Group(view, Text(), ranks_view(report.ranks)) if report.ranks else view


def html_page(report: Report) -> str:
    """Returns a report as one self-contained HTML page."""
    if isinstance(report, CheckReport):
        return check_page(report)
    if isinstance(report, PlanReport):
        return plan_page(report)
    return profile_page(report) if isinstance(report, ProfileReport) else capture_page(report)
