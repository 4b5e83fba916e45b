"""The live source on a real broker with real workers: what it shows is what is, or says how old it is."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qctl.errors import BrokerUnreachable, Exit
from qctl.inventory.load import load
from qctl.inventory.model import Inventory
from qctl.ops.status import HostRow, Source, State
from qctl.tui.live import LiveSource
from qctl.tui.poller import Poller, asked_of
from qctl.tui.snapshot import Focus, Health, Snapshot, SourceState, View
from tests.brokers import Vhost
from tests.fleet import Fleet, wait_until

#: Within this whatever fails says so.
TOLD_S = 6.0

HANDLER = """
def call(task):
    task.spend(1)
"""


class Screen:
    """Keeps what a source shows."""

    def __init__(self) -> None:
        self.first = threading.Event()
        self.shown: list[Snapshot] = []

    def show(self, snapshot: Snapshot) -> None:
        self.shown.append(snapshot)
        self.first.set()

    def until(self, what: str, condition: Callable[[Snapshot], bool], timeout_s: float = 15.0) -> Snapshot:
        """The newest snapshot, once it is so."""
        wait_until(what, lambda: bool(self.shown) and condition(self.shown[-1]), timeout_s)
        return self.shown[-1]


@contextmanager
def watching(
    inventory: Inventory, connect_timeout_s: float = 10.0, *, managed: bool = False
) -> Iterator[tuple[LiveSource, Screen]]:
    """A source that shows; it ends in time. managed: it also asks the management API."""
    poller = None
    if managed:
        poller = Poller(lambda: asked_of(inventory), inventory)
    source, screen = LiveSource(inventory, connect_timeout_s=connect_timeout_s, poller=poller), Screen()
    source.start(screen.show)
    try:
        yield source, screen
    finally:
        started_s = time.monotonic()
        source.stop()
        assert time.monotonic() - started_s < 2.0
        assert source._thread is not None
        assert not source._thread.is_alive()


@pytest.fixture
def fleet(local_vhost: Vhost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    """Two hosts, of which the tests start one."""
    for name, value in {**local_vhost.environment(), "XDG_CACHE_HOME": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)
    with Fleet(
        local_vhost,
        tmp_path,
        HANDLER,
        worker={"python_path": ["."]},
        quotas={"api": "100/h"},
        consumers={"calls": {"handler": {"python": "handlers:call"}, "quota": {"api": 1}}},
        hosts={"web-1": {}, "web-2": {}},
    ) as made:
        yield made


def host(snapshot: Snapshot, name: str = "web-1") -> HostRow:
    row = snapshot.status.host(name)
    assert row is not None
    return row


def heard_at_s(snapshot: Snapshot, source: Source) -> float:
    """When web-1 was heard last."""
    seen = host(snapshot).seen
    assert seen is not None
    assert seen.source is source
    return seen.at_s


def of(snapshot: Snapshot, source: str) -> SourceState:
    return next(state for state in snapshot.sources if state.name == source)


def deaf_to(fleet: Fleet) -> Inventory:
    """The same inventory with an AMQP address at which nobody answers."""
    document = json.loads((fleet.directory / "inventory.yaml").read_text(encoding="utf-8"))
    document["broker"]["amqp"] = f"amqp://127.0.0.1:1/{fleet.vhost.name}"
    path = fleet.directory / "deaf.yaml"
    path.write_text(json.dumps(document), encoding="utf-8")
    return load(path)


def ctl(fleet: Fleet, *arguments: str) -> None:
    fleet.qctl(*arguments, check=True)


def test_a_fleet_is_shown_as_it_is_and_a_host_that_dies_says_so_with_its_age(fleet: Fleet) -> None:
    # given a host that works, and one that was never started
    worker = fleet.start("web-1")
    fleet.enqueue("calls", range(3))
    inventory = load(fleet.directory / "inventory.yaml")
    started_wall_s = time.time()
    with watching(inventory) as (source, screen):
        # then what the inventory knows is there at once, and nothing is said that is not known
        assert screen.first.wait(1.0)
        assert screen.shown[0].at_s - started_wall_s < 0.5
        assert [row.host for row in screen.shown[0].status.hosts] == ["web-1", "web-2"]
        assert {row.state for row in screen.shown[0].status.hosts} == {State.UNKNOWN}

        # and soon what the workers say
        seen = screen.until(
            "web-1 consumes, web-2 is down",
            lambda now: (host(now).state, host(now, "web-2").state) == (State.CONSUMING, State.DOWN),
            TOLD_S,
        )
        assert heard_at_s(seen, Source.LIVE) > started_wall_s - 1.5
        seen = screen.until("the units are spent", lambda now: now.status.quotas[0].used_units == 3)
        assert {state.name: state.health for state in seen.sources} == dict.fromkeys(
            ("broker", "workers", "control log"), Health.OK
        )

        # and who cannot reach AMQP is shown what the management API lists, as that
        with watching(deaf_to(fleet), 0.5, managed=True) as (blind, screen_without):
            seen = screen_without.until("web-1 is listed", lambda now: host(now).state is State.CONSUMING)
            assert heard_at_s(seen, Source.BROKER) <= seen.at_s
            assert (of(seen, "broker").health, of(seen, "management API").health) == (Health.FAILED, Health.OK)
            assert "qctl/web-1/calls/0" in [tag.tag for tag in seen.tags]
            assert blind.error is None

        # when a consumer is paused, then the tag says by whom, and the event is there
        ctl(fleet, "pause", "web-1/calls", "--reason", "API is slow", "--yes")
        seen = screen.until("it is paused", lambda now: now.tags[0].state is State.PAUSED)
        assert (seen.tags[0].tag, seen.tags[0].by) == ("qctl/web-1/calls/0", fleet.vhost.username)
        assert "API is slow" in seen.tags[0].why
        assert [(event.verb, event.target) for event in seen.events] == [("pause", "web-1/calls")]

        # when the queues are on screen, then their depth is known without the management API
        fleet.enqueue("calls", range(2))
        source.look_at(Focus(View.QUEUES))
        screen.until("two tasks wait", lambda now: now.status.queues[0].ready == 2, TOLD_S)

        # when it is killed
        worker.kill()
        killed_s = time.time()

        # then its rows say so with their age, and none of them is gone
        seen = screen.until("web-1 is not heard", lambda now: host(now).state is State.UNKNOWN, TOLD_S)
        assert seen.at_s - killed_s < TOLD_S
        assert -1.5 < heard_at_s(seen, Source.LOG) - killed_s < 0.5
        assert host(seen).since_s == heard_at_s(seen, Source.LOG)
        assert {tag.tag: (tag.state, tag.by) for tag in seen.tags} == {
            "qctl/web-1/calls/0": (State.UNKNOWN, fleet.vhost.username),
            "qctl/web-2/calls/0": (State.DOWN, ""),
        }
        assert seen.status.quotas[0].used_units == 3
        screen.until("no worker is connected", lambda now: host(now).why == "no worker of it is connected", TOLD_S)

    # and who looks again has the events without reading the log from its beginning
    kept = json.loads(next((fleet.directory / "cache").rglob("events.json")).read_text(encoding="utf-8"))
    assert [event["target"] for event in kept["events"]] == ["web-1/calls"]
    with watching(inventory) as (_, screen):
        seen = screen.until("the control log is read", lambda now: of(now, "control log").health is Health.OK)
        assert [event.target for event in seen.events] == ["web-1/calls"]


def test_a_broker_that_goes_away_leaves_the_rows_with_their_age_and_all_recovers(fleet: Fleet) -> None:
    # given a host that is heard
    fleet.start("web-1")
    with watching(load(fleet.directory / "inventory.yaml")) as (_, screen):
        screen.until("web-1 consumes", lambda now: host(now).state is State.CONSUMING)

        # when the broker stops
        fleet.vhost.broker.stop_app()
        stopped_s = time.time()
        try:
            # then that is said, and the rows stay with their age
            seen = screen.until("it is told", lambda now: host(now).state is State.UNKNOWN, TOLD_S)
            assert seen.at_s - stopped_s < TOLD_S
            assert (host(seen).why, of(seen, "broker").health) == ("the broker cannot be reached", Health.FAILED)
            assert heard_at_s(seen, Source.LOG) < stopped_s
            assert [tag.tag for tag in seen.tags] == ["qctl/web-1/calls/0", "qctl/web-2/calls/0"]
        finally:
            fleet.vhost.broker.start_app()

        # and all recovers by itself
        screen.until("web-1 is back", lambda now: host(now).state is State.CONSUMING, 20.0)
        screen.until("every source is", lambda now: {one.health for one in now.sources} == {Health.OK})


def test_where_nothing_answers_the_source_says_why_and_ends(tmp_path: Path) -> None:
    document = {
        "version": 1,
        "broker": {"amqp": "amqp://127.0.0.1:1/", "username": "u", "password": {"value": "p"}},
        "consumers": {"calls": {"handler": {"exec": ["true"]}, "quota": {}}},
        "hosts": {"web-1": {}},
    }
    path = tmp_path / "inventory.yaml"
    path.write_text(json.dumps(document), encoding="utf-8")
    with watching(load(path), connect_timeout_s=0.5) as (source, screen):
        wait_until("it gives up", lambda: source.error is not None, 5.0)
        assert isinstance(source.error, BrokerUnreachable)
        assert source.error.exit_code is Exit.UNREACHABLE
        seen = screen.until("it says so", lambda now: of(now, "broker").health is Health.FAILED)
        assert "127.0.0.1:1/ does not answer" in of(seen, "broker").words
