"""Dead letters on the screen: filtered, marked, and acted on exactly as they were marked."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from textual.app import App, ComposeResult
from textual.widgets import Input, OptionList, Static

from qctl.errors import BrokerUnreachable
from qctl.ops import dead
from qctl.ops.dead import Letters
from qctl.ops.letters import DeadLetter
from qctl.tui.acts.acting import Acting, Selection
from qctl.tui.screens import letters as screens
from qctl.tui.screens.ask import Ask
from qctl.tui.snapshot import View
from qctl.tui.theme import DEFAULT, THEMES
from tests.tui import synthetic
from tests.wire import scenario

QUEUE = "timeline.dead"
ABOUT = Selection(View.DEAD, (QUEUE,), synthetic.snapshot())
HOSTILE = "[@click=app.quit]\x1b[2J\u202egpj.exe"


def letter(identity: str, reason: str, body: bytes = b"{}") -> DeadLetter:
    return DeadLetter(
        QUEUE,
        f"k{identity}",
        identity,
        "sync",
        reason,
        HOSTILE,
        1,
        0,
        0,
        None,
        None,
        "",
        len(body),
        body,
        {"h": HOSTILE},
    )


LETTERS = (letter("a", "poison", HOSTILE.encode()), letter("b", "rejected"), letter("c", "poison"))


class Console(App[None]):
    """As much of a console as letters need."""

    def __init__(self, *, read_only: bool = False) -> None:
        super().__init__()
        self.acting = Acting(self, synthetic.inventory(), read_only=read_only)
        for each in THEMES:
            self.register_theme(each)
        self.theme = DEFAULT

    def compose(self) -> ComposeResult:
        yield Static("the list below")

    def said(self) -> str:
        """Whatever can be read on the screen above."""
        found = [str(each.render()) for each in self.screen.query(Static) if each.display]
        for options in self.screen.query(OptionList):
            found += [str(options.get_option_at_index(at).prompt) for at in range(options.option_count)]
        return "\n".join(found)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> None:
    async def look(*_: Any, **__: Any) -> Letters:
        return Letters(QUEUE, LETTERS, 3, 5, ("2 of 5 letters were not seen",))

    monkeypatch.setattr(dead, "letters", look)


@scenario
async def test_what_is_marked_is_what_is_asked_about_and_a_filter_does_not_lose_it(looks: None) -> None:
    app = Console()
    async with app.run_test(size=(100, 30)) as pilot:
        # given the letters of a queue
        app.acting.perform("peek", ABOUT)
        await pilot.pause()
        words = app.said()
        assert f"{QUEUE}: 3 of 5" in words
        assert "2 of 5 letters were not seen" in words
        # and whatever they say is harmless
        assert "[@click=app.quit]" in words
        assert "\x1b" not in words
        assert "\u202e" not in words
        # when one is marked, and then only others are listed, of which all are marked; typed without waiting
        await pilot.press("j", "space", "slash", *"poi", "enter", "a")
        assert f"{QUEUE}: 3 of 5, 2 listed, 3 marked" in app.said()
        # and one of these is not to be it after all
        await pilot.press("g", "home", "space", "D")
        # then the two are asked about, exactly
        assert isinstance(app.screen, Ask)
        assert f"drop 2 dead letters of {QUEUE}?" in app.said()
        assert [line.split()[0] for line in app.said().splitlines() if "  sync  " in line] == ["b", "c"]
        await pilot.press("escape")

        # when a filter is turned round and taken away
        app.acting.perform("peek", ABOUT)
        await pilot.pause()
        await pilot.press("slash", *"!poison", "enter")
        assert "1 listed" in app.said()
        await pilot.press("escape")
        assert "listed" not in app.said()
        # and without any mark it is the one under the cursor
        await pilot.press("end", "R")
        assert f"replay 1 dead letter of {QUEUE}?" in app.said()


@scenario
async def test_read_only_shows_letters_and_changes_none(looks: None) -> None:
    app = Console(read_only=True)
    async with app.run_test(size=(80, 24)) as pilot:
        app.acting.perform("peek", ABOUT)
        await pilot.pause()
        assert "drops" not in app.said()
        await pilot.press("space", "a", "R", "D")
        assert isinstance(app.screen, screens.Letters)
        assert "marked" not in app.said()
        # and a key that goes nowhere is no filter
        assert not app.screen.query_one(Input).display


@scenario
async def test_a_look_that_fails_says_why_and_one_that_is_closed_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[bool] = []

    async def fail(*_: Any, **__: Any) -> Letters:
        raise BrokerUnreachable("it is gone", hint="Start it.")

    async def hang(*_: Any, **__: Any) -> Letters:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)
        raise AssertionError

    app = Console()
    async with app.run_test(size=(80, 24)) as pilot:
        monkeypatch.setattr(dead, "letters", fail)
        app.acting.perform("peek", ABOUT)
        await pilot.pause()
        assert "it is gone. Start it." in app.said()
        await pilot.press("R", "space", "escape")
        assert len(app.screen_stack) == 1
        # and when nobody waits any more
        monkeypatch.setattr(dead, "letters", hang)
        app.acting.perform("peek", ABOUT)
        await pilot.pause()
        await pilot.press("escape")
        await pilot.pause()
        assert ended == [True]
