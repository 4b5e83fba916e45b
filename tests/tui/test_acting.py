"""The question before an act and what is shown of it, driven by keys. What the act does is a stand-in; see
`test_acting_live` for a broker and workers."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from textual.app import App, ComposeResult
from textual.events import Key
from textual.pilot import Pilot
from textual.widgets import Button, Input, Static

from qctl.errors import BrokerUnreachable, QctlError, UsageError
from qctl.tui.acts import acting
from qctl.tui.acts.acting import Acting
from qctl.tui.acts.plan import Draft, Field, Plan, Row, Selection, Shown
from qctl.tui.cells import one
from qctl.tui.screens.ask import Ask
from qctl.tui.screens.outcome import Outcome
from qctl.tui.screens.outcomes import Outcomes
from qctl.tui.snapshot import View
from qctl.tui.theme import DEFAULT, THEMES, Tone
from tests.tui import synthetic
from tests.wire import scenario

HOSTILE = "web\x1b[31m-1[@click=app.quit]x[/]\u202e"
SELECTION = Selection(View.HOSTS, ("web-1",), synthetic.snapshot())


class Fake:
    """An act that ends when the test says so."""

    def __init__(self) -> None:
        self.doing = "waiting for web-1"
        self.is_given = True
        self.told = Shown()
        self.end: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def shown(self) -> Shown:
        return self.told

    async def run(self) -> None:
        await self.end


PROVEN = Shown(
    ("TAG", "PROOF", "RUNNING"),
    (Row((one(HOSTILE), one("✓ proven", Tone.OK), one(None)), "[b]because[/b]"),),
    frozenset({2}),
    ("a note [/oops]",),
    "pause web-1, by oncall: 1 proven",
)


class Console(App[None]):
    """As much of a console as acts need."""

    def __init__(self, **changed: Any) -> None:
        super().__init__()
        environment = changed.pop("environment", "development")
        inventory = synthetic.inventory(environment=environment)
        self.refreshed = 0
        self.acting = Acting(self, inventory, read_only=changed.pop("read_only", False), changed=self._refreshed)
        self.told: list[tuple[str, str]] = []
        for each in THEMES:
            self.register_theme(each)
        self.theme = DEFAULT

    def _refreshed(self) -> None:
        self.refreshed += 1

    def compose(self) -> ComposeResult:
        yield Static("the list below")

    def notify(self, message: str, **options: Any) -> None:
        assert options["markup"] is False
        self.told.append((message, options["severity"]))

    def said(self) -> str:
        """Whatever can be read on the screen above."""
        return "\n".join(str(each.render()) for each in self.screen.query(Static) if each.display)


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> list[Fake]:
    """The acts that were begun; pausing makes one, setting a limit wants a rate first."""
    begun: list[Fake] = []

    def start() -> Fake:
        begun.append(Fake())
        return begun[-1]

    def plan(_: Mapping[str, str]) -> Plan:
        return Plan("pause web-1, 2 consumers", "Pause", ("web-1/mail", HOSTILE), "web-1", start, warnings=("held!",))

    def limit(values: Mapping[str, str]) -> Plan:
        if not values["rates"]:
            raise UsageError("no limit yet", hint="Such as 100/h.")
        return replace(plan({}), what=f"set it to {values['rates']}")

    fields = (Field("rates", "Limit", required=True), Field("reason", "Reason"))
    monkeypatch.setitem(acting.DRAFTS, "pause", lambda *_: Draft("Pause", plan, (Field("reason", "Reason"),)))
    monkeypatch.setitem(acting.DRAFTS, "quota_set", lambda *_: Draft("Set", limit, fields))
    return begun


async def ask(app: Console, pilot: Pilot[None], action: str = "pause") -> Ask:
    """The question, when it has been seen."""
    app.acting.perform(action, SELECTION)
    await pilot.pause()
    screen = app.screen
    assert isinstance(screen, Ask)
    while not screen.is_seen:
        await pilot.pause(0.005)
    return screen


def focused(app: Console) -> str:
    return str(app.focused.id) if app.focused else ""


@pytest.fixture(autouse=True)
def quick_eyes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A question is seen as soon as it is painted."""
    monkeypatch.setattr("qctl.tui.screens.ask.SEEN_S", 0.001)


