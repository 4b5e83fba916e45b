"""The only module that writes to stdout: tables, JSON, JSON lines and names, and notes on stderr.

A command describes its rows once (`Column`, `show`); the form follows `-o`. Text from a broker is never taken as
markup, and its control characters are made visible. Tables on a terminal have
a bold head and fit it: free text is wrapped, and what has no room stands below its row; elsewhere they are plain
columns, complete, for `grep` and `awk`.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from qctl.cli.options import Output, Settings
from qctl.visible import visible

Item = Mapping[str, Any]

#: What stands for a value that is not known; never 0.
UNKNOWN = "-"
#: Between two columns; before what stands below a row.
_GAP, _BELOW = "  ", "    "
#: Lines of a row of a table, where free text is wrapped.
MAX_WRAPPED = 2


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: its title and how an item's cell is made.

    wide: shown with `-o wide` only. free: free text, which may be wrapped where a terminal is too narrow.
    """

    title: str
    cell: Callable[[Item], object]
    right: bool = False
    wide: bool = False
    free: bool = False


def plain(text: object) -> str:
    """`text` as one line whose every character can be seen: control and bidirectional characters as escapes."""
    return visible(str(text))


def show(
    settings: Settings,
    *,
    items: Sequence[Item],
    columns: Sequence[Column],
    name: Callable[[Item], str],
    document: Item | None = None,
) -> None:
    """Print `items` as `-o` says.

    `columns` make the table, `name` the line of an item with `-o name`; `items` are JSON-able mappings, one line each
    with `-o jsonl`. `document` is the JSON document, by default `{"v": 1, "items": [...]}`.
    """
    match settings.output:
        case Output.TABLE | Output.WIDE:
            shown = [column for column in columns if not column.wide or settings.output is Output.WIDE]
            table(settings, shown, items)
        case Output.JSON:
            write_json(document if document is not None else {"v": 1, "items": list(items)})
        case Output.JSONL:
            raw("".join(_json(item, indent=None) + "\n" for item in items))
        case Output.NAME:
            raw("".join(plain(name(item)) + "\n" for item in items))


def table(settings: Settings, columns: Sequence[Column], items: Iterable[Item]) -> None:
    """Print a table; None is shown as `-`."""
    rows = [[_cell(column.cell(item)) for column in columns] for item in items]
    if sys.stdout.isatty():
        _terminal_table(settings, columns, rows)
    else:
        raw(_plain_table(columns, rows))


def write_json(document: object) -> None:
    """Print a JSON document."""
    raw(_json(document, indent=2) + "\n")


def line(text: object = "") -> None:
    """Print one line of text on stdout, every character visible."""
    raw(plain(text) + "\n")


def raw(text: str) -> None:
    """Write text that is ours, as it is, to stdout."""
    sys.stdout.write(text)


def note(text: object) -> None:
    """Say something on stderr, line by line, every character visible."""
    # What was printed before must stand before it where both go to one terminal.
    if sys.stdout.isatty():
        sys.stdout.flush()
    sys.stderr.write("".join(plain(each) + "\n" for each in str(text).split("\n")))
    sys.stderr.flush()


def say(settings: Settings, text: object) -> None:
    """A note that `--quiet` suppresses."""
    if not settings.quiet:
        note(text)


def colour(settings: Settings) -> bool:
    """Whether stdout may have colour: a terminal that can, and nobody said no."""
    wanted = settings.colour and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return wanted and sys.stdout.isatty()


def _cell(value: object) -> str:
    if value is None or value == "":
        return UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    return plain(value)


def _plain_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> str:
    titles = [column.title for column in columns]
    widths = [max(map(len, cells)) for cells in zip(titles, *rows, strict=True)]
    return "".join(_line(columns, row, widths, len) for row in (titles, *rows))


