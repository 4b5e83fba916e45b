"""The console's one screen: lines of what matters around a list, and what there is to know of one row beside it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.geometry import Size
from textual.screen import Screen

from qctl.tui import headline, remember
from qctl.tui.actions import ACTIONS, Action, Kind
from qctl.tui.cells import Cell, one
from qctl.tui.filter import Filter
from qctl.tui.history import History
from qctl.tui.pane import Lines, Pane, Tabs
from qctl.tui.scene import Scene
from qctl.tui.snapshot import Focus, Snapshot, View
from qctl.tui.table import Table
from qctl.tui.views import listing as lists
from qctl.tui.views.details import detail
from qctl.tui.views.every import LISTINGS
from qctl.tui.views.listing import Arrangement, Listing

if TYPE_CHECKING:
    from qctl.tui.app import Console

#: Sources that are in trouble, a line each; the others are counted.
MAX_TROUBLE = 2
#: A source shows something about every second; after so long without, ages are drawn anew all the same.
QUIET_S = 1.5
#: The list and the detail stand side by side from this width on.
BESIDE_WIDTH = 110
#: The views whose list the broker sorts, filters and pages.
BY_BROKER = (View.QUEUES, View.DEAD)
#: What the table does itself, and the keys of the whole console.
_ELSEWHERE = {"up", "down", "page_up", "page_down", "top", "bottom", "left", "right", "open", "quit", "suspend"}


def _keys() -> list[BindingType]:
    keys = dict.fromkeys(key for action in ACTIONS if action.id not in _ELSEWHERE for key in action.keys)
    return [Binding(key, f"press({key!r})", show=False) for key in keys]


class Main(Screen[None], inherit_bindings=False):
    """Everything but what asks."""

    DEFAULT_CSS = """
    Main { background: $background; }
    #where, #answers, #tabs { height: 1; }
    #tabs { margin-bottom: 0; background: $surface; }
    #body { height: 1fr; layout: vertical; }
    #body.beside { layout: horizontal; }
    #body.opened Pane { display: block; height: 55%; }
    #body.opened.beside Pane { height: 1fr; width: 42%; max-width: 90; }
    #filter { height: 1; border: none; padding: 0 1; background: $surface; }
    #keys { height: 1; background: $surface; }
    """
    BINDINGS: ClassVar[list[BindingType]] = _keys()

    app: Console

    def __init__(self, remembered: remember.Remembered) -> None:
        super().__init__(id="main")
        self.view = remembered.view
        self.wide = remembered.wide
        self.arrangements = {view: remembered.arrangement(view) for view in View}
        self.opened = False
        self.frozen = False
        self._pages = dict.fromkeys(View, 1)
        self._cursors: dict[View, str] = {}
        self._past = History()
        self._snapshot: Snapshot | None = None
        self._came_at_s = 0.0
        self._drawn_at_s = 0.0
        self._scene: Scene | None = None
        self._listing: Listing[Any] | None = None
        self._focus = Focus()
        self._before_filter = Arrangement()
        self._doing: Mapping[str, Callable[[], object]] = {
            "back": self._back,
            "next_view": lambda: self.look(_neighbour(self.view, 1)),
            "previous_view": lambda: self.look(_neighbour(self.view, -1)),
            "next_page": partial(self._turn, 1),
            "previous_page": partial(self._turn, -1),
            "filter": self._ask_filter,
            "sort": self._sort,
            "reverse": lambda: self._arrange(replace(self.arranged, descending=not self.arranged.descending)),
            "wide": self._toggle_wide,
            "mark": self._mark,
            "mark_all": self._mark_all,
            "freeze": self._freeze,
            "refresh": self._refresh,
            **{f"view_{number}": partial(self.look, view) for number, view in enumerate(View, 1)},
        }

    def compose(self) -> ComposeResult:
        yield Lines(id="where")
        yield Lines(id="answers")
        yield Tabs(id="tabs")
        with Container(id="body"):
            yield Table(id="list")
            yield Pane(id="pane")
        yield Lines(id="trouble")
        yield Filter(id="filter")
        yield Lines(id="keys")

    def on_mount(self) -> None:
        """Look at the first view; ages grow by themselves."""
        self.query_one("#filter").display = False
        self.look(self.view)
        self.set_interval(1.0, self._tick)
        self.app.listen()

    @property
    def table(self) -> Table:
        """The list."""
        return self.query_one("#list", Table)

    @property
    def arranged(self) -> Arrangement:
        """How the present view's list is arranged."""
        return self.arrangements[self.view]

    # What comes

    def take(self, snapshot: Snapshot) -> None:
        """Show a snapshot, unless the screen is frozen; its numbers are remembered either way."""
        self._past.add(snapshot)
        if not self.frozen:
            self._snapshot, self._came_at_s = snapshot, time.monotonic()
            self.draw()

    def _tick(self) -> None:
        """Nothing came for a while: ages grow."""
        if not self.frozen and time.monotonic() - self._drawn_at_s >= QUIET_S:
            self.draw()

    def draw(self) -> None:
        """Show what there is, as it is arranged now."""
        self._drawn_at_s = time.monotonic()
        width = self.app.size.width
        if self._snapshot is not None:
            now_s = self._snapshot.at_s + (0.0 if self.frozen else self._drawn_at_s - self._came_at_s)
            self._scene = Scene(self._snapshot, now_s, self._past, width)
            self._listing = LISTINGS[self.view](self._scene)
            self._list(self._listing)
        answers = headline.answers(self._scene, width=width) if self._scene else one(" connecting …", "dim")
        self.query_one("#answers", Lines).show([answers])
        self._lines(width)
        self._detail()

    def _list(self, listing: Listing[Any]) -> None:
        wanted = self.arranged
        rows = lists.arranged(listing, wanted)
        self.table.columns_are(listing.columns, sort=wanted.sort, descending=wanted.descending, wide=self.wide)
        self.table.show(rows, key=listing.key, cells=listing.cells, empty=lists.without_rows(listing, wanted))

    def _lines(self, width: int) -> None:
        scene, app = self._scene, self.app
        remarks: list[Cell] = []
        if self.frozen:
            remarks.append(one("frozen", "accent"))
        if app.acting_words:
            remarks.append(one(app.acting_words, "accent"))
        self.query_one("#where", Lines).show([headline.where(app.place, scene, width=width, remarks=remarks)])
        right = headline.arrangement(
            self.arranged,
            self._listing,
            shown=self.table.rows_shown,
            scene=scene,
            view=self.view,
            marked=len(self.table.marks),
        )
        tabs = self.query_one("#tabs", Tabs)
        line, tabs.ends = headline.views(scene, self.view, right, width=width)
        tabs.show([line])
        troubles = headline.trouble(scene) if scene else ()
        trouble = self.query_one("#trouble", Lines)
        trouble.display = bool(troubles)
        trouble.show(headline.clip(each, width) for each in troubles[:MAX_TROUBLE])
        self.query_one("#keys", Lines).show([headline.keys(app.actions, self.view, width=width)])

    def _detail(self) -> None:
        body = self.query_one("#body")
        body.set_class(self.opened, "opened")
        body.set_class(self.app.size.width >= BESIDE_WIDTH, "beside")
        if self.opened and self._scene is not None:
            key = self.table.cursor_key
            self.query_one(Pane).show(detail(self._scene, self.view, key) if key else None, key=key)

    def _screen_resized(self, size: Size) -> None:
        """Lay out for the terminal as it is now, and not as an event saw it.

        Textual tells a screen its own new size once more; of two sizes in the queue each would call the other up for
        ever.
        """
        super()._screen_resized(self.app.size or size)

    def on_resize(self) -> None:
        """Other room, other lines."""
        self.call_after_refresh(self.draw)

    # What the operator does

    async def typed(self, event: events.Key) -> bool:
        """Whether a key was the filter's, and is done: at once, since Enter decides whose the next key is."""
        field = self.query_one(Filter)
        if self.focused is field and event.key == "enter":
            self._keep_filter()
            return True
        return self.focused is field and await field.typed(event)

    def action_press(self, key: str) -> None:
        """Do what a key stands for in this view."""
        action = next((one for one in self.app.actions if key in one.keys and one.works_in(self.view)), None)
        if action is not None:
            self.do(action)

    def do(self, action: Action) -> None:
        """Do what the table of actions names; what asks or writes is the app's."""
        doing = self._doing.get(action.id)
        if doing is not None:
            doing()
        else:
            marked = tuple(sorted(self.table.marks)) or ((self.table.cursor_key,) if self.table.cursor_key else ())
            self.app.do(action, view=self.view, keys=marked, snapshot=self._snapshot)
        if action.kind is not Kind.WRITE:
            self._lines(self.app.size.width)

    def look(self, view: View) -> None:
        """Go to a view; the cursor is where it was there."""
        self._cursors[self.view] = self.table.chosen_key
        if view is not self.view:
            self.table.clear_marks()
            self.opened = False
        self.view = view
        self.set_focus(self.table)
        self.draw()
        self.table.go_to(self._cursors.get(view, ""))
        self._tell()

    def _tell(self) -> None:
        """Say what is on screen to whoever fetches it."""
        wanted = self.arranged
        by_broker = self.view in BY_BROKER
        focus = Focus(
            view=self.view,
            page=self._pages[self.view] if by_broker else 1,
            sort=wanted.sort,
            descending=wanted.descending,
            match=wanted.match,
            invert=wanted.invert,
            opened=self.table.cursor_key if self.opened else "",
        )
        if focus != self._focus:
            self._focus = focus
            self.app.source.look_at(focus)

    def _arrange(self, wanted: Arrangement) -> None:
        self.arrangements[self.view] = wanted
        self._pages[self.view] = 1
        self.draw()
        self._tell()

    def _sort(self) -> None:
        if self._listing is not None:
            self._arrange(lists.next_sort(self._listing.columns, self.arranged, wide=self.wide))

    def _toggle_wide(self) -> None:
        self.wide = not self.wide
        self.draw()

    def _turn(self, direction: int) -> bool:
        pages = self._snapshot.page.pages if self._snapshot else 1
        page = min(max(self._pages[self.view] + direction, 1), max(pages, 1))
        if self.view not in BY_BROKER or page == self._pages[self.view]:
            return False
        self._pages[self.view] = page
        self._tell()
        return True

    def _mark(self) -> None:
        self.table.mark()
        self.table.action_move(1)

    def _mark_all(self) -> None:
        if self._listing is None:
            return
        keys = [self._listing.key(row) for row in lists.arranged(self._listing, self.arranged)]
        if keys and self.table.marks.issuperset(keys):
            self.table.clear_marks()
        else:
            self.table.mark_all(keys)

    def _freeze(self) -> None:
        self.frozen = not self.frozen
        if not self.frozen and self.app.newest is not None:
            self.take(self.app.newest)

    def _refresh(self) -> None:
        self.app.source.refresh()

    def _back(self) -> None:
        """One step: the filter's line, the detail, the marks, the filter."""
        if self.query_one("#filter").display:
            self._arrange(self._before_filter)
            self._close_filter()
        elif self.opened:
            self.opened = False
            self.set_focus(self.table)
            self._detail()
            self._tell()
        elif self.table.marks:
            self.table.clear_marks()
        elif self.arranged.match:
            self._arrange(replace(self.arranged, match="", invert=False))

    # The filter

    def _ask_filter(self) -> None:
        self._before_filter = self.arranged
        field = self.query_one(Filter)
        field.put(self.arranged)
        field.display, self.query_one("#keys").display = True, False
        self.set_focus(field)

    def _close_filter(self) -> None:
        field = self.query_one(Filter)
        field.display, self.query_one("#keys").display = False, True
        self.set_focus(self.table)

    def on_input_changed(self) -> None:
        """Rows follow what is typed; once that is kept or taken back, it is told in vain."""
        if self.query_one("#filter").display:
            self._follow()

    def _follow(self) -> None:
        match, invert = lists.filter_words(self.query_one(Filter).value)
        if (match, invert) != (self.arranged.match, self.arranged.invert):
            self._arrange(replace(self.arranged, match=match, invert=invert))

    def _keep_filter(self) -> None:
        self._follow()
        self._close_filter()

    # What the table and the tabs say

    def on_table_opened(self) -> None:
        """Enter: what there is to know of this row; once more: go into it, to scroll."""
        if self.opened:
            self.query_one(Pane).focus()
        self.opened = True
        self._detail()
        self._tell()

    def on_table_moved(self) -> None:
        """The detail follows the cursor."""
        if self.opened:
            self._detail()
            self._tell()

    def on_table_sort_asked(self, event: Table.SortAsked) -> None:
        """A click on a title."""
        if self._listing is not None:
            self._arrange(lists.by_column(self._listing.columns, self.arranged, event.column))

    def on_table_past_end(self, event: Table.PastEnd) -> None:
        """Past the last row the next page begins, with its first row: a key that is held does not race through all."""
        if self._turn(event.direction):
            self.table.action_ends(-event.direction)

    def on_table_marked(self) -> None:
        """How many are marked stands above the list."""
        self._lines(self.app.size.width)

    def on_tabs_picked(self, event: Tabs.Picked) -> None:
        """A click on a view."""
        self.look(event.view)

    def on_screen_resume(self, _: events.ScreenResume) -> None:
        """Back from what asked."""
        self.draw()


def _neighbour(view: View, step: int) -> View:
    every = list(View)
    return every[(every.index(view) + step) % len(every)]
