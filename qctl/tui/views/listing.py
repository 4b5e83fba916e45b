"""A view's list as a value, and the arrangement of its rows: filtered and sorted. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from qctl.tui.cells import Cell, Column
from qctl.tui.text import Drawing, parts, safe

RowT = TypeVar("RowT")

#: Characters of a filter.
MAX_MATCH = 100
#: Cells of one sentence.
MAX_SENTENCE = 2_000


@dataclass(frozen=True, slots=True)
class Arrangement:
    """How an operator wants a list. sort: a column's id, "" for the view's own order; match: text that rows have."""

    sort: str = ""
    descending: bool = False
    match: str = ""
    invert: bool = False

    @property
    def filtered(self) -> bool:
        """Whether rows are left out."""
        return bool(self.match)


@dataclass(frozen=True, slots=True)
class Listing(Generic[RowT]):
    """A list. text: what a filter looks at; order: the view's own, by need; empty: what is said without rows."""

    rows: Sequence[RowT]
    columns: tuple[Column, ...]
    key: Callable[[RowT], str]
    cells: Callable[[RowT], tuple[Cell | Drawing, ...]]
    text: Callable[[RowT], str]
    order: Callable[[RowT], Any]
    empty: str = ""


@dataclass(frozen=True, slots=True)
class Sentence:
    """Words that take as many lines as they need."""

    text: str
    style: str = ""

    def lines(self, width: int) -> tuple[Cell, ...]:
        """In `width` cells, behind a dot."""
        wrapped = textwrap.wrap(safe(self.text, width=MAX_SENTENCE), max(1, width - 2))
        return tuple((("  " if number else "· ", "dim"), (line, self.style)) for number, line in enumerate(wrapped))


Line = Cell | Drawing | Sentence


@dataclass(frozen=True, slots=True)
class Detail:
    """What there is to know of one row: a title and lines."""

    title: Cell
    lines: tuple[Line, ...] = ()


def flowed(lines: Sequence[Line], width: int) -> tuple[Cell, ...]:
    """Lines in `width` cells: drawings drawn, sentences wrapped."""
    return tuple(
        cell for line in lines for cell in (line.lines(width) if isinstance(line, Sentence) else (parts(line, width),))
    )


def arranged(listing: Listing[RowT], wanted: Arrangement) -> list[RowT]:
    """The rows that match, sorted; what is not known comes last either way, and equals are in the view's own order."""
    rows = [*listing.rows]
    if wanted.match:
        match = wanted.match.casefold()
        rows = [row for row in rows if (match in listing.text(row).casefold()) is not wanted.invert]
    rows.sort(key=listing.order)
    column = next((column for column in listing.columns if column.id == wanted.sort), None)
    if column is None or column.sort is None:
        if wanted.descending:
            rows.reverse()
        return rows
    by = column.sort
    known = [(value, row) for row in rows if (value := by(row)) is not None]
    known.sort(key=lambda pair: pair[0], reverse=wanted.descending)
    return [*(row for _, row in known), *(row for row in rows if by(row) is None)]


def without_rows(listing: Listing[RowT], wanted: Arrangement) -> str:
    """What stands in the place of rows; of a list that the broker filters there is none left that could match."""
    return "Nothing matches; Esc clears the filter." if wanted.match else listing.empty


def sortable(columns: Sequence[Column], *, wide: bool) -> tuple[Column, ...]:
    """The columns that can be sorted by."""
    return tuple(column for column in columns if column.sort is not None and (wide or not column.wide))


def next_sort(columns: Sequence[Column], wanted: Arrangement, *, wide: bool) -> Arrangement:
    """By the next column, and after the last by the view's own order."""
    ids = ["", *(column.id for column in sortable(columns, wide=wide))]
    at = ids.index(wanted.sort) if wanted.sort in ids else 0
    return by_column(columns, wanted, ids[(at + 1) % len(ids)])


def by_column(columns: Sequence[Column], wanted: Arrangement, sort: str) -> Arrangement:
    """By a column: names from A, numbers from the greatest; once more for the other way round."""
    if sort == wanted.sort and sort:
        return replace(wanted, descending=not wanted.descending)
    column = next((column for column in columns if column.id == sort), None)
    return replace(wanted, sort=sort, descending=column is not None and column.right and column.id not in SOONEST)


#: Columns of times, the soonest first.
SOONEST = frozenset({"runs_out", "empty", "heard", "until"})


def filter_words(text: str) -> tuple[str, bool]:
    """What was typed as a filter: the text, and whether a leading `!` turns it round."""
    invert = text.startswith("!")
    return text[invert:].strip()[:MAX_MATCH], invert and bool(text[1:].strip())
