"""The table, driven by keys and mouse: what is on screen, where the cursor stays, and how little is drawn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from textual.app import App, ComposeResult
from textual.events import MouseScrollDown
from textual.message import Message
from textual.pilot import Pilot

from qctl.tui import theme
from qctl.tui.bars import Bar
from qctl.tui.cells import Cell, Column, one
from qctl.tui.table import Table
from qctl.tui.text import Drawing

COLUMNS = (
    Column("host", "HOST", 8, flex=1),
    Column("state", "STATE", 8),
    Column("burn", "BURN", 10),
    Column("rate", "RATE", 6, right=True, rank=1),
    Column("machine", "MACHINE", 12, wide=True, rank=2),
)


@dataclass(frozen=True)
class Row:
    """A host of a test."""

    host: str
    state: str = "held"
    used: int = 3
    rate: object = 7


@dataclass
class Drawn:
    """Which rows were asked for their cells."""

    hosts: list[str] = field(default_factory=list)

    def cells(self, row: Row) -> Sequence[Cell | Drawing]:
        """Remember it."""
        self.hosts.append(row.host)
        return one(row.host), one(row.state, row.state), Bar(row.used, 10), one(row.rate), one("ip-10-0-0-1")


class Screen(App[None]):
    """A table and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.table = Table(id="rows")
        self.drawn = Drawn()
        self.messages: list[Message] = []
        #: Lines that were drawn anew.
        self.painted: list[int] = []
        render_line = self.table.render_line
        self.table.render_line = lambda y: (self.painted.append(y), render_line(y))[1]  # type: ignore[method-assign]
        for each in theme.THEMES:
            self.register_theme(each)
        self.theme = theme.DEFAULT

    def get_theme_variable_defaults(self) -> dict[str, str]:
        return theme.VARIABLES

    def compose(self) -> ComposeResult:
        yield self.table

    def on_table_opened(self, message: Table.Opened) -> None:
        self.messages.append(message)

    on_table_moved = on_table_sort_asked = on_table_past_end = on_table_marked = on_table_opened

    def show(self, rows: Sequence[Row], **more: Any) -> None:
        self.table.show(rows, key=lambda row: row.host, cells=self.drawn.cells, **more)

    def lines(self) -> list[str]:
        """What stands on the screen."""
        strips = self.screen._compositor.render_strips()
        return ["".join(segment.text for segment in strip).rstrip() for strip in strips]

    def told(self) -> list[tuple[str, Any]]:
        """Messages since the last look, by name and value."""
        found = [(type(message).__name__, next(iter(_value(message)))) for message in self.messages]
        self.messages.clear()
        return found


def _value(message: Message) -> list[Any]:
    return [getattr(message, name) for name in ("key", "column", "direction", "keys") if hasattr(message, name)]


@asynccontextmanager
async def running(width: int, height: int, rows: Sequence[Row]) -> Any:
    app = Screen()
    async with app.run_test(size=(width, height)) as pilot:
        app.table.columns_are(COLUMNS, sort="rate", descending=True)
        app.show(rows)
        await pilot.pause()
        app.told()
        yield app, pilot


def driven(width: int, height: int, rows: Sequence[Row]) -> Callable[[Callable[..., Any]], Callable[[], None]]:
    """A test of a table of that size and rows, in a loop of its own."""

    def decorate(test: Callable[[Screen, Pilot[None]], Any]) -> Callable[[], None]:
        async def run() -> None:
            async with running(width, height, rows) as (app, pilot):
                await test(app, pilot)

        def wrapped() -> None:
            asyncio.run(run())

        return wrapped

    return decorate


MANY = [Row(f"web-{n:05}") for n in range(10_000)]
FEW = [Row("web-1"), Row("web-2"), Row("web-3")]


