"""Text on its way to the screen: made harmless, measured in terminal cells, cut and padded.

Names, payloads and reasons come from a broker, where anybody may have put anything: `safe` is their only way in.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from itertools import accumulate
from typing import Protocol

from rich.cells import get_character_cell_size

from qctl.tui.cells import Cell, Part
from qctl.visible import escape

#: The longest text that one cell shows, in terminal cells.
MAX_CELL = 200
#: Where a text was cut.
CUT = "…"
#: Accents upon one character; more of them grow over the lines around.
MAX_MARKS = 2
# Marks that are drawn around what stands before them.
_ENCLOSING = "Me"
# A braille pattern without dots is drawn as nothing at all.
_BLANK = "\u2800"
_SELECTORS = (("\ufe00", "\ufe0f"), ("\U000e0100", "\U000e01ef"), ("\u180b", "\u180f"))


class Drawing(Protocol):
    """A cell that draws itself into the room its column has. Compared by value."""

    def draw(self, width: int) -> Cell:
        """At most `width` terminal cells."""


def safe(text: object, *, width: int = MAX_CELL) -> str:
    """`text` as one line of at most `width` cells whose every character is seen and harmless, `…` where it was cut.

    What controls a terminal, turns the direction of writing, joins, hides or takes no room is shown as an escape.
    """
    string = text if isinstance(text, str) else str(text)
    # A shown character has at most MAX_MARKS marks: what lies behind this cannot come into view.
    string = string[: (width + 1) * (MAX_MARKS + 1)]
    if not (string.isascii() and string.isprintable()):
        string = _visible(string)
    return cut(string, width)


@lru_cache(2048)
def _visible(string: str) -> str:
    found = []
    marks = MAX_MARKS  # nothing to stand upon at the start
    for c in string:
        if " " <= c <= "~" or _stands(c):
            found.append(c)
            marks = 0
        elif _marks(c) and marks < MAX_MARKS:
            found.append(c)
            marks += 1
        else:
            found.append(escape(c))
            marks = MAX_MARKS
    return "".join(found)


@lru_cache(4096)
def _stands(c: str) -> bool:
    is_drawn = c.isprintable() and c != _BLANK and unicodedata.category(c) != _ENCLOSING
    return is_drawn and get_character_cell_size(c) > 0


@lru_cache(4096)
def _marks(c: str) -> bool:
    selects = any(first <= c <= last for first, last in _SELECTORS)
    return unicodedata.category(c) == "Mn" and unicodedata.combining(c) > 0 and not selects


def width_of(text: str) -> int:
    """The cells that safe text takes."""
    return len(text) if text.isascii() else sum(map(get_character_cell_size, text))


def cut(text: str, width: int) -> str:
    """Safe text in at most `width` cells, with `…` at its end where some is missing."""
    if width_of(text) <= width:
        return text
    if width < 1:
        return ""
    room = width - len(CUT)
    kept = sum(end <= room for end in accumulate(map(get_character_cell_size, text)))
    return text[:kept] + CUT


def parts(cell: Cell | Drawing, width: int = MAX_CELL) -> Cell:
    """A cell's parts; a drawing's are drawn into `width`."""
    return cell if isinstance(cell, tuple) else cell.draw(width)


def fit(cell: Cell, width: int, *, right: bool = False) -> Cell:
    """Safe parts in exactly `width` cells: cut with `…`, or padded with blanks."""
    found: list[Part] = []
    room = width
    for number, (text, style) in enumerate(cell):
        shown = safe(text)
        taken = width_of(shown)
        if taken > room or (taken == room and any(rest for rest, _ in cell[number + 1 :])):
            shown = cut(shown + CUT, room)
            found.append((shown, style))
            room -= width_of(shown)
            break
        found.append((shown, style))
        room -= taken
    if not room:
        return tuple(found)
    blank = (" " * room, "")
    return (blank, *found) if right else (*found, blank)
