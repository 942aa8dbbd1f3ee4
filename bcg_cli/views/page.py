"""The shell of an HTML report: one self-contained page that asks for nothing outside itself.

Its content security policy forbids every request; styles, scripts and plotly are inside. Text that comes from a
report goes through `escape` in HTML, `plot_text` in plots, and `_script_safe` in data; characters that can't be
printed, such as those that change the direction of writing, are a question mark as on the terminal.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any, TypeAlias

from bcg_cli.printable import printable

Figure: TypeAlias = dict[str, Any]
"""A plotly figure as plain data: ``data`` and ``layout``."""

Tile: TypeAlias = tuple[str, str] | tuple[str, str, str]
"""A figure, what it is, and the style of a verdict, if it is one."""

_NOTHING = frozenset(("", "–"))
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"


def page(title: str, body: Iterable[str], figures: Mapping[str, Figure]) -> str:
    """Returns a whole page.

    Args:
        title: Plain text.
        body: HTML, with an empty ``plot_box`` for each figure.
        figures: By the id of their box.
    """
    assets = files("bcg_cli.views") / "assets"
    plotly = _plotly() if figures else ""
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en" data-theme="light">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="referrer" content="no-referrer">',
            '<link rel="icon" href="data:,">',
            f"<title>{printable(escape(title))}</title>",
            f"<style>{(assets / 'page.css').read_text()}</style>",
            "</head>",
            "<body>",
            "<main>",
            printable("\n".join(body)),
            "</main>",
            f'<script type="application/json" id="figures">{_script_safe(figures)}</script>',
            f"<script>{plotly}</script>",
            f"<script>{(assets / 'page.js').read_text()}</script>",
            "</body>",
            "</html>",
            "",
        ]
    )


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def _script_safe(data: object) -> str:
    """Returns JSON that can't end the script element that it stands in, whatever strings it holds."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def plot_text(text: str) -> str:
    """Returns text for a plot, where plotly would read markup."""
    return printable(escape(text, quote=False))


def header(kind: str, title: str, lines: Sequence[str]) -> str:
    """Returns the head of the page: plain text in, HTML out."""
    about = "".join(f'<p class="muted">{escape(line)}</p>' for line in lines)
    return (
        f'<header><div><p class="kind">{escape(kind)}</p><h1>{escape(title)}</h1>{about}</div>'
        '<button class="theme" type="button" aria-label="Switch between light and dark">Dark</button></header>'
    )


def tiles(values: Sequence[Tile]) -> str:
    """Returns a row of figures."""
    cells = "".join(
        f'<div class="tile {"".join(style)}"><b>{escape(value)}</b><span>{escape(what)}</span></div>'
        for value, what, *style in values
    )
    return f'<div class="tiles">{cells}</div>'


def bullets(lines: Sequence[str]) -> str:
    """Returns a list of plain text; nothing if it is empty."""
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>" if lines else ""


def section(title: str, about: str, content: str, *, style: str = "") -> str:
    """Returns a card; `title` and `about` are plain text, `content` is HTML."""
    note = f'<p class="about">{escape(about)}</p>' if about else ""
    return f'<section class="{style}"><h2>{escape(title)}</h2>{note}{content}</section>'


def pair(*sections: str) -> str:
    """Returns cards side by side where there is room."""
    return f'<div class="pair">{"".join(sections)}</div>'


def plot_box(identity: str, *, style: str = "") -> str:
    """Returns the empty box that the page's script draws a figure into."""
    return f'<div class="plot {style}" id="{identity}"></div>'


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    text_columns: Sequence[int] = (0,),
    prose_columns: Sequence[int] = (),
) -> str:
    """Returns a table; a column in which no row has anything is left out.

    Args:
        head: Plain text; none for a table without a head.
        rows: HTML of the cells.
        text_columns: Aligned left, in one line as numbers are.
        prose_columns: Aligned left, in as many lines as it takes.
    """
    used = [index for index, column in enumerate(zip(*rows, strict=True)) if set(column) - _NOTHING]
    styles = dict.fromkeys(text_columns, " class=text") | dict.fromkeys(prose_columns, ' class="text prose"')

    def cells(tag: str, values: Sequence[str]) -> str:
        return "".join(f"<{tag}{styles.get(index, '')}>{values[index]}</{tag}>" for index in used)

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    heading = f"<thead><tr>{cells('th', [escape(text) for text in head])}</tr></thead>" if head else ""
    return f'<div class="scroll"><table>{heading}<tbody>{body}</tbody></table></div>'


def fold(summary: str, content: str) -> str:
    """Returns content that is closed at first."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"
