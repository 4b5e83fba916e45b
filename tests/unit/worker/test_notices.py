"""When a host says that somebody else spends its quota: once it lasts, once it is over, and seldom."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from qctl.broker.message import Outgoing
from qctl.broker.publisher import Published, Publisher
from qctl.broker.session import ChannelLost, Connection
from qctl.control.event import Notice, Record, read
from qctl.control.quota_reading import ForeignReading, LimitReading, QuotaReading
from qctl.control.reading import Reading
from qctl.worker import notices
from qctl.worker.notices import OVER_S, PRESENT_S, SELDOM_S, Due, Notices, Watch, notice
from tests.wire import scenario

FOREIGN = ForeignReading(212, 214, 600, 900.0, 1_000, 188, since_s=1_000.0, until_s=9_000.0, lasting=True)
QUOTA = QuotaReading("mail", 600, 1_000, 900.0, limits=(LimitReading(1_000, 900.0, 600),), foreign=FOREIGN)


def process(at_s: float, quota: QuotaReading = QUOTA, index: int = 0) -> Reading:
    return Reading(at_s, "web-1", index, 17, "box", 0.0, 10.0, quotas=(quota,))


def at_rest(quota: QuotaReading = QUOTA) -> QuotaReading:
    return replace(quota, foreign=None)


class Said:
    """What a watch has had said, as it looks every five seconds."""

    def __init__(self) -> None:
        self.watch = Watch()
        self.what: list[tuple[float, bool, int]] = []
        self.said: list[Due] = []

    def look(self, at_s: float, *quotas: QuotaReading) -> None:
        """Of each process its quota."""
        readings = [process(at_s, quota, index) for index, quota in enumerate(quotas)]
        for due in tuple(self.watch.due(readings, at_s)):
            self.what.append((at_s, due.begins, due.foreign.units))
            self.said.append(due)
            self.watch.said(due, at_s)


def test_several_processes_see_it_and_it_is_said_once_and_once_that_it_is_over() -> None:
    said = Said()
    for at_s in (5.0, 10.0, 15.0):
        said.look(at_s, QUOTA, QUOTA)
    assert said.what == [(5.0, True, 212)]

    # when an answer says otherwise, it is over as soon as that has lasted
    for step in range(5):
        said.look(20.0 + 5 * step, at_rest(), at_rest())

    assert said.what == [(5.0, True, 212), (15.0 + OVER_S, False, 212)]


def test_what_does_not_last_is_not_said() -> None:
    said = Said()

    said.look(5.0, replace(QUOTA, foreign=replace(FOREIGN, lasting=False)))
    said.look(10.0, replace(QUOTA, foreign=replace(FOREIGN, units=0)))

    assert said.what == []


def window(number: int, units: int = 9) -> QuotaReading:
    """A fixed window of 15 s in which somebody else was seen once, in its first second."""
    since_s = 15.0 * number + 0.4
    foreign = ForeignReading(units, units, 51, 15.0, 60, 0, since_s=since_s, until_s=15.0 * number + 15)
    return replace(QUOTA, period_s=15.0, limit=60, window="fixed", foreign=foreign)


def test_what_comes_in_window_after_window_lasts_however_briefly_it_shows_in_each() -> None:
    # given a host that uses each window up at once, with one answer or two of the API, in which somebody else shows
    said = Said()
    for number in range(6):
        for second in (1, 6, 11):
            said.look(15.0 * number + second, window(number, units=7 + number % 3))

    # then that is said in the third
    assert said.what == [(31.0, True, 9)]

    # when two windows pass without it, then it is over, and how much it was, since when and till when is told
    for step in range(8):
        said.look(91.0 + 5 * step, replace(QUOTA, period_s=15.0, window="fixed", foreign=None))
    assert said.what[1:] == [(116.0, False, 9)]
    assert (said.said[1].since_s, said.said[1].until_s) == (0.4, 86.0)


def test_now_and_then_in_one_window_is_not_lasting() -> None:
    # given two windows with it, and two without it, again and again
    said = Said()
    for number in range(40):
        quota = window(number) if number % 5 < 2 else at_rest(window(number))
        for second in (1, 6, 11):
            said.look(15.0 * number + second, quota)

    assert said.what == []


@pytest.mark.parametrize("period_s", [1.0, 86_400.0])
def test_somebody_who_comes_and_goes_is_told_of_once_a_window_and_once_an_hour(period_s: float) -> None:
    # given somebody else who spends for a minute, and rests for a minute, for two windows and two hours
    said = Said()
    quota = replace(QUOTA, period_s=period_s, foreign=replace(FOREIGN, period_s=period_s))
    seldom_s = max(SELDOM_S, period_s)
    at_s = 0.0
    while at_s < 2 * seldom_s:
        said.look(at_s, quota if at_s % 120 < 60 else at_rest(quota))
        at_s += 5

    # then each beginning has its end, and two beginnings are that far apart
    assert [begins for _, begins, _ in said.what] == [True, False] * 2
    assert said.what[2][0] - said.what[0][0] >= seldom_s


def test_silence_of_the_processes_neither_begins_nor_ends_it() -> None:
    said = Said()
    said.look(5.0, QUOTA)

    # given readings that are old, for a long time
    stale = [process(5.0, at_rest())]
    assert not list(said.watch.due(stale, 5.0 + PRESENT_S + OVER_S))
    assert not list(said.watch.due([], 500.0))


def test_what_was_not_entered_is_said_again() -> None:
    watch = Watch()

    first = list(watch.due([process(5.0)], 5.0))
    again = list(watch.due([process(10.0)], 10.0))

    assert first == again == [Due(True, QUOTA, FOREIGN, 1_000.0)]


def test_a_notice_travels_with_all_its_numbers() -> None:
    due = Due(False, QUOTA, FOREIGN, 1_000.0, 2_000.0)
    written = notice("web-1", due, identity="a" * 32, now_s=1_800_000_000.5)

    found = read(Record(3, "qctl.hello", "a" * 32, "worker", written.body()))

    assert found == replace(written, user="worker")
    assert isinstance(found, Notice)
    assert (found.units, found.most, found.ours, found.limit, found.remaining) == (212, 214, 600, 1_000, 188)
    assert (found.limit_units, found.begins) == (1_000, False)
    assert (found.since, found.until) == ("1970-01-01T00:16:40.000Z", "1970-01-01T00:33:20.000Z")


@scenario
async def test_it_is_entered_in_the_control_log_by_the_worker_s_user(monkeypatch: pytest.MonkeyPatch) -> None:
    # given a broker that is in alarm, takes nothing at first, and then confirms
    sent: list[Outgoing] = []
    connection = SimpleNamespace(is_open=True, blocked=True, username="worker")
    channel = SimpleNamespace(connection=connection, is_open=True)
    fates = iter([Published.REFUSED, Published.CONFIRMED])

    async def publish(outgoing: Outgoing) -> Published:
        sent.append(outgoing)
        return next(fates)

    async def opened(_connection: object) -> Publisher:
        return cast(Publisher, SimpleNamespace(channel=channel, publish=publish))

    async def ensured(*_: object) -> None:
        assert not connection.blocked

    monkeypatch.setattr(notices, "LOOK_S", 0.0)
    monkeypatch.setattr(notices.Publisher, "open", opened)
    monkeypatch.setattr(notices.topology, "ensure", ensured)
    looks = 0

    def readings() -> Any:
        nonlocal looks
        looks += 1
        connection.is_open = looks < 10
        return [process(notices.time.time())]

    # when it looks ten times
    keeping = asyncio.ensure_future(Notices("web-1", readings).keep(cast(Connection, connection)))
    await asyncio.sleep(0.01)
    assert sent == []
    connection.blocked = False
    await keeping

    # then it is said until it is confirmed
    assert [(one.exchange, one.properties.user_id, one.properties.type) for one in sent] == [
        ("qctl.hello", "worker", "notice")
    ] * 2


@scenario
async def test_a_connection_that_is_lost_meanwhile_ends_it_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    async def ensured(*_: object) -> None:
        raise ChannelLost(320, "gone")

    monkeypatch.setattr(notices, "LOOK_S", 0.0)
    monkeypatch.setattr(notices.topology, "ensure", ensured)
    connection = cast(Connection, SimpleNamespace(is_open=True, blocked=False))

    await Notices("web-1", lambda: [process(notices.time.time())]).keep(connection)
