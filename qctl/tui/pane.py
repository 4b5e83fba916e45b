"""Widgets that show styled lines: around the list, and beside it what there is to know of one row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from textual import events
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.widgets import Static

from qctl.tui import theme
from qctl.tui.cells import EMPTY, Cell
from qctl.tui.snapshot import View
from qctl.tui.views.listing import Detail, flowed

#: Lines of a detail.
MAX_LINES = 2_000


class Lines(Static):
    """Lines of parts, none of them ever read as markup."""

    DEFAULT_CSS = """
    Lines { width: 1fr; height: auto; text-wrap: nowrap; text-overflow: ellipsis; }
    """

    def __init__(self, *, id: str) -> None:  # noqa: A002 - Textual's name for it
        super().__init__(id=id, markup=False)
        self._cells: tuple[Cell, ...] = ()

    def show(self, cells: Iterable[Cell]) -> None:
        """Show these lines; does nothing where they are the same."""
        wanted = tuple(cells)
        if wanted != self._cells:
            self._cells = wanted
            self.update(joined(wanted))


class Tabs(Lines):
    """The line of views."""

    class Picked(Message):
        """A view was clicked."""

        def __init__(self, view: View) -> None:
            super().__init__()
            self.view = view

    def __init__(self, *, id: str) -> None:  # noqa: A002 - Textual's name for it
        super().__init__(id=id)
        #: Where each tab ends.
        self.ends: tuple[tuple[View, int], ...] = ()

    def on_click(self, event: events.Click) -> None:
        """The tab under the pointer."""
        view = next((view for view, end in self.ends if event.x < end), None)
        if view is not None:
            self.post_message(self.Picked(view))


class Pane(VerticalScroll):
    """The detail of a row."""

    DEFAULT_CSS = """
    Pane { display: none; padding: 0 2; background: $surface; scrollbar-size-vertical: 1; }
    Pane Lines { text-wrap: wrap; }
    """

    def __init__(self, *, id: str) -> None:  # noqa: A002 - Textual's name for it
        super().__init__(id=id)
        self._shown = Detail(EMPTY)

    def compose(self) -> ComposeResult:
        """The title, and the lines under it."""
        yield Lines(id="pane-title")
        yield Lines(id="pane-lines")

    def show(self, detail: Detail | None, *, key: str) -> None:
        """Show what there is to know; None: the row is gone."""
        self._shown = detail or Detail(((key, "strong"),), ((("it is not listed any more", "dim"),),))
        self._draw()

    def on_resize(self) -> None:
        """Drawings are as wide as there is room."""
        self._draw()

    def _draw(self) -> None:
        width = max(10, self.scrollable_content_region.width)
        self.query_one("#pane-title", Lines).show((self._shown.title, EMPTY))
        self.query_one("#pane-lines", Lines).show(flowed(self._shown.lines[:MAX_LINES], width))


def joined(cells: Sequence[Cell]) -> Content:
    """Lines as Textual shows them."""
    return Content("\n").join([theme.content(cell) for cell in cells])
