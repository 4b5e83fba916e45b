"""What came over the wire, as rows: who has fallen silent keeps them, with their age and why nothing is known."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from qctl.control.host_answer import HostAnswer, ProcessLook, ProcessState
from qctl.control.quota_reading import LimitReading, QuotaReading
from qctl.control.reading import ConsumerReading, Goodbye, HostReading, Reading, Tag
from qctl.errors import BrokerUnreachable
from qctl.inventory.load import load
from qctl.inventory.model import Inventory
from qctl.ops.found import Silence
from qctl.ops.picture import Picture, picture_of
from qctl.ops.status import BLOCKED, Seen, Source, State
from qctl.tui.gather import FRESH_S, deaf, fallen_silent, found_of, sources_of
from qctl.tui.snapshot import Health
from qctl.tui.tags import tag_rows
from qctl.tui.wire import Wire

#: The wall clock, and the monotonic one, at the same moment.
NOW_S, MONO_S = 1_795_354_200.0, 5_000.0


@pytest.fixture
def inventory(tmp_path: Path) -> Inventory:
    document = {
        "version": 1,
        "broker": {"amqp": "amqp://127.0.0.1:5672/", "username": "guest"},
        "quotas": {"api": "20000/h"},
        "consumers": {"calls": {"handler": {"exec": ["true"]}, "quota": {"api": 1}, "directed": True}},
        "hosts": {"web-1": {}, "web-2": {}},
    }
    path = tmp_path / "inventory.yaml"
    path.write_text(json.dumps(document), encoding="utf-8")
    return load(path)


class Connection:
    """As much of one as is looked at."""

    def __init__(self) -> None:
        self.is_open, self.blocked, self.silence_s = True, False, 0.1

    def silent_s(self) -> float:
        return self.silence_s


@pytest.fixture
def wire(inventory: Inventory) -> Wire:
    """One that has listened for a minute, with both its connections."""
    made = Wire(inventory, lambda: None)
    made._reading = made._asking = cast(Any, Connection())
    made.connected_once, made.listening_s = True, MONO_S - 60
    made.supervisors = {"web-1": Silence.ABSENT, "web-2": Silence.ABSENT}
    return made


def reading(host: str = "web-1", index: int = 0, *, used: int = 7) -> Reading:
    tag = Tag(f"qctl/{host}/calls/{index}", "calls", "consuming")
    consumer = ConsumerReading("calls", "calls", "consuming", tags=(tag,), running=1, concurrency=8, rate_per_s=2.0)
    quota = QuotaReading("api", used, 20_000, 3600.0, limits=(LimitReading(20_000, 3600.0, used),))
    return Reading(NOW_S, host, index, 40 + index, "box", NOW_S - 99, 10.0, (consumer,), (quota,))


def hear(wire: Wire, said: Reading, ago_s: float) -> None:
    """It was heard so long ago."""
    wire.hearing.take(said.body(), user="worker", routing_key=f"host.{said.host}")
    key = (said.host, said.index)
    wire.hearing.heard[key] = replace(wire.hearing.heard[key], heard_s=MONO_S - ago_s)


def part(wire: Wire, goodbye: Goodbye) -> None:
    wire.hearing.take(goodbye.body(), user="worker", routing_key=f"host.{goodbye.host}")


def look(wire: Wire, *, later_s: float = 0.0) -> Picture:
    return picture_of(found_of(wire, at_s=NOW_S + later_s, now_s=MONO_S + later_s), wire.inventory)


def test_a_host_that_fell_silent_keeps_its_rows_with_their_age(wire: Wire) -> None:
    # given a host that was heard half a second ago
    hear(wire, reading(), 0.5)
    seen = look(wire)
    row = seen.status.hosts[0]
    assert (row.state, row.seen) == (State.CONSUMING, Seen(Source.LIVE, NOW_S - 0.5))
    assert seen.status.consumers[0].running == 1

    # when it is not heard any more
    seen = look(wire, later_s=FRESH_S)

    # then all its rows are there, and say since when and why
    row = seen.status.hosts[0]
    assert (row.state, row.why, row.since_s) == (State.UNKNOWN, "no worker of it is connected", NOW_S - 0.5)
    assert row.seen == Seen(Source.LOG, NOW_S - 0.5)
    assert (seen.status.quotas[0].used_units, seen.status.quotas[0].seen) == (7, row.seen)
    tag = tag_rows(seen.hosts)[0]
    assert (tag.tag, tag.state, tag.seen) == ("qctl/web-1/calls/0", State.UNKNOWN, row.seen)
    # and supervisors are asked at once, but no second time for the same silence
    assert fallen_silent(wire, MONO_S + FRESH_S, MONO_S)
    assert not fallen_silent(wire, MONO_S + FRESH_S + 9, MONO_S + FRESH_S + 8)

    # and after a minute without a supervisor it is down
    assert look(wire, later_s=61.0).status.hosts[0].state is State.DOWN


def test_who_said_goodbye_is_down_and_its_numbers_are_remembered(wire: Wire) -> None:
    # given two processes, one of which had ended long before the other, and then both have
    hear(wire, reading(index=1, used=9_999), 30.0)
    hear(wire, reading(), 1.0)
    part(wire, Goodbye(NOW_S + 0.5, "web-1", 1))
    part(wire, Goodbye(NOW_S + 1, "web-1", 0))

    seen = look(wire, later_s=2.0)

    row = seen.status.hosts[0]
    assert (row.state, row.why, row.since_s) == (State.DOWN, "its worker has ended", NOW_S + 1)
    assert [tag.tag for tag in tag_rows(seen.hosts) if tag.host == "web-1"] == ["qctl/web-1/calls/0"]
    assert seen.status.quotas[0].used_units == 7
    assert not fallen_silent(wire, MONO_S + FRESH_S, MONO_S)


def test_of_two_processes_one_that_is_silent_makes_the_consumer_unknown(wire: Wire) -> None:
    hear(wire, reading(), 0.5)
    hear(wire, reading(index=1), 10.0)
    looks = tuple(ProcessLook(index, 40 + index, ProcessState.CONNECTED, "") for index in range(2))
    wire.supervisors["web-1"] = HostAnswer("web-1", "box", 1, "", "r", 10, looks)

    [row] = [row for row in look(wire).status.consumers if row.host == "web-1"]

    assert (row.state, row.why) == (State.UNKNOWN, "1 of its 2 processes is connected and silent")


def test_a_stranger_once_seen_stays(wire: Wire) -> None:
    hear(wire, reading("stranger"), 3_600.0)

    row = look(wire).status.host("stranger")

    assert row is not None
    assert (row.listed, row.state, row.seen) == (False, State.UNKNOWN, Seen(Source.LOG, NOW_S - 3_600.0))


def test_what_was_heard_is_believed_before_what_lies_in_the_log(wire: Wire) -> None:
    older = HostReading(NOW_S - 100, "web-1", "box", 1, (reading(used=1),))
    wire.last = {"web-1": older, "web-2": replace(older, host="web-2")}
    hear(wire, reading(), 10.0)

    quotas = look(wire).status.quotas

    assert [(row.host, row.used_units) for row in quotas] == [("web-1", 7), ("web-2", 1)]


def test_consumers_that_nobody_told_of_have_a_row_for_each_of_their_queues(wire: Wire) -> None:
    rows = [row for row in tag_rows(look(wire).hosts) if row.host == "web-2"]

    assert [(row.tag, row.queue, row.state) for row in rows] == [
        ("qctl/web-2/calls/0", "calls", State.DOWN),
        ("qctl/web-2/calls/0/directed", "calls@web-2", State.DOWN),
    ]


def test_why_nobody_can_be_heard_is_said_and_nobody_is_called_down_for_it(wire: Wire) -> None:
    connection = cast(Any, wire._reading)

    def told() -> tuple[State, str, Health]:
        row = look(wire).status.hosts[1]
        return row.state, row.why, next(sources_of(wire, at_s=NOW_S, now_s=MONO_S)).health

    assert told() == (State.DOWN, "no worker of it is connected", Health.OK)

    wire.listening_s = MONO_S - 0.5
    assert told() == (State.UNKNOWN, "not heard yet", Health.OK)

    connection.silence_s = 7.0
    assert told() == (State.UNKNOWN, "the broker says nothing", Health.STALE)

    connection.silence_s, wire.listening_s, connection.blocked = 0.1, MONO_S - 60, True
    wire.supervisors = {}
    assert told() == (State.UNKNOWN, BLOCKED, Health.STALE)

    wire._reading, wire.last_error = None, BrokerUnreachable("amqp://box does not answer", hint="Is it up?")
    assert told() == (State.UNKNOWN, "the broker cannot be reached", Health.FAILED)
    broker, *others = sources_of(wire, at_s=NOW_S, now_s=MONO_S)
    assert broker.words == "amqp://box does not answer. Is it up?"
    assert {(one.health, one.words) for one in others} == {(Health.FAILED, "the broker cannot be reached")}

    wire.connected_once, wire.last_error = False, None
    assert told() == (State.UNKNOWN, "not heard yet", Health.CONNECTING)


def test_who_may_not_listen_is_told_so_beside_what_was_ignored(wire: Wire) -> None:
    hear(wire, reading(), 0.5)
    for _ in range(3):
        wire.hearing.take(b"{", user="mallory", routing_key="host.web-1")

    def workers() -> SimpleNamespace:
        state = list(sources_of(wire, at_s=NOW_S, now_s=MONO_S))[1]
        return SimpleNamespace(health=state.health, at_s=state.at_s, words=state.words)

    assert (workers().health, workers().at_s) == (Health.OK, NOW_S - 0.5)
    assert workers().words.startswith("ignored 3 readings: not JSON")

    wire.workers.failed, wire.listening_s = "the workers' readings may not be listened to: access refused", None
    assert (workers().health, workers().words) == (Health.FAILED, wire.workers.failed)
    assert deaf(wire, MONO_S) == wire.workers.failed


def test_a_fleet_of_full_size_is_looked_at_in_a_fraction_of_a_second(wire: Wire) -> None:
    # given 500 hosts with ten consumers each, which the inventory does not even have
    names = [f"h-{number}" for number in range(500)]
    consumers = tuple(replace(reading().consumers[0], name=f"c-{number}") for number in range(10))
    for name in names:
        hear(wire, replace(reading(name), consumers=consumers), 0.5)

    # when they are looked at
    started_s = time.thread_time()
    seen = look(wire)
    tags = tag_rows(seen.hosts)

    # then that is a small part of the second for which it holds
    assert len(tags) == 5_000 + 4
    assert time.thread_time() - started_s < 0.6
