"""One screen as text: the lines that matter, and the whole list. For scripts, CI and where there is no console."""

from __future__ import annotations

from rich.style import Style

from qctl.tui import headline
from qctl.tui.cells import Cell
from qctl.tui.layout import arrange
from qctl.tui.remember import Remembered
from qctl.tui.scene import Scene
from qctl.tui.snapshot import Snapshot, View
from qctl.tui.text import Drawing, fit, parts, safe, width_of
from qctl.tui.views import listing as lists
from qctl.tui.views.every import LISTINGS

#: Rows that are looked at to find how wide columns wish to be.
SAMPLE_ROWS = 200
#: No column wishes for more.
MAX_WISH = 120
#: A drawing wishes for so many times its least width.
DRAWING_GROWS = 2
#: In less room nothing can be said.
LEAST_WIDTH = 40


def render(snapshot: Snapshot, view: View, *, width: int, environment: str, broker: str, colour: bool = False) -> str:
    """The screen of a view in `width` cells, every row of it; without colour free of escape sequences."""
    width = max(width, LEAST_WIDTH)
    scene = Scene(snapshot, snapshot.at_s, width=width)
    place = headline.Place(environment, broker)
    found = [
        headline.where(place, scene, width=width),
        headline.answers(scene, width=width),
        *(headline.clip(each, width) for each in headline.trouble(scene)),
        (),
        *_table(scene, view, width),
    ]
    return "".join(f"{_line(each, colour=colour)}\n" for each in found)


def _table(scene: Scene, view: View, width: int) -> list[Cell]:
    listing = LISTINGS[view](scene)
    rows = lists.arranged(listing, Remembered().arrangement(view))
    if not rows:
        return [((f" {listing.empty}", "dim"),)]
    cells = [listing.cells(row) for row in rows]
    seen = [0] * len(listing.columns)
    for row in cells[:SAMPLE_ROWS]:
        for at, cell in enumerate(row):
            if isinstance(cell, tuple):
                taken = sum(width_of(safe(text)) for text, _ in cell)
                seen[at] = min(max(seen[at], taken), MAX_WISH)
    drawn = {at for at, cell in enumerate(cells[0]) if not isinstance(cell, tuple)}
    for at in drawn:
        seen[at] = DRAWING_GROWS * listing.columns[at].width
    layout = arrange(listing.columns, seen, width - 1, drawn=drawn)
    head: tuple[Cell | Drawing, ...] = tuple(((column.title, "head"),) for column in listing.columns)
    found = []
    for row in (head, *cells):
        line: Cell = ((" ", ""),)
        x = 0
        for place in layout.placed:
            right = listing.columns[place.number].right
            fitted = fit(parts(row[place.number], place.width), place.width, right=right)
            line = (*line, (" " * (place.x - x), ""), *fitted)
            x = place.x + place.width
        found.append(line)
    return found


def _line(cell: Cell, *, colour: bool) -> str:
    if not colour:
        return "".join(safe(text) for text, _ in cell).rstrip()
    return "".join(_styled(safe(text), style) for text, style in cell)


def _styled(text: str, style: str) -> str:
    """In the terminal's own colours: whose background is not known."""
    return _ANSI.get(style, Style()).render(text) if text else ""


_ANSI = {
    "strong": Style(bold=True),
    "dim": Style(dim=True),
    "faint": Style(dim=True),
    "head": Style(dim=True),
    "estimate": Style(dim=True, italic=True),
    "ok": Style(color="green"),
    "warn": Style(color="yellow"),
    "bad": Style(color="red"),
    "held": Style(color="blue"),
    "paused": Style(color="magenta"),
    "accent": Style(color="cyan"),
    "loud": Style(bold=True, reverse=True, color="red"),
}