@scenario
async def test_what_was_typed_before_the_question_could_be_read_confirms_nothing(
    fakes: list[Fake], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qctl.tui.screens.ask.SEEN_S", 0.25)
    app = Console()
    async with app.run_test(size=(80, 24)) as pilot:
        # given keys in one go, before it is painted and just after, and a click that was meant for the list
        app.acting.perform("pause", SELECTION)
        await pilot.press(*"yzy", "right", "enter", "y")
        assert isinstance(app.screen, Ask)
        assert not app.screen.is_seen
        assert "y confirms" not in app.said()
        app.screen.query_one("#confirm", Button).press()
        await pilot.pause()
        # then it still stands there, and a key that was pressed before that moment is none of it either
        screen = app.screen
        assert isinstance(screen, Ask)
        early = Key("y", "y")
        while not screen.is_seen:
            await pilot.pause(0.01)
        app.post_message(early)
        await pilot.pause()
        assert app.screen is screen
        assert fakes == []
        # when it says so, y confirms
        assert "y confirms" in app.said()
        await pilot.press("y")
        assert len(fakes) == 1
        # and what cancels need not wait
        await pilot.press("escape")
        app.acting.perform("pause", SELECTION)
        await pilot.press("escape")
        assert not isinstance(app.screen, Ask)


@scenario
async def test_a_write_shows_its_targets_rests_on_cancel_and_enter_alone_never_confirms(fakes: list[Fake]) -> None:
    app = Console()
    async with app.run_test(size=(80, 24)) as pilot:
        # given the question
        await ask(app, pilot)
        words = app.said()
        assert "pause web-1, 2 consumers?" in words
        assert "web-1/mail" in words
        assert "! held!" in words
        # and what a broker says is shown, harmless, and nothing to click on
        assert "\x1b" not in words
        assert "\u202e" not in words
        assert "[@click=app.quit]" in words
        # when Enter is pressed where it rests
        assert focused(app) == "cancel"
        await pilot.press("enter")
        assert not isinstance(app.screen, Ask)

        # and from each field on, as often as there are fields
        await ask(app, pilot, "quota_set")
        assert focused(app) == "rates"
        assert app.screen.query_one("#confirm", Button).disabled
        await pilot.press("y", "enter", "enter", "enter")
        assert not isinstance(app.screen, Ask)

        # and by Esc, and by n
        for key in ("escape", "n"):
            await ask(app, pilot)
            await pilot.press(key)
            assert not isinstance(app.screen, Ask)
        # then nothing was ever begun
        assert fakes == []

        # when it is confirmed by its key, or by going to the button
        await ask(app, pilot)
        await pilot.press("y")
        await pilot.press("escape")
        await ask(app, pilot)
        await pilot.press("right", "enter")
        assert len(fakes) == 2


@scenario
async def test_a_form_says_what_is_wrong_in_place_and_confirms_only_what_is_whole(fakes: list[Fake]) -> None:
    app = Console()
    async with app.run_test(size=(80, 24)) as pilot:
        await ask(app, pilot, "quota_set")
        assert "no limit yet. Such as 100/h." in app.said()
        # when it is tried all the same
        await pilot.press("tab", "tab", "y")
        assert isinstance(app.screen, Ask)
        # then a limit makes it whole
        app.screen.query_one("#rates", Input).focus()
        await pilot.press(*"9/h")
        assert "no limit yet" not in app.said()
        assert "set it to 9/h?" in app.said()
        # and y is a letter while something is typed
        await pilot.press("y")
        assert app.screen.query_one("#rates", Input).value == "9/hy"
        assert fakes == []


@scenario
async def test_in_production_nothing_but_the_typed_name_confirms(fakes: list[Fake]) -> None:
    app = Console(environment="production")
    async with app.run_test(size=(80, 24)) as pilot:
        await ask(app, pilot)
        assert "This is production. Type web-1 to go on" in app.said()
        assert focused(app) == "cancel"
        # when somebody tries without it: y goes to the field, where Enter goes on to Cancel
        await pilot.press("y")
        assert focused(app) == "typed-name"
        await pilot.press(*"web-2")
        assert app.screen.query_one("#confirm", Button).disabled
        await pilot.press("enter")
        assert focused(app) == "cancel"
        await pilot.press("right", "y")
        assert isinstance(app.screen, Ask)
        assert fakes == []
        # then with it
        app.screen.query_one("#typed-name", Input).value = "web-1"
        app.screen.query_one("#typed-name", Input).focus()
        await pilot.pause()
        await pilot.press("enter")
        assert (focused(app), fakes) == ("cancel", [])
        await pilot.press("right", "enter")
        assert len(fakes) == 1


@scenario
async def test_what_became_of_it_stays_until_it_is_closed_and_goes_on_when_it_is(fakes: list[Fake]) -> None:
    app = Console()
    async with app.run_test(size=(80, 24)) as pilot:
        # given an act that runs
        await ask(app, pilot)
        await pilot.press("y")
        assert isinstance(app.screen, Outcome)
        assert "… waiting for web-1" in app.said()
        assert app.acting.busy == 1
        # when its proof comes and it ends
        fakes[0].told = PROVEN
        fakes[0].end.set_result(None)
        await pilot.pause(0.5)
        # then all of it is there, and stays
        words = app.said()
        assert isinstance(app.screen, Outcome)
        for expected in ("✓ proven", "[b]because[/b]", "a note [/oops]", "1 proven", "[@click=app.quit]", "Esc closes"):
            assert expected in words
        assert "\x1b" not in words
        assert "waiting for" not in words
        assert (app.acting.busy, app.told) == (0, [])
        await pilot.press("escape")

        # when another is closed while it runs
        await ask(app, pilot)
        await pilot.press("y", "escape")
        assert app.acting.busy == 1
        fakes[1].told = PROVEN
        fakes[1].end.set_result(None)
        await pilot.pause()
        # then it is told when it is over, and each time what is shown was asked for anew
        assert app.refreshed == 2
        assert app.told == [("pause web-1, by oncall: 1 proven", "information")]

        # and both can be looked at again
        app.acting.perform("outcomes", Selection(View.HOSTS, (), synthetic.snapshot()))
        await pilot.pause()
        assert isinstance(app.screen, Outcomes)
        await pilot.press("j", "enter")
        assert isinstance(app.screen, Outcome)
        assert "✓ proven" in app.said()


@scenario
async def test_an_act_that_takes_long_can_be_stopped_and_says_what_is_true(fakes: list[Fake]) -> None:
    app = Console()
    async with app.run_test(size=(80, 24)) as pilot:
        for is_given, truth in ((True, "what was done until then is done"), (False, "nothing was given")):
            await ask(app, pilot)
            await pilot.press("y")
            fakes[-1].is_given = is_given
            fakes[-1].told = replace(PROVEN, summary="replayed 12 of 10000")
            await pilot.pause(0.3)
            assert "S stops it" in app.said()
            await pilot.press("S")
            await pilot.pause(0.3)
            # then it has ended, and the sum is there
            words = app.said()
            assert f"stopped; {truth}" in words
            assert "replayed 12 of 10000" in words
            assert "S stops it" not in words
            assert app.acting.busy == 0
            # and once more changes nothing
            await pilot.press("S", "escape")
        assert app.told == []


@scenario
async def test_no_failure_of_an_act_ends_the_console(fakes: list[Fake], caplog: pytest.LogCaptureFixture) -> None:
    app = Console()
    async with app.run_test(size=(80, 24)) as pilot:
        # given acts that end badly: as they may, and as they must not
        for error in (BrokerUnreachable("it is gone", hint="Start it."), ZeroDivisionError("secret")):
            await ask(app, pilot)
            await pilot.press("y")
            fakes[-1].end.set_exception(error)
            await pilot.pause(0.5)
            words = app.said()
            assert ("it is gone. Start it." in words) == isinstance(error, QctlError)
            assert ("a mistake in qctl" in words) != isinstance(error, QctlError)
            assert "secret" not in words
            assert "Traceback" not in words
            await pilot.press("escape")
        # and one that nobody looks at
        await ask(app, pilot)
        await pilot.press("y", "escape")
        fakes[-1].end.set_exception(BrokerUnreachable("it is gone"))
        await pilot.pause()
        assert app.told == [("pause web-1, 2 consumers: it is gone", "error")]
    caplog.clear()  # what a mistake in qctl logs is for who looks for it


@scenario
async def test_where_nothing_may_be_changed_no_question_is_asked() -> None:
    app = Console(read_only=True)
    async with app.run_test(size=(80, 24)) as pilot:
        for action in acting.DRAFTS:
            app.acting.perform(action, SELECTION)
        await pilot.pause()
        assert len(app.screen_stack) == 1
        assert len(app.told) == len(acting.DRAFTS)
        assert all("--read-only" in message and severity == "error" for message, severity in app.told)


@scenario
async def test_what_cannot_be_meant_is_told_and_no_question_is_asked() -> None:
    app = Console()
    async with app.run_test(size=(80, 24)) as pilot:
        for view, keys in ((View.HOSTS, ()), (View.HOSTS, ("nobody",)), (View.CONSUMERS, (HOSTILE,))):
            app.acting.perform("pause", Selection(view, keys, synthetic.snapshot()))
        await pilot.pause()
        assert len(app.screen_stack) == 1
        assert [severity for _, severity in app.told] == ["error"] * 3
        assert "there is no row" in app.told[0][0]
        assert "has no host 'nobody'" in app.told[1][0]
        assert "\x1b" not in app.told[2][0]


@scenario
async def test_on_a_small_terminal_the_buttons_of_a_long_question_are_seen() -> None:
    app = Console(environment="production")
    every = Selection(View.HOSTS, tuple(synthetic.inventory().hosts), synthetic.snapshot())
    async with app.run_test(size=(80, 24)) as pilot:
        app.acting.perform("pause", every)
        await pilot.pause(0.05)
        for button in ("#cancel", "#confirm"):
            region = app.screen.query_one(button).region
            assert region.height == 1
            assert app.screen.region.contains_region(region)
        # and there is a way to the last target, which is said
        area = app.screen.query_one("#scroll")
        assert "PgDn: more" in app.said()
        for key, place in (("j", 1), ("k", 0), ("pagedown", None), ("pageup", 0), ("end", area.max_scroll_y)):
            await pilot.press(key)
            await pilot.pause()
            assert area.scroll_y > 1 if place is None else area.scroll_y == place
        assert area.max_scroll_y > 1
        # and the field for the name comes into view when it is gone to
        await pilot.press("y")
        await pilot.pause()
        assert app.screen.region.contains_region(app.screen.query_one("#typed-name").region)