@driven(50, 6, FEW)
async def test_titles_stand_over_their_cells_and_numbers_to_the_right(app: Screen, pilot: Pilot[None]) -> None:
    assert app.lines() == [
        "  HOST      STATE     BURN         ▼RATE",
        "▌ web-1     held      ━━━───────       7",
        "  web-2     held      ━━━───────       7",
        "  web-3     held      ━━━───────       7",
        "",
        "",
    ]

    # words where there are no rows, and none that could be taken for one
    app.show([], empty="no hosts match [b]x\x1b[2J")
    await pilot.pause()
    assert app.lines()[2] == r"  no hosts match [b]x\x1b[2J"
    assert app.table.cursor_key == ""
    await pilot.press("down", "enter", "G")
    assert app.told() == [("Moved", "")]


@driven(50, 11, MANY)
async def test_ten_thousand_rows_are_walked_and_only_those_in_sight_are_drawn(app: Screen, pilot: Pilot[None]) -> None:
    table = app.table
    await pilot.press("j", "down", "k")
    assert table.cursor_key == "web-00001"
    await pilot.press("G")
    assert table.cursor_key == "web-09999"
    assert app.lines()[10].startswith("▌ web-09999")
    await pilot.press("down", "pagedown", "j")
    assert [told for told in app.told() if told[0] == "PastEnd"] == [("PastEnd", 1)] * 3
    await pilot.press("pageup")
    assert table.cursor_key == "web-09990"
    await pilot.press("g", "up")
    assert table.cursor_key == "web-00000"
    assert app.told()[-1] == ("PastEnd", -1)
    await pilot.press("enter")
    assert app.told() == [("Opened", "web-00000")]
    assert len(set(app.drawn.hosts)) < 200


@driven(50, 11, MANY)
async def test_a_refresh_draws_the_lines_that_changed_and_no_others(app: Screen, pilot: Pilot[None]) -> None:
    app.painted.clear()
    app.show(list(MANY))
    await pilot.pause()
    assert app.painted == []

    changed = list(MANY)
    changed[3] = replace(changed[3], used=9)
    changed[5_000] = replace(changed[5_000], used=9)
    app.show(changed)
    await pilot.pause()
    assert app.painted == [4]

    # a key draws the line that is left and the one that is reached
    app.painted.clear()
    await pilot.press("down")
    await pilot.pause()
    assert app.painted == [1, 2]


@driven(50, 11, MANY)
async def test_the_cursor_and_the_marks_stay_with_their_rows_when_others_come_and_go(
    app: Screen, pilot: Pilot[None]
) -> None:
    table = app.table
    await pilot.press("down", "down", "down")
    table.mark()
    table.mark("web-00001")
    await pilot.pause()
    assert app.told()[-1] == ("Marked", frozenset({"web-00001", "web-00003"}))

    # rows before it go, and it is where it was, in sight
    app.show(MANY[2:])
    await pilot.pause()
    assert table.cursor_key == "web-00003"
    assert app.lines()[2].startswith("▌▪web-00003")
    assert app.told() == []
    assert table.marks == {"web-00001", "web-00003"}

    # rows of another order, far away: the screen follows it
    app.show(list(reversed(MANY)))
    await pilot.pause()
    assert table.cursor_key == "web-00003"
    assert any(line.startswith("▌▪web-00003") for line in app.lines())

    # at the top and told to stay there, it stays whoever comes there; who is opened or marked is followed
    await pilot.press("g")
    app.show(MANY)
    assert (table.cursor_key, table.chosen_key) == ("web-00000", "")
    await pilot.press("enter")
    app.show(MANY[:1] + MANY[3:4] + MANY[1:3])
    assert table.chosen_key == "web-00000"
    await pilot.press("down")
    await pilot.pause()
    app.told()

    # its row is gone: the one in its place
    app.show(MANY[4:])
    await pilot.pause()
    assert app.told() == [("Moved", table.cursor_key)]
    assert table.go_to("web-00010")
    assert not table.go_to("nobody")
    table.clear_marks()
    await pilot.pause()
    assert app.told() == [("Moved", "web-00010"), ("Marked", frozenset())]
    assert not any("▪" in line for line in app.lines())


