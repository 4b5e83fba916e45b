"""What a table consists of, as values: columns, and cells of styled parts. Views make them, a table or plain text shows
them.

Styles are named by what they mean (`theme`), never by a colour. Text is as the broker gave it: who shows it makes it
safe.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

#: A text and the name of its style, "" for the plain one.
Part = tuple[str, str]
#: What stands in one place of a table: parts, one beside the other.
Cell = tuple[Part, ...]

#: What stands for a value that is not known; never 0.
UNKNOWN: Cell = (("-", "dim"),)
EMPTY: Cell = ()


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    width: its cells on the screen; flex: its share of the room that is left over, in addition. wide: shown only where
    there is room for all, or on demand. rank: of those that do not fit the highest goes first; 0 stays. sort: what a
    row is sorted by, None where that is not known; no function, no sorting.
    """

    id: str
    title: str
    width: int
    flex: int = 0
    right: bool = False
    wide: bool = False
    rank: int = 0
    #: Two columns that look alike are alike.
    sort: Callable[[Any], Any] | None = field(default=None, compare=False)


def one(text: object, style: str = "") -> Cell:
    """A cell of one part; `-` for None, empty for ""."""
    if text is None:
        return UNKNOWN
    return ((str(text), style),) if text != "" else EMPTY


def plain(cell: Cell) -> str:
    """A cell's text alone."""
    return "".join(text for text, _ in cell)
