"""The console as an operator drives it, without a terminal: keys in, lines out. The fleet is a built one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from textual import events
from textual.pilot import Pilot

from qctl.errors import BrokerUnreachable
from qctl.tui import remember
from qctl.tui.acts.plan import Plan, Shown
from qctl.tui.app import Console
from qctl.tui.headline import Place
from qctl.tui.snapshot import Focus, Page, Snapshot, View
from qctl.tui.table import Table
from tests.tui import troubled
from tests.tui.synthetic import SMALL, StillSource, inventory


@asynccontextmanager
async def console(
    *shown: Snapshot, size: tuple[int, int] = (120, 30), **more: Any
) -> AsyncIterator[tuple[Console, Pilot[None], StillSource]]:
    """A console that shows these snapshots, by default the troubled fleet."""
    source = StillSource(*(shown or (troubled.troubled(),)))
    given: dict[str, Any] = {"inventory": inventory(SMALL), "environment": "development", "broker": "amqp://x/", **more}
    app = Console(source, given.pop("inventory"), **given)
    async with app.run_test(size=size, notifications=True) as pilot:
        await pilot.pause()
        yield app, pilot, source


def lines(app: Console) -> list[str]:
    """What stands on the screen."""
    return [strip.text.rstrip() for strip in app.screen._compositor.render_strips()]


def listed(app: Console) -> list[str]:
    """The first word of each row of the list."""
    table = app.main.table
    top = table.region.y + 1
    room = app.main.query_one("#list").region.width
    return [text[2:room].split()[0] for text in lines(app)[top : top + table.rows_shown] if text[2:room].strip()]


def run(scenario: Any) -> None:
    """One scenario in a loop of its own."""
    asyncio.run(scenario())


def test_views_are_a_key_a_step_or_a_click_away_and_the_source_is_told() -> None:
    async def scenario() -> None:
        async with console(state=None) as (app, pilot, source):
            # given the hosts, who needs somebody first
            assert listed(app) == ["web-4", "web-1", "lab-1", "web-2", "web-3", "web-10"]
            assert "runs out 2 used up web-2/twitter ~3m1" in lines(app)[1]  # the seconds count down

            # when the operator goes down a row, to another view by number, by step, by click, and back
            await pilot.press("j", "j", "4")
            assert (app.main.view, listed(app)[0]) == (View.QUOTAS, "lab-1/twitter")
            await pilot.press("tab")
            assert app.main.view is View.DEAD
            await pilot.press("shift+tab", "shift+tab")
            assert app.main.view is View.CONSUMERS
            await pilot.click("#tabs", offset=(14, 0))
            assert (app.main.view, listed(app)[0]) == (View.QUEUES, "timeline")
            await pilot.press("1")

            # then the cursor is where it was, and the source knew each time what is on screen
            assert app.main.table.cursor_key == "lab-1"
            assert [focus.view for focus in source.focuses] == [
                View.QUOTAS,
                View.DEAD,
                View.QUOTAS,
                View.CONSUMERS,
                View.QUEUES,
                View.HOSTS,
            ]
            assert source.focuses[4] == Focus(View.QUEUES, 1, "ready", descending=True)
            await pilot.press("r")
            assert source.refreshed == 1
        assert source.stopped

    run(scenario)


@pytest.mark.parametrize("size", [(80, 24), (160, 40)])
def test_enter_shows_why_beside_the_list_or_below_it_and_follows_the_cursor(size: tuple[int, int]) -> None:
    async def scenario() -> None:
        async with console(size=size) as (app, pilot, source):
            await pilot.press("3", "j", "enter")
            await pilot.pause()
            text = "\n".join(lines(app))
            assert "quota twitter: 20000/20000 used" in text
            pane, table = app.main.query_one("#pane").region, app.main.table.region
            assert (pane.x >= table.right) if size[0] > 110 else (pane.y >= table.bottom)
            assert source.focuses[-1].opened == "qctl/web-1/timeline/0"

            await pilot.press("j")
            await pilot.pause()
            assert "by oncall (says it is ann@laptop)" in "\n".join(lines(app))
            assert source.focuses[-1].opened == "qctl/web-3/timeline/0"

            # given the row is gone, its detail says so and nothing breaks
            source.push(troubled.troubled(tags=()))
            await pilot.pause()
            assert "No consumer was heard" in "\n".join(lines(app))
            await pilot.press("escape")
            assert not app.main.query_one("#pane").display or not app.main.opened
            assert source.focuses[-1].opened == ""

    run(scenario)


def test_a_filter_narrows_the_list_while_it_is_typed() -> None:
    async def scenario() -> None:
        async with console(size=(80, 24)) as (app, pilot, source):
            # when it is typed on without a pause, letters that are keys of the list too
            await pilot.press("slash", *"web-1")
            assert listed(app) == ["web-1", "web-10"]
            await pilot.press("enter")
            assert "/web-1 2 of 6" in lines(app)[2]
            assert source.focuses[-1].match == "web-1"

            # and typed in one piece, as a terminal gives what was typed ahead: each key is whose it was meant to be
            async def ahead(*keys: str) -> None:
                for key in keys:
                    app.post_message(events.Key(key, key if len(key) == 1 else None))
                await pilot.pause()

            await ahead("slash", *"lab-2", "backspace", "1", "enter", "k")
            assert (app.main.arranged.match, listed(app)) == ("lab-1", ["lab-1"])
            await ahead("slash", *"web", "escape")
            assert (app.main.arranged.match, app.focused) == ("lab-1", app.main.table)
            await ahead("slash", *"web")
            await ahead(*"-1", "enter")
            # then a key is a key of the list again; Esc in the line gives the old filter back
            await pilot.press("slash", "home", "!", "escape")
            assert listed(app) == ["web-1", "web-10"]
            await pilot.press("slash", "home", "!", "enter")
            assert listed(app) == ["web-4", "lab-1", "web-2", "web-3"]
            assert (source.focuses[-1].match, source.focuses[-1].invert) == ("web-1", True)
            await pilot.press("slash", *"xyzzy", "enter")
            await pilot.press("slash", "ctrl+u", *"xyzzy", "enter")
            assert "Nothing matches; Esc clears the filter." in "\n".join(lines(app))
            await pilot.press("escape")
            assert len(listed(app)) == 6

    run(scenario)


def test_what_is_sorted_filtered_and_chosen_is_there_the_next_time(tmp_path: Path) -> None:
    async def scenario() -> None:
        state = tmp_path / "console.json"
        async with console(state=state) as (app, pilot, _):
            await pilot.press("s")
            assert "by host" in lines(app)[2]
            assert listed(app) == ["lab-1", "web-1", "web-2", "web-3", "web-4", "web-10"]
            await pilot.press("S")
            assert listed(app)[0] == "web-10"
            # a click on a title sorts by it, the greatest number first
            head = lines(app)[3].index("TASKS/S")
            await pilot.click(Table, offset=(head + 2, 0))
            assert listed(app)[0] == "web-3"
            await pilot.press("w", "t", "4", "slash", *"web", "enter")
            theme = app.theme
        async with console(state=state) as (app, pilot, _):
            assert (app.main.view, app.main.wide, app.theme) == (View.QUOTAS, True, theme)
            assert app.main.arranged.match == "web"
            await pilot.press("1")
            assert listed(app)[0] == "web-3"
        # a damaged file is none
        state.write_bytes(b"\x00{")
        async with console(state=state) as (app, pilot, _):
            assert app.main.view is View.HOSTS
        assert remember.load(state).view is View.HOSTS

    run(scenario)


def test_marks_are_counted_kept_and_taken_away_step_by_step() -> None:
    async def scenario() -> None:
        async with console() as (app, pilot, _source):
            await pilot.press("space", "space")
            assert app.main.table.marks == {"web-4", "web-1"}
            assert "▪ 2 marked" in lines(app)[2]

            # given rows move, marks stay with theirs
            await pilot.press("s")
            assert app.main.table.marks == {"web-4", "web-1"}
            # all that is listed, and none
            await pilot.press("slash", *"web-1", "enter", "a")
            assert app.main.table.marks == {"web-4", "web-1", "web-10"}
            await pilot.press("a")
            assert app.main.table.marks == set()

            # Esc: the detail, the marks, the filter
            await pilot.press("space", "enter", "escape")
            assert app.main.table.marks
            await pilot.press("escape")
            assert not app.main.table.marks
            assert app.main.arranged.match
            await pilot.press("escape")
            assert not app.main.arranged.match

    run(scenario)


def test_the_newest_snapshot_wins_from_any_thread_and_a_frozen_screen_keeps_still(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario() -> None:
        async with console() as (app, pilot, source):
            await pilot.press("2")

            def push(number: int) -> None:
                source.push(troubled.troubled(page=Page(1, 1, number)))

            thread = threading.Thread(target=lambda: [push(number) for number in range(1_000)])
            thread.start()
            thread.join()
            await pilot.pause()
            assert "Queues 999" in lines(app)[2]

            await pilot.press("f")
            push(7)
            await pilot.pause()
            assert "frozen" in lines(app)[0]
            assert "Queues 999" in lines(app)[2]
            # but what is asked before a change is about what is known now
            asked: list[Any] = []
            monkeypatch.setattr(app.acting, "perform", lambda *given: asked.append(given))
            await pilot.press("P")
            [(action, selection)] = asked
            assert (action, selection.snapshot.page.total) == ("pause", 7)
            await pilot.press("f")
            await pilot.pause()
            assert "Queues 7" in lines(app)[2]

    run(scenario)


def test_lists_of_the_broker_are_paged_by_key_and_past_their_end() -> None:
    async def scenario() -> None:
        async with console(troubled.troubled(page=Page(1, 3, 1_400))) as (_app, pilot, source):
            await pilot.press("2", "right_square_bracket")
            assert source.focuses[-1].page == 2
            await pilot.press("G", "j")
            assert source.focuses[-1].page == 3
            await pilot.press("right_square_bracket")
            assert source.focuses[-1].page == 3  # there is no fourth
            await pilot.press("left_square_bracket", "left_square_bracket", "left_square_bracket")
            assert source.focuses[-1].page == 1
            await pilot.press("right_square_bracket", "s")
            assert source.focuses[-1].page == 1  # another order begins at its beginning
            # a list of ours has no pages
            await pilot.press("1", "right_square_bracket")
            assert source.focuses[-1] == Focus(View.HOSTS)

    run(scenario)


def test_help_and_palette_come_from_the_table_and_read_only_has_no_writes() -> None:
    async def scenario() -> None:
        async with console(read_only=True, size=(110, 40)) as (app, pilot, _):
            assert "read-only" in lines(app)[0]
            assert "P pause" not in lines(app)[-1]
            await pilot.press("P", "R")
            assert app.screen is app.main
            await pilot.press("question_mark")
            text = "\n".join(lines(app))
            assert "SHOW" in text
            assert "CHANGE" not in text
            await pilot.press("escape", "colon")
            await pilot.press(*"quot")
            await pilot.pause(0.3)
            await pilot.press("enter")
            await pilot.pause(0.1)
            assert app.main.view is View.QUOTAS
            await pilot.press("colon", *"paus")
            await pilot.pause(0.3)
            assert "Pause  P" not in "\n".join(lines(app))
            await pilot.press("escape")
        async with console(size=(110, 40)) as (app, pilot, _):
            assert "P pause" in lines(app)[-1]
            await pilot.press("question_mark")
            assert "CHANGE" in "\n".join(lines(app))
        # a recording has nothing behind it
        async with console(inventory=None, read_only=True) as (app, pilot, _source):
            await pilot.press("2", "p")
            await pilot.pause()
            assert "This is a recording" in "\n".join(lines(app))

    run(scenario)


@pytest.mark.parametrize("size", [(80, 24), (20, 6), (300, 80)])
def test_hostile_names_are_shown_harmless_at_any_size(size: tuple[int, int]) -> None:
    async def scenario() -> None:
        async with console(troubled.hostile(), size=size, environment="production") as (app, pilot, _source):
            rung: list[bool] = []
            app.bell = lambda: rung.append(True)  # type: ignore[method-assign]
            for number in "123456":
                await pilot.press(number, "enter")
                await pilot.pause()
                for strip in app.screen._compositor.render_strips():
                    assert strip.cell_length <= size[0]
                    for segment in strip:
                        assert segment.text.isprintable()
                        assert not (segment.style and segment.style.meta and "@click" in segment.style.meta)
                await pilot.press("escape")
            # nothing of it can be clicked: not in the head, the list, the lines below
            await pilot.press("1")
            for place in ((12, 1), (6, 4), (6, size[1] - 2)):
                await pilot.click(offset=place)
            assert not rung
            # and a terminal that changes its size
            await pilot.resize_terminal(40, 12)
            await pilot.pause()
            assert len(lines(app)) == 12

    run(scenario)


def test_a_source_that_gives_up_ends_the_console_with_its_error() -> None:
    async def scenario() -> None:
        async with console() as (app, pilot, source):
            source.error = BrokerUnreachable("no address of the broker answered", hint="Is it running?")
            source.push(troubled.troubled())
            await pilot.pause()
            assert app.failure is source.error
            assert app.return_code == 4

    run(scenario)


def test_a_defect_ends_the_console_in_order_and_is_handed_on(capfd: pytest.CaptureFixture[str]) -> None:
    # given a snapshot that no view can show
    source = StillSource(replace(troubled.troubled(), at_s="yesterday"))  # type: ignore[arg-type]
    app = Console(source, inventory(SMALL), environment="development", broker="amqp://x/")

    app.run(headless=True)

    # then what went wrong is there for the command to say, the source is stopped, and nothing was printed
    assert isinstance(app.failure, TypeError)
    assert app.return_code == 1
    assert source.stopped
    assert capfd.readouterr().err == ""


def test_quitting_is_a_key_and_costs_nothing() -> None:
    async def scenario() -> None:
        for key in ("q", "ctrl+c"):
            async with console() as (app, pilot, _source):
                assert app.place == Place("development", "amqp://x/", read_only=False)
                await pilot.press(key)
                await pilot.pause()
                assert (app.return_code, app.failure, app.last_words) == (0, None, ())

    run(scenario)


def test_what_runs_when_the_console_is_quit_is_ended_first_and_then_told() -> None:
    class Replaying:
        doing, is_given, done = "replaying", True, 7

        def shown(self) -> Shown:
            return Shown(summary=f"replayed {self.done} of 10")

        async def run(self) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0.05)  # confirms on their way
                self.done = 9

    async def scenario() -> None:
        async with console() as (app, pilot, _source):
            assert app.acting is not None
            app.acting._begin(Plan("replay", "Replay", (), "", Replaying))
            await pilot.pause()
            app.exit()
        assert app.last_words == ("replayed 9 of 10 (it was not waited for the rest)",)

    run(scenario)
