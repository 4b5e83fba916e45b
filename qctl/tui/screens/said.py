"""Text of a screen: sentences and tables, every character of it made harmless and never read as markup."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from textual.content import Content
from textual.widgets import Static

from qctl.errors import QctlError
from qctl.tui.acts.plan import Shown
from qctl.tui.cells import Cell, Part, one, plain
from qctl.tui.text import fit, safe, width_of
from qctl.tui.theme import Tone, content

#: Cells of a sentence: an error with what the broker said.
MAX_SENTENCE = 600
#: Cells of one column.
MAX_COLUMN = 48
_GAP = "  "


def sentence(text: object) -> Content:
    """One sentence, harmless."""
    return Content(safe(text, width=MAX_SENTENCE))


def sentences(texts: Iterable[object]) -> Content:
    """A sentence in each line."""
    return Content("\n").join(sentence(text) for text in texts)


def in_words(error: QctlError) -> str:
    """An error and the next step."""
    return f"{error.message}. {error.hint}" if error.hint else error.message


class Said(Static):
    """Text that changes, drawn anew only when it has; takes no room while there is none."""

    def __init__(self, text: Content | str = "", *, id: str | None = None, classes: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id, classes=classes, markup=False)
        self._text: Content | None = None
        self.say(text)

    def say(self, text: Content | str) -> None:
        """Show this instead."""
        wanted = text if isinstance(text, Content) else sentence(text)
        if wanted != self._text:
            self._text = wanted
            self.display = bool(wanted.plain)
            self.update(wanted)


def table(shown: Shown) -> Content:
    """What is proven as lines, the titles first, an explanation below its row; nothing while there are no rows."""
    if not shown.rows:
        return Content("")
    head = tuple(one(title, Tone.HEAD) for title in shown.titles)
    table_rows = (head, *(row.cells for row in shown.rows))
    widths = [
        max(min(MAX_COLUMN, width_of(safe(plain(cell)))) for cell in cells) for cells in zip(*table_rows, strict=True)
    ]
    lines = [content(_line(head, widths, shown.right))]
    for row in shown.rows:
        lines.append(content(_line(row.cells, widths, shown.right)))
        if row.why:
            lines.append(content(((_GAP, ""), (row.why, Tone.DIM))))
    if shown.left_out:
        lines.append(content(one(f"and {shown.left_out} more", Tone.DIM)))
    return Content("\n").join(line.rstrip() for line in lines)


def _line(row: tuple[Cell, ...], widths: Sequence[int], right: frozenset[int]) -> Cell:
    parts: list[Part] = []
    for number, (cell, width) in enumerate(zip(row, widths, strict=True)):
        parts += fit(cell, width, right=number in right)
        parts.append((_GAP, ""))
    return tuple(parts)
