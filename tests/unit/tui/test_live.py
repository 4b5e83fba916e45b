"""The live source without a broker: what it asks for, when it gives up, and that it never stands still unnoticed."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest

from qctl.broker.session import Connection
from qctl.control.desired import Desired
from qctl.control.event import Command, Record, Verb
from qctl.control.following import NOTHING, Known
from qctl.control.history import Entry, Pass
from qctl.control.stream import cut_off
from qctl.control.target import Target
from qctl.errors import BrokerUnreachable, ControlLogError, LoginRefused, QctlError
from qctl.inventory.load import load
from qctl.inventory.model import Inventory
from qctl.ops.estimate import Estimates
from qctl.ops.status import QueueRow
from qctl.tui import live, wire
from qctl.tui.live import LiveSource, _Work
from qctl.tui.poller import NAME, Poller, QueuePage
from qctl.tui.snapshot import Focus, Health, Page, Snapshot, SourceState, View
from qctl.tui.wire import Wire
from tests.wire import scenario


@pytest.fixture
def inventory(tmp_path: Path) -> Inventory:
    consumer = {"handler": {"exec": ["true"]}, "quota": {}}
    document = {
        "version": 1,
        "broker": {"amqp": "amqp://127.0.0.1:1/", "username": "guest", "password": {"value": "guest"}},
        "consumers": {"calls": {**consumer, "directed": True}, "mail": consumer},
        "hosts": {"web-1": {"consumers": {"calls": {}}}, "web-2": {"consumers": {"mail": {}}}},
    }
    path = tmp_path / "inventory.yaml"
    path.write_text(json.dumps(document), encoding="utf-8")
    return load(path)


class Managed:
    """A poller that knows one page of queues."""

    def __init__(self, health: Health = Health.OK) -> None:
        self.state = SourceState(NAME, health)
        self.focus = Focus()
        self.queues: QueuePage | None = QueuePage(
            (QueueRow("other", ready=1),), Page(2, 9, 4_100), 0.0, Focus(View.QUEUES)
        )
        self.dead_queues: QueuePage | None = None
        self.is_late = False
        self.consumers = None
        self.estimates: Estimates | None = None
        self.needed: list[bool] = []

    @property
    def page(self) -> Page:
        shown = self.dead_queues if self.focus.view is View.DEAD else self.queues
        return shown.page if shown else Page()

    def needs_estimates(self, needed: bool) -> None:
        self.needed.append(needed)

    def look_at(self, focus: Focus) -> None:
        self.focus = focus


def work(inventory: Inventory, managed: Managed | None = None) -> _Work:
    return _Work(inventory, cast(Poller | None, managed), 10.0, Focus())


def looked_at(made: _Work, focus: Focus) -> set[str]:
    """The queues whose depth is asked of themselves."""
    made.look_at(focus)
    return {name for name in made.wire._names if not name.startswith("qctl.")}


@scenario
async def test_the_fleet_s_queues_are_looked_at_unless_the_management_api_lists_them(
    inventory: Inventory, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, dead = {"calls", "calls@web-1", "mail"}, {"calls.dead", "mail.dead"}

    # which of them grows is said in every view
    for view in View:
        assert looked_at(work(inventory), Focus(view)) == taken | dead
        # with the management API too, but for what it lists just now
        listed = {View.QUEUES: taken, View.DEAD: dead}.get(view, set())
        assert looked_at(work(inventory, Managed()), Focus(view)) == (taken | dead) - listed

    # until it fails: then the page that was on screen, and what is in the line above
    failed = Managed(Health.FAILED)
    assert looked_at(work(inventory, failed), Focus(View.QUEUES)) == {"other"} | dead
    # the queues that were listed are no queues of dead letters
    assert looked_at(work(inventory, failed), Focus(View.DEAD)) == taken | dead
    failed.dead_queues = QueuePage((QueueRow("other.dead", work=False),), Page(), 0.0, Focus(View.DEAD))
    assert looked_at(work(inventory, failed), Focus(View.DEAD)) == taken | dead | {"other.dead"}

    # where there are too many, those of the open row first
    monkeypatch.setattr(live, "MAX_QUEUES", 1)
    alone = work(inventory)
    assert looked_at(alone, Focus(View.CONSUMERS, opened="qctl/web-2/mail/0")) == {"mail"}
    assert looked_at(alone, Focus(View.HOSTS, opened="web-1")) == {"calls"}
    assert looked_at(alone, Focus(View.CONSUMERS, opened="qctl/[@click=x]/mail/0")) == {"calls"}
    assert looked_at(alone, Focus(View.DEAD)) == {"calls.dead"}


@scenario
async def test_the_page_on_screen_is_the_broker_s_and_elsewhere_the_fleet_is_known(inventory: Inventory) -> None:
    managed = Managed()
    made = work(inventory, managed)

    made.look_at(Focus(View.QUEUES))
    seen = made.snapshot()
    assert ([row.queue for row in seen.status.queues], seen.page) == (["other"], Page(2, 9, 4_100))

    # and dead letters are paged by themselves, whether queues were listed or not
    managed.dead_queues = QueuePage((QueueRow("a.dead", work=False),), Page(1, 20, 9_999), 0.0, Focus(View.DEAD))
    made.look_at(Focus(View.DEAD))
    assert made.snapshot().page == Page(1, 20, 9_999)
    managed.queues = None
    assert made.snapshot().page == Page(1, 20, 9_999)

    made.look_at(Focus(View.HOSTS))
    seen = made.snapshot()
    assert ([row.queue for row in seen.status.queues], seen.page) == (["calls", "calls@web-1", "mail"], Page(1, 1, 3))
    # and nothing is estimated before it is known that nobody can be heard
    assert set(managed.needed) == {False}
    made.wire.last_error = BrokerUnreachable("gone")
    made.snapshot()
    assert managed.needed[-1]


@scenario
async def test_it_gives_up_only_where_nothing_has_ever_answered(inventory: Inventory) -> None:
    def given_up(
        waited_s: float, error: QctlError | None, health: Health | None, *, lived: bool = False, late: bool = False
    ) -> Any:
        managed = Managed(health) if health else None
        if managed is not None:
            managed.is_late = late
        made = work(inventory, managed)
        made.wire.last_error, made.wire.connected_once = error, lived
        return made._given_up(waited_s)

    gone, refused = BrokerUnreachable("gone"), LoginRefused("no")
    assert given_up(9.9, gone, None) is None
    assert given_up(10.0, gone, None) is gone
    assert isinstance(given_up(10.0, None, Health.FAILED), BrokerUnreachable)
    # who is refused need not wait, unless the other source may answer yet
    assert given_up(0.1, refused, Health.OFF) is refused
    assert given_up(0.1, refused, Health.CONNECTING) is None
    assert given_up(0.9, refused, Health.FAILED) is refused
    assert given_up(0.9, refused, Health.FAILED, late=True) is None  # it may answer yet
    # what has lived once is waited for
    assert given_up(99.0, gone, Health.OK) is None
    assert given_up(99.0, gone, None, lived=True) is None


def test_a_mistake_of_its_own_ends_it_with_a_word(inventory: Inventory, monkeypatch: pytest.MonkeyPatch) -> None:
    # given something nobody thought of
    def fails(*_: object) -> None:
        raise ZeroDivisionError("[/oops]")

    monkeypatch.setattr(live, "picture_of", fails)
    shown: list[tuple[Snapshot, QctlError | None]] = []
    ended = threading.Event()
    source = LiveSource(inventory, connect_timeout_s=10.0)

    def show(snapshot: Snapshot) -> None:
        shown.append((snapshot, source.error))
        ended.set()

    source.start(show)
    assert ended.wait(5.0)
    source.stop()

    [(_, error)] = shown
    assert error is not None
    assert error.message == "what runs cannot be shown any more: ZeroDivisionError: [/oops]"


def test_it_may_be_told_anything_before_it_starts_and_after_it_has_ended(inventory: Inventory) -> None:
    source = LiveSource(inventory, connect_timeout_s=10.0)
    source.look_at(Focus(View.QUEUES))
    source.refresh()
    source.stop()
    shown: list[Snapshot] = []
    source.start(shown.append)
    source.stop()
    source.look_at(Focus())
    assert shown == []


@scenario
async def test_a_control_log_without_its_beginning_still_tells_what_happened(
    inventory: Inventory, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a log that begins at entry 7, and says something all the same
    monkeypatch.setattr(wire, "Remembered", lambda *_: _Nothing())
    record = Record(7, "qctl.control", "a" * 32, "oncall", b"")
    command = Command("a" * 32, "2026-11-23T00:00:00Z", Verb.PAUSE, Target("web-1"))
    step = Pass((Entry(record, command, ""),), Known(7, record.id, Desired()), at_end=True, again=False)

    async def follow(_connection: object, *, anywhere: bool, **_: object) -> AsyncIterator[Pass]:
        if not anywhere:
            raise cut_off(7)
        yield step
        await asyncio.Event().wait()

    monkeypatch.setattr(wire, "follow", follow)
    made = Wire(inventory, lambda: None)

    # when it is followed, which fails, and then again
    with pytest.raises(ControlLogError, match="begins at entry 7"):
        await made._follow(cast(Connection, None))
    again = asyncio.ensure_future(made._follow(cast(Connection, None)))
    await asyncio.sleep(0)
    again.cancel()

    # then what happened is there, and nothing is taken for what holds
    assert [(event.offset, event.target) for event in made.events] == [(7, "web-1")]
    assert (made.desired, made.caught_up) == (None, False)


class _Nothing:
    def recall(self) -> tuple[Known, tuple[()]]:
        return NOTHING, ()
