"""Which columns of a table are on screen, where, and how wide: a pure decision from the room there is."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from qctl.tui.cells import Cell, Column
from qctl.tui.text import Drawing, safe, width_of

#: Cells between two columns.
GAP = 2
#: In fewer cells a column that is cut at the edge says nothing.
LEAST_CUT = 4
#: No flexible column wishes for more.
MAX_WISH = 120
#: A flexible column of drawings wishes for so many times its width.
DRAWING_GROWS = 3


@dataclass(frozen=True, slots=True)
class Placed:
    """A column on screen. number: which one; x: its first cell, from the left edge of the columns."""

    number: int
    x: int
    width: int


@dataclass(frozen=True, slots=True)
class Layout:
    """The columns on screen. more: there are others to the right of them, which shifting brings into view."""

    placed: tuple[Placed, ...]
    more: bool = False

    def at(self, x: int) -> int | None:
        """Which column is at a cell; the gap behind a column belongs to it."""
        return next((one.number for one in reversed(self.placed) if x >= one.x), None)


class Contents:
    """How wide the contents of flexible columns are, as far as was seen. It only grows, or columns would jump."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self._columns = columns
        #: Of each column, 0 where it is not flexible.
        self.seen = [0] * len(columns)
        #: The numbers of columns that hold drawings.
        self.drawn: set[int] = set()

    def learn(self, cells: Sequence[Cell | Drawing]) -> None:
        """Look at a row."""
        for number, (column, cell) in enumerate(zip(self._columns, cells, strict=False)):
            if not column.flex:
                continue
            if isinstance(cell, tuple):
                wish = sum(width_of(safe(text)) for text, _ in cell)
            else:
                wish = DRAWING_GROWS * column.width
                self.drawn.add(number)
            self.seen[number] = max(self.seen[number], min(wish, MAX_WISH))


def arrange(
    columns: Sequence[Column],
    seen: Sequence[int],
    room: int,
    *,
    drawn: Collection[int] = (),
    wide: bool = False,
    shift: int = 0,
) -> Layout:
    """Place columns in `room` cells.

    seen: how wide each column's contents are; a flexible column grows up to that, those that are drawn (their numbers)
    after text is whole. Where all fit, wide columns are added as far as they fit too; where not all fit, those of the
    highest rank go. wide: all are wanted, in order, and what does not fit is cut at the edge. shift: so many of them,
    after the first, are left out at the left.
    """
    if wide or shift:
        chosen = [number for number, column in enumerate(columns) if wide or not column.wide]
        shift = min(shift, max(0, len(chosen) - 2))
        return _in_order(columns, seen, [*chosen[:1], *chosen[1 + shift :]], room, drawn)
    chosen = [number for number, column in enumerate(columns) if not column.wide]
    dropped = False
    while _least(columns, chosen) > room:
        ranked = [number for number in chosen if columns[number].rank]
        if not ranked:
            break
        # The last of those that mean least.
        chosen.remove(max(ranked, key=lambda number: (columns[number].rank, number)))
        dropped = True
    if not dropped:
        for number, column in enumerate(columns):
            added = sorted([*chosen, number])
            if column.wide and _wished(columns, seen, added, drawn) <= room:
                chosen = added
    layout = _in_order(columns, seen, chosen, room, drawn)
    return Layout(layout.placed, layout.more or dropped)


def _least(columns: Sequence[Column], chosen: Sequence[int]) -> int:
    return sum(columns[number].width for number in chosen) + GAP * max(0, len(chosen) - 1)


def _wished(columns: Sequence[Column], seen: Sequence[int], chosen: Sequence[int], drawn: Collection[int]) -> int:
    """What text needs to be whole; drawings are content with their least."""
    grown = (number for number in chosen if number not in drawn)
    return _least(columns, chosen) + sum(_wish(columns, seen, number) - columns[number].width for number in grown)


def _wish(columns: Sequence[Column], seen: Sequence[int], number: int) -> int:
    column = columns[number]
    return max(column.width, seen[number]) if column.flex else column.width


def _in_order(
    columns: Sequence[Column], seen: Sequence[int], chosen: Sequence[int], room: int, drawn: Collection[int]
) -> Layout:
    widths = {number: columns[number].width for number in chosen}
    for turn in (False, True):
        growing = [number for number in chosen if (number in drawn) is turn]
        spare = room - sum(widths.values()) - GAP * max(0, len(chosen) - 1)
        _grow(columns, seen, widths, growing, spare)
    placed: list[Placed] = []
    x = 0
    for number in chosen:
        width = widths[number]
        if x + width > room:
            if room - x >= LEAST_CUT or not placed:
                placed.append(Placed(number, x, max(1, room - x)))
            return Layout(tuple(placed), more=True)
        placed.append(Placed(number, x, width))
        x += width + GAP
    return Layout(tuple(placed))


def _grow(
    columns: Sequence[Column], seen: Sequence[int], widths: dict[int, int], growing: Sequence[int], spare: int
) -> None:
    """Share what is left over among those that wish for more, until nobody does."""
    while spare > 0:
        wishing = [number for number in growing if widths[number] < _wish(columns, seen, number)]
        if not wishing:
            return
        shares = sum(columns[number].flex for number in wishing)
        left = spare
        for number in wishing:
            share = max(1, spare * columns[number].flex // shares)
            share = min(share, _wish(columns, seen, number) - widths[number], left)
            widths[number] += share
            left -= share
        spare = left
