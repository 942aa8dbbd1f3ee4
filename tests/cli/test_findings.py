"""What the driver said, on cards as text and on pages."""

from __future__ import annotations

from html import escape

import msgspec
from rich.console import Console, RenderableType

from bcg.report import AutomaticBreak, Card
from bcg_cli.views.findings import automatic_breaks_view, card_view
from bcg_cli.views.page_parts import card_sections

SAID = "[E] <b>first</b> & [bold]more[/bold]\n[E] second"
CARD = Card(hazard="L1", title="it fails", cause="a cause", module="layers.1", driver_text=SAID)

STATE = Card(hazard="S2", title="a number changes", cause="another cause")


def shown(view: RenderableType) -> list[str]:
    console = Console(width=100, highlight=False, force_terminal=False, color_system=None)
    with console.capture() as capture:
        console.print(view)
    return [line.strip() for line in capture.get().splitlines()]


def test_a_card_as_text() -> None:
    lines = shown(card_view(CARD))
    index = next(index for index, line in enumerate(lines) if line.startswith("driver"))
    assert lines[index].split(maxsplit=1)[1] == "[E] <b>first</b> & [bold]more[/bold]"
    assert lines[index + 1] == "[E] second"
    without = shown(card_view(msgspec.structs.replace(CARD, driver_text="")))
    assert not any(line.startswith("driver") for line in without)


def test_an_automatic_break_as_text() -> None:
    row = AutomaticBreak(size="module", name="Layer", module="layers.1", option="", decorator="none", card=CARD)
    lines = shown(automatic_breaks_view([row]))
    assert lines[0] == "Automatic breaks, verified by replays of full buckets with other inputs"
    assert "driver  [E] <b>first</b> & [bold]more[/bold]" in lines
    doubtful = msgspec.structs.replace(row, other_cards=[CARD, STATE], doubt="eager differs from itself")
    lines = shown(automatic_breaks_view([doubtful]))
    assert lines[0] == "Automatic breaks, not verified: eager differs from itself"
    causes = [line.split()[:2] for line in lines if line.startswith(("why", "also", "and"))]
    assert causes == [["why", "L1:"], ["also", "S2:"], ["and", "at"]]


def test_on_pages_it_is_escaped() -> None:
    (section,) = card_sections([CARD])
    assert escape(SAID) in section
    assert "<b>first" not in section
    (section,) = card_sections([msgspec.structs.replace(CARD, driver_text="")])
    assert "driver" not in section


def test_a_card_on_a_page_says_what_it_says_on_a_terminal() -> None:
    card = msgspec.structs.replace(CARD, driver_text="", break_option="--break layers.1", occurrences=3)
    (section,) = card_sections([card])
    assert "<h2>L1 it fails (3 places)</h2>" in section
    for line in shown(card_view(card))[1:]:
        name, value = line.split(maxsplit=1)
        assert f">{name}</td>" in section and f">{value}</td>" in section
