"""The only module that writes to stdout: tables, JSON, JSON lines and names, and notes on stderr.

A command describes its rows once (`Column`, `show`); the form follows `-o`. Text from a broker is never taken as
markup, and its control characters are made visible. Tables on a terminal fit it and have colour; elsewhere they are
plain columns, complete, for `grep` and `awk`.
"""

from __future__ import annotations

import json
import os
import sys
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qctl.cli.options import Output, Settings

Item = Mapping[str, Any]

#: What stands for a value that is not known; never 0.
UNKNOWN = "-"
#: Between two columns.
_GAP = "  "
# Control, format (bidirectional overrides, zero-width), surrogate, private use, line and paragraph separators.
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: its title and how an item's cell is made. `wide`: shown with `-o wide` only."""

    title: str
    cell: Callable[[Item], object]
    right: bool = False
    wide: bool = False


def plain(text: object) -> str:
    """`text` as one line whose every character can be seen: control and bidirectional characters as escapes."""
    string = str(text)
    if string.isascii() and string.isprintable():
        return string
    return "".join(_escape(c) if unicodedata.category(c) in _INVISIBLE else c for c in string)


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
    lines = []
    for row in (titles, *rows):
        cells = [
            cell.rjust(width) if column.right else cell.ljust(width)
            for cell, width, column in zip(row, widths, columns, strict=True)
        ]
        lines.append(_GAP.join(cells).rstrip() + "\n")
    return "".join(lines)


def _terminal_table(settings: Settings, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    with_colour = colour(settings)
    console = Console(file=sys.stdout, no_color=not with_colour, highlight=False, markup=False, emoji=False)
    grid = Table(box=None, pad_edge=False, padding=(0, len(_GAP), 0, 0), header_style="bold" if with_colour else "")
    for column in columns:
        grid.add_column(Text(column.title), justify="right" if column.right else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(Text(cell) for cell in row))
    console.print(grid)


def _json(document: object, *, indent: int | None) -> str:
    # ASCII alone, so that no control character of a foreign text reaches a terminal; DEL is the one JSON leaves.
    return json.dumps(document, indent=indent, allow_nan=False, default=str).replace("\x7f", "\\u007f")


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