@driven(50, 11, MANY)
async def test_the_mouse_points_opens_sorts_marks_and_scrolls(app: Screen, pilot: Pilot[None]) -> None:
    await pilot.click("#rows", offset=(5, 4))
    assert app.told() == [("Moved", "web-00003")]
    await pilot.click("#rows", offset=(5, 4))
    assert app.told() == [("Opened", "web-00003")]
    await pilot.click("#rows", offset=(1, 2))
    assert app.told() == [("Marked", frozenset({"web-00001"}))]
    await pilot.click("#rows", offset=(39, 0))
    assert app.told() == [("SortAsked", "rate")]
    await pilot._post_mouse_events([MouseScrollDown], "#rows", offset=(5, 5))
    await pilot.pause()
    assert not any(line.startswith("  web-00000") for line in app.lines())
    assert app.table.cursor_key == "web-00003"
    shown = app.lines()[9].split()[0]
    await pilot.click("#rows", offset=(5, 9))
    assert app.table.cursor_key == shown


@driven(36, 8, FEW)
async def test_in_a_narrow_room_columns_go_and_can_be_fetched(app: Screen, pilot: Pilot[None]) -> None:
    assert app.lines()[0] == "  HOST      STATE     BURN         ›"
    await pilot.press("l")
    assert app.lines()[0].split() == ["‹", "HOST", "BURN", "▼RATE"]
    await pilot.press("h")
    await pilot.resize_terminal(80, 8)
    await pilot.pause()
    assert app.lines()[0].split() == ["HOST", "STATE", "BURN", "▼RATE", "MACHINE"]


@driven(50, 11, MANY)
async def test_when_few_rows_are_left_all_of_them_are_in_sight(app: Screen, pilot: Pilot[None]) -> None:
    await pilot.press("G")
    app.show(FEW)
    await pilot.pause()

    assert [line[2:7] for line in app.lines()[1:5]] == ["web-1", "web-2", "web-3", ""]
    assert app.table.cursor_key == "web-3"

    # another list has its own columns, and begins at its top
    app.table.columns_are(COLUMNS[:2])
    app.show(MANY)
    await pilot.pause()
    assert app.lines()[0].split() == ["HOST", "STATE"]
    assert app.lines()[1].startswith("▌ web-00000")


HOSTILE = [
    Row("[@click=app.quit]web[/]"),
    Row("\x1b[31mred\x9b0m", rate="\x1b]0;title\x07"),
    Row("\u202egnol\u2066", state="no such style"),
    Row("n" * 10_000),
    Row("漢" * 5_000),
    Row("\ud83d\x00\n\r\t"),
    Row("a" + "\u0301" * 9_000),
]


@driven(60, 9, HOSTILE)
async def test_hostile_names_are_seen_and_do_nothing(app: Screen, pilot: Pilot[None]) -> None:
    for size in ((60, 9), (20, 9), (200, 9), (3, 9), (60, 9)):
        await pilot.resize_terminal(*size)
        await pilot.pause()
        strips = app.screen._compositor.render_strips()
        assert all(strip.cell_length == size[0] for strip in strips)
        for strip in strips:
            for segment in strip:
                assert segment.text.isprintable()
                assert not segment.style or not (segment.style.link or segment.style.meta.get("@click"))
    lines = app.lines()
    assert lines[1].startswith("▌ [@click=app.quit]web[/]")
    assert lines[2].startswith(r"  \x1b[31mred\x9b0m")
    assert lines[3].startswith(r"  \u202egnol\u2066")
    assert lines[6].startswith(r"  \ud83d\x00\x0a\x0d\x09")
    await pilot.click("#rows", offset=(10, 1))
    assert app.told() == [("Opened", "[@click=app.quit]web[/]")]
    assert app.is_running


@driven(50, 6, FEW)
async def test_another_theme_shows_at_once(app: Screen, pilot: Pilot[None]) -> None:
    def colours() -> set[str]:
        return {
            segment.style.color.name
            for strip in app.screen._compositor.render_strips()
            for segment in strip
            if segment.style and segment.style.color and "held" in segment.text
        }

    assert colours() == {theme.palette_of("qctl-dark").held}
    app.theme = "qctl-light"
    await pilot.pause()
    assert colours() == {theme.palette_of("qctl-light").held}
