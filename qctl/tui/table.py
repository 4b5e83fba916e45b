"""A table that draws only the lines on screen, and of these only what changed.

It is given all rows each time and asks for the cells of the visible ones; the cursor stays with its row's key, marks
stay with theirs. Whatever a cell holds is made safe here, so that nothing of a broker reaches the screen as it came.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, ClassVar, TypeVar

from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from qctl.tui import theme
from qctl.tui.cells import Cell, Column
from qctl.tui.layout import Contents, Layout, arrange
from qctl.tui.strips import GUTTER, Styles, head, row, strip
from qctl.tui.text import Drawing, safe
from qctl.tui.theme import Tone

RowT = TypeVar("RowT")

#: The cells behind the last column: the sign that there are more, and a distance to the scrollbar.
MARGIN = 2
#: Rows that are looked at to learn how wide flexible columns wish to be.
SAMPLE_ROWS = 60
#: Rows that can be marked.
MAX_MARKS = 10_000
#: Lines above the rows.
HEAD = 1


class Table(ScrollView, can_focus=True):
    """Rows under a head of titles."""

    DEFAULT_CSS = """
    Table {
        height: 1fr;
        width: 1fr;
        overflow-x: hidden;
        overflow-y: auto;
        scrollbar-size-vertical: 1;
        background: $background;
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "Up", show=False),
        Binding("down,j", "move(1)", "Down", show=False),
        Binding("pageup,ctrl+b", "page(-1)", "Page up", show=False),
        Binding("pagedown,ctrl+f", "page(1)", "Page down", show=False),
        Binding("home,g", "ends(-1)", "First", show=False),
        Binding("end,G", "ends(1)", "Last", show=False),
        Binding("left,h", "shift(-1)", "Columns to the left", show=False),
        Binding("right,l", "shift(1)", "Columns to the right", show=False),
        Binding("enter", "open", "Open", show=False),
    ]

    @dataclass
    class Opened(Message):
        """Enter, or a second click on the row."""

        key: str

    @dataclass
    class Moved(Message):
        """The cursor is on another row; key "": there is none."""

        key: str

    @dataclass
    class SortAsked(Message):
        """A click on a column's title."""

        column: str

    @dataclass
    class PastEnd(Message):
        """The cursor should go beyond the last row (1) or before the first (-1)."""

        direction: int

    @dataclass
    class Marked(Message):
        """Other rows are marked than before."""

        keys: frozenset[str]

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002  # Textual's name for it
        super().__init__(id=id)
        self._columns: tuple[Column, ...] = ()
        self._contents = Contents(())
        self._layout: Layout = Layout(())
        self._sort = ""
        self._descending = False
        self._wide = False
        self._shift = 0
        self._rows: Sequence[Any] = ()
        self._keys: list[str] = []
        self._index: dict[str, int] = {}
        self._cells: Callable[[Any], Sequence[Cell | Drawing]] = lambda _: ()
        self._empty = ""
        self._cursor = 0
        #: The operator chose no row: the cursor stays at the top, whoever is there.
        self._pinned = True
        self._marks: frozenset[str] = frozenset()
        self._colours: tuple[str, Style, Style] | None = None
        self._plain_styles = self._cursor_styles = Styles(theme.DEFAULT, Style())
        #: Cells of rows that were asked for since the last `show`, by the row's number.
        self._drawn: dict[int, tuple[Cell | Drawing, ...]] = {}
        #: What each line on screen shows, to tell which of them changed.
        self._painted: dict[int, tuple[bool, bool, tuple[Cell | Drawing, ...]] | None] = {}

    # What is shown

    def columns_are(
        self, columns: Sequence[Column], *, sort: str = "", descending: bool = False, wide: bool = False
    ) -> None:
        """Show these columns. sort: the id of the one whose title has the arrow; wide: all, whatever fits.

        Cheap where nothing changes. Other columns are another list: its rows come with the next `show`, and the cursor
        is at the top.
        """
        wanted = tuple(replace(column, sort=None) for column in columns)
        if (wanted, sort, descending, wide) == (self._columns, self._sort, self._descending, self._wide):
            return
        before = [column.id for column in self._columns]
        if [column.id for column in wanted] != before:
            self._contents = Contents(wanted)
            self._shift = self._cursor = 0
            self._pinned = True
            self._rows, self._keys, self._index = (), [], {}
        self._columns, self._sort, self._descending, self._wide = wanted, sort, descending, wide
        self._drawn = {}
        self._arrange()
        self.refresh()

    def show(
        self,
        rows: Sequence[RowT],
        *,
        key: Callable[[RowT], str],
        cells: Callable[[RowT], Sequence[Cell | Drawing]],
        empty: str = "",
    ) -> None:
        """Show these rows. key: tells them apart; cells: one for each column; empty: said where there are no rows.

        Cells are asked for again each time, of the rows on screen: they may tell ages.
        """
        before, self._empty = self.cursor_key, empty
        follow = self._on_screen(self._cursor)
        self._rows, self._cells, self._drawn = rows, cells, {}
        self._keys = [key(row) for row in rows]
        self._index = {each: number for number, each in enumerate(self._keys)}
        wanted = 0 if self._pinned else self._index.get(before, self._cursor)
        self._cursor = max(0, min(wanted, len(rows) - 1))
        if self.virtual_size.height != len(rows) + HEAD:
            self.virtual_size = Size(self.size.width, len(rows) + HEAD)
        if follow:
            self._reveal()
        if self._learn():
            self.refresh()
        else:
            self._paint_changed()
        if self.cursor_key != before:
            self.post_message(self.Moved(self.cursor_key))

    @property
    def cursor_key(self) -> str:
        """The key of the row under the cursor, "" where there is none."""
        return self._keys[self._cursor] if self._cursor < len(self._keys) else ""

    @property
    def chosen_key(self) -> str:
        """The key of the row that the operator went to, "" where the cursor stays at the top, whoever is there."""
        return "" if self._pinned else self.cursor_key

    @property
    def marks(self) -> frozenset[str]:
        """The keys of the marked rows, on screen or not."""
        return self._marks

    @property
    def rows_shown(self) -> int:
        """How many rows there are."""
        return len(self._rows)

    # What the operator does

    def go_to(self, key: str) -> bool:
        """Put the cursor on the row of that key; False where it is not among the rows."""
        if key not in self._index:
            return False
        self._go(self._index[key])
        return True

    def mark(self, key: str | None = None) -> None:
        """Mark the row of that key, by default the cursor's, or take its mark away."""
        wanted = self.cursor_key if key is None else key
        self._pinned = False
        if wanted in self._marks or len(self._marks) < MAX_MARKS:
            self._mark_these(self._marks ^ {wanted} if wanted else self._marks)

    def mark_all(self, keys: Iterable[str]) -> None:
        """Mark these rows too, as many as may be marked."""
        self._mark_these(self._marks | frozenset(islice(keys, MAX_MARKS - len(self._marks))))

    def clear_marks(self) -> None:
        """Take all marks away."""
        self._mark_these(frozenset())

    def action_move(self, direction: int) -> None:
        """One row down (1) or up (-1)."""
        self._step(direction)

    def action_page(self, direction: int) -> None:
        """One screen down (1) or up (-1)."""
        self._step(direction * max(1, self._height - 1))

    def action_ends(self, direction: int) -> None:
        """To the last row (1), or to the first (-1) and stay there, whichever it is."""
        self._go(len(self._rows) - 1 if direction > 0 else 0)
        self._pinned = direction < 0

    def action_shift(self, direction: int) -> None:
        """Columns that lie to the right (1) into view, or back (-1)."""
        if direction < 0 and self._shift:
            self._shift -= 1
        elif direction > 0 and self._layout.more:
            self._shift += 1
        else:
            return
        self._arrange()
        self.refresh()

    def action_open(self) -> None:
        """Open the row under the cursor."""
        if self.cursor_key:
            self._pinned = False
            self.post_message(self.Opened(self.cursor_key))

    def _step(self, rows: int) -> None:
        end = len(self._rows) - 1 if rows > 0 else 0
        if self._rows and self._cursor == end:
            self.post_message(self.PastEnd(1 if rows > 0 else -1))
        self._go(self._cursor + rows)

    def _go(self, number: int) -> None:
        number = max(0, min(number, len(self._rows) - 1))
        old, self._cursor, self._pinned = self._cursor, number, False
        self._reveal()
        if old != number:
            self._paint_row(old)
            self._paint_row(number)
            self.post_message(self.Moved(self.cursor_key))

    def _mark_these(self, keys: frozenset[str]) -> None:
        if keys != self._marks:
            changed, self._marks = keys ^ self._marks, keys
            for key in changed:
                if key in self._index:
                    self._paint_row(self._index[key])
            self.post_message(self.Marked(keys))

    def on_click(self, event: events.Click) -> None:
        """A row: the cursor goes there, and where it was there already the row opens; a title: sort by it."""
        if event.y < HEAD:
            number = self._layout.at(event.x - GUTTER)
            if number is not None:
                self.post_message(self.SortAsked(self._columns[number].id))
            return
        number = event.y - HEAD + self._top
        if number >= len(self._rows):
            return
        if event.x < GUTTER:
            self.mark(self._keys[number])
        elif number == self._cursor:
            self.action_open()
        else:
            self._go(number)

    # Where things are

    @property
    def _height(self) -> int:
        """Lines for rows."""
        return max(0, self.scrollable_content_region.height - HEAD)

    @property
    def _top(self) -> int:
        """The row at the top."""
        return int(self.scroll_offset.y)

    def _on_screen(self, number: int) -> bool:
        return self._top <= number < self._top + self._height

    def _reveal(self) -> None:
        """Scroll as little as brings the cursor into view."""
        top = max(min(self._top, self._cursor), self._cursor - self._height + 1)
        if top != self._top and self._height:
            self.scroll_to(y=top, animate=False, force=True)

    def on_resize(self) -> None:
        """Other room, other columns."""
        self._arrange()
        self._reveal()
        self.refresh()

    def _arrange(self) -> None:
        room = self.scrollable_content_region.width - GUTTER - MARGIN
        seen, drawn = self._contents.seen, self._contents.drawn
        self._layout = arrange(self._columns, seen, room, drawn=drawn, wide=self._wide, shift=self._shift)

    def _learn(self) -> bool:
        """Look at how wide contents near the screen are; True where that changes the columns."""
        begin = self._top
        for number in range(begin, min(begin + max(self._height, SAMPLE_ROWS), len(self._rows))):
            self._contents.learn(self._cells_of(number))
        before = self._layout
        self._arrange()
        return self._layout != before

    # Drawing

    def _cells_of(self, number: int) -> tuple[Cell | Drawing, ...]:
        found = self._drawn.get(number)
        if found is None:
            found = self._drawn[number] = tuple(self._cells(self._rows[number]))
        return found

    def _paint_row(self, number: int) -> None:
        if self._on_screen(number):
            self.refresh(Region(0, number - self._top + HEAD, self.size.width, 1))

    def _paint_changed(self) -> None:
        changed = []
        for line in range(self._height + 1):
            number = self._top + line
            now = self._looks(number) if number < len(self._rows) else None
            if self._painted.get(line, ...) != now:
                changed.append(Region(0, line + HEAD, self.size.width, 1))
        if changed:
            self.refresh(*changed)

    def _looks(self, number: int) -> tuple[bool, bool, tuple[Cell | Drawing, ...]]:
        return number == self._cursor, self._keys[number] in self._marks, self._cells_of(number)

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        """Other rows may wish for other columns."""
        super().watch_scroll_y(old_value, new_value)
        self._learn()

    def watch_has_focus(self, value: bool) -> None:
        """The cursor is drawn quieter where keys go elsewhere."""
        super().watch_has_focus(value)
        self._paint_row(self._cursor)

    def render_lines(self, crop: Region) -> list[Strip]:
        """The lines of a region. What colours there are is looked up once for all of them."""
        palette = theme.palette_of(self.app.theme)
        base = self.rich_style
        cursor = base + Style(bgcolor=palette.cursor if self.has_focus else palette.panel)
        if (palette.name, base, cursor) != self._colours:
            self._colours = (palette.name, base, cursor)
            self._plain_styles = Styles(palette.name, base)
            self._cursor_styles = Styles(palette.name, cursor)
        return super().render_lines(crop)

    def render_line(self, y: int) -> Strip:
        """One line on screen, the head first."""
        line, styles = y - HEAD, self._plain_styles
        number = self._top + line
        if y < HEAD:
            room, shifted = self.scrollable_content_region.width, self._shift > 0
            found = head(
                self._columns, self._layout, room, sort=self._sort, descending=self._descending, shifted=shifted
            )
        elif number < len(self._rows):
            at_cursor, marked, cells = self._painted[line] = self._looks(number)
            found = row(self._columns, self._layout, cells, at_cursor=at_cursor, marked=marked)
            styles = self._cursor_styles if at_cursor else styles
        else:
            self._painted[line] = None
            words = self._empty if line == 1 and not self._rows else ""
            found = [(" " * GUTTER + safe(words), Tone.DIM)]
        return strip(found, styles, self.size.width)
