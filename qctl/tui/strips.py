"""A table's lines: which parts stand where, and how they become what Textual paints."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from operator import itemgetter

from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from qctl.tui import theme
from qctl.tui.cells import Cell, Column, Part
from qctl.tui.layout import Layout
from qctl.tui.text import Drawing, cut, fit, parts
from qctl.tui.theme import Tone

#: The cells before the first column: the cursor's and the mark's.
GUTTER = 2
_CURSOR, _MARK = "▌", "▪"
_ASCENDING, _DESCENDING = "▲", "▼"
_LEFT, _RIGHT = "‹", "›"


class Styles(dict[str, Style]):
    """The tones of a theme upon one background, each made when it is wanted first."""

    def __init__(self, name: str, base: Style) -> None:
        super().__init__()
        self._name = name
        self._base = base

    def __missing__(self, tone: str) -> Style:
        found = self[tone] = self._base + theme.style(self._name, tone)
        return found


def row(
    columns: Sequence[Column],
    layout: Layout,
    cells: Sequence[Cell | Drawing],
    *,
    at_cursor: bool,
    marked: bool,
) -> list[Part]:
    """A row's parts; a cell that is missing is empty."""
    found: list[Part] = [(_CURSOR if at_cursor else " ", Tone.ACCENT), (_MARK if marked else " ", Tone.ACCENT)]
    x = 0
    for place in layout.placed:
        found.append((" " * (place.x - x), ""))
        cell = cells[place.number] if place.number < len(cells) else ()
        found += fit(parts(cell, place.width), place.width, right=columns[place.number].right)
        x = place.x + place.width
    return found


def head(
    columns: Sequence[Column], layout: Layout, room: int, *, sort: str, descending: bool, shifted: bool
) -> list[Part]:
    """The titles' parts, with an arrow at the one that sorts and signs where columns lie beyond the edges."""
    found: list[Part] = [((_LEFT if shifted else "").ljust(GUTTER), Tone.ACCENT)]
    x = 0
    for place in layout.placed:
        column = columns[place.number]
        sorts = column.id == sort
        arrow = (_DESCENDING if descending else _ASCENDING) if sorts else ""
        title = cut(column.title, place.width - len(arrow))
        shown = (arrow + title if column.right else title + arrow, Tone.ACCENT if sorts else Tone.HEAD)
        found.append((" " * (place.x - x), ""))
        found += fit((shown,), place.width, right=column.right)
        x = place.x + place.width
    if layout.more:
        found.append((_RIGHT.rjust(room - GUTTER - x), Tone.ACCENT))
    return found


def strip(line: Iterable[Part], styles: Styles, width: int) -> Strip:
    """Parts as a line of exactly `width` cells; neighbours of one style become one segment."""
    segments = []
    for style, same in groupby((part for part in line if part[0]), key=itemgetter(1)):
        segments.append(Segment("".join(text for text, _ in same), styles[style]))
    return Strip(segments).adjust_cell_length(width, styles[""])