def _terminal_table(settings: Settings, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    head, *body = fitted(columns, rows, width=shutil.get_terminal_size().columns)
    raw(f"\x1b[1m{head.rstrip()}\x1b[0m\n" if colour(settings) else head)
    raw("".join(body))


def fitted(columns: Sequence[Column], rows: Sequence[Sequence[str]], *, width: int) -> list[str]:
    """A table's lines, the titles first, in `width` terminal cells: free text is wrapped at its blanks, and where that
    is not enough, columns stand below their row, each value behind its title, what is not known left out.

    What is not free text stands in one piece, however long its line becomes: half a number is another number.
    """
    from rich.cells import cell_len

    beside = list(range(len(columns)))
    while len(beside) > 1 and not _fits(columns, rows, beside, width, cell_len):
        # Words first, from the right; then numbers, but for the name that a row begins with.
        words = [at for at in beside[1:] if columns[at].free]
        beside.remove(words[-1] if words else beside[-1])
    below = [at for at in range(len(columns)) if at not in beside]
    shown = [columns[at] for at in beside]
    widths = _widths(columns, rows, beside, width, cell_len)
    lines = []
    for number, row in enumerate(([column.title for column in columns], *rows)):
        parts = [
            _wrapped(row[at], own, cell_len) if columns[at].free else [row[at]]
            for at, own in zip(beside, widths, strict=True)
        ]
        lines += [_line(shown, each, widths, cell_len) for each in zip_longest(*parts, fillvalue="")]
        if number:
            known = [(f"{columns[at].title} {row[at]}", columns[at].free) for at in below if row[at] != UNKNOWN]
            lines += [f"{_BELOW}{line}\n" for line in _stacked(known, width - len(_BELOW), cell_len)]
    return lines


def _fits(
    columns: Sequence[Column],
    rows: Sequence[Sequence[str]],
    beside: Sequence[int],
    width: int,
    length: Callable[[str], int],
) -> bool:
    """Whether these columns fit, and no row of them becomes a column of words one below the other."""
    widths = _widths(columns, rows, beside, width, length)
    if sum(widths) + len(_GAP) * (len(widths) - 1) > width:
        return False
    return all(
        len(_wrapped(row[at], own, length)) <= MAX_WRAPPED
        for row in rows
        for at, own in zip(beside, widths, strict=True)
        if columns[at].free
    )


def _widths(
    columns: Sequence[Column],
    rows: Sequence[Sequence[str]],
    beside: Sequence[int],
    width: int,
    length: Callable[[str], int],
) -> list[int]:
    """How wide each column is, the widest of free text made narrower until they fit, or no word would."""
    cells = [[columns[at].title, *(row[at] for row in rows)] for at in beside]
    widths = [max(map(length, each)) for each in cells]
    least = [
        max(length(word) for cell in each for word in cell.split(" ")) if columns[at].free else own
        for at, each, own in zip(beside, cells, widths, strict=True)
    ]
    while sum(widths) + len(_GAP) * (len(widths) - 1) > width and widths != least:
        widest = max(
            (number for number in range(len(widths)) if widths[number] > least[number]), key=widths.__getitem__
        )
        widths[widest] -= 1
    return widths


def _stacked(parts: Iterable[tuple[str, bool]], width: int, length: Callable[[str], int]) -> list[str]:
    """Parts, and whether each is free text, in lines of at most `width`; broken inside of free text alone."""
    lines: list[str] = []
    for part, free in parts:
        if lines and length(lines[-1]) + len(_GAP) + length(part) <= width:
            lines[-1] += _GAP + part
        else:
            lines += _wrapped(part, width, length) if free else [part]
    return lines


def _wrapped(text: str, width: int, length: Callable[[str], int]) -> list[str]:
    """`text` in lines of at most `width`, broken at blanks; a word is never broken."""
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if length(longer) > width and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _line(columns: Sequence[Column], row: Sequence[str], widths: Sequence[int], length: Callable[[str], int]) -> str:
    cells = []
    for column, cell, width in zip(columns, row, widths, strict=True):
        blanks = " " * (width - length(cell))
        cells.append(blanks + cell if column.right else cell + blanks)
    return _GAP.join(cells).rstrip(" ") + "\n"


def _json(document: object, *, indent: int | None) -> str:
    # ASCII alone, so that no control character of a foreign text reaches a terminal; DEL is the one JSON leaves.
    return json.dumps(document, indent=indent, allow_nan=False, default=str).replace("\x7f", "\\u007f")
