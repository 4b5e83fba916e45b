"""A host's entries in the telemetry log: never in the way of anything, and never too large."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from qctl.broker.message import Outgoing
from qctl.broker.publisher import Published, Publisher
from qctl.broker.session import ChannelLost, Connection
from qctl.control.reading import HostReading, Reading
from qctl.control.reading_parse import MAX_ENTRY_BYTES, parse_entry
from qctl.errors import BrokerRefused
from qctl.worker import telemetry_log
from qctl.worker.telemetry_log import TelemetryLog, fitting


def reading(index: int, ledger: str = "l") -> Reading:
    now_s = time.time()
    return Reading(now_s, "web-1", index, 17 + index, "box", now_s, 10.0, ledger_id=ledger)


class Broker:
    """As much of a connection, its publisher, and the declarations as an entry needs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, fate: Published | None = Published.CONFIRMED) -> None:
        self.sent: list[Outgoing] = []
        self.connection = SimpleNamespace(is_open=True, blocked=False, username="worker")
        self.refused: BrokerRefused | None = None
        self.unconfirmed = 0
        self._fate = fate
        self._closed: asyncio.Future[ChannelLost] | None = None
        monkeypatch.setattr(telemetry_log, "FIRST_S", (0.0, 0.0))
        monkeypatch.setattr(telemetry_log, "PERIOD_S", 0.01)
        monkeypatch.setattr(telemetry_log, "GOODBYE_S", 0.05)
        monkeypatch.setattr(telemetry_log.Publisher, "open", self._open)
        monkeypatch.setattr(telemetry_log.topology, "ensure", self._ensure)

    @property
    def channel(self) -> Any:
        self._closed = self._closed or asyncio.get_running_loop().create_future()
        return SimpleNamespace(connection=self.connection, is_open=True, closed=self._closed)

    def lose_channel(self) -> None:
        assert self._closed is not None
        self._closed.set_result(ChannelLost(403, "ACCESS_REFUSED"))
        self._closed = None

    async def _open(self, _connection: object) -> Publisher:
        return cast("Publisher", self)

    async def _ensure(self, *_: object) -> None:
        if self.refused:
            raise self.refused

    def send(self, outgoing: Outgoing, on_result: Callable[[Published], None]) -> None:
        self.sent.append(outgoing)
        if self._fate is not None:
            on_result(self._fate)

    async def publish(self, outgoing: Outgoing) -> Published:
        self.sent.append(outgoing)
        if self._fate is None:
            await asyncio.Event().wait()
        return Published.CONFIRMED


def kept(broker: Broker, act: Callable[[TelemetryLog], Any], for_s: float = 0.1) -> None:
    """Keep a log for a moment, then do something."""

    async def main() -> None:
        log = TelemetryLog("web-1", lambda: HostReading(time.time(), "web-1", "box", 17, (reading(0),)))
        keeping = asyncio.create_task(log.keep(cast("Connection", broker.connection)))
        await asyncio.sleep(for_s)
        done = act(log)
        if done is not None:
            await done
        keeping.cancel()
        await asyncio.wait([keeping])
        assert keeping.cancelled()

    asyncio.run(main())


def test_given_a_broker_that_takes_entries_then_they_come_signed_and_again_and_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broker = Broker(monkeypatch)

    kept(broker, lambda _log: None)

    assert len(broker.sent) >= 2
    assert {(one.exchange, one.routing_key) for one in broker.sent} == {("", "qctl.telemetry.log")}
    assert {one.properties.user_id for one in broker.sent} == {"worker"}
    assert len({one.properties.message_id for one in broker.sent}) == len(broker.sent)
    found = parse_entry(broker.sent[0].body)
    assert isinstance(found, HostReading)
    assert [one.index for one in found.processes] == [0]


@pytest.mark.parametrize("why", ["blocked", "unconfirmed"])
def test_given_a_broker_that_takes_nothing_then_entries_are_left_out_and_not_kept_for_later(
    monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    broker = Broker(monkeypatch)
    if why == "blocked":
        broker.connection.blocked = True
    else:
        broker.unconfirmed = 1

    kept(broker, lambda _log: None)

    assert broker.sent == []


def test_given_a_log_that_may_not_be_written_then_it_is_said_once_and_the_worker_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broker = Broker(monkeypatch, fate=Published.UNROUTABLE)
    broker.refused = BrokerRefused("queue qctl.telemetry.log is missing and this user may not make it", hint="Ask.")

    kept(broker, lambda _log: broker.lose_channel())
    kept(broker, lambda _log: None)

    assert (
        caplog.text.count("are not kept in the telemetry log: queue qctl.telemetry.log is missing") == 2
    )  # one a start
    assert caplog.text.count("are not kept in the telemetry log") == 2


def test_given_a_channel_that_is_lost_then_entries_go_on_with_another(monkeypatch: pytest.MonkeyPatch) -> None:
    broker = Broker(monkeypatch)

    async def act(_log: TelemetryLog) -> None:
        broker.lose_channel()
        before = len(broker.sent)
        await asyncio.sleep(0.1)
        assert len(broker.sent) > before

    kept(broker, act)


@pytest.mark.parametrize("broken", ["away", "blocked", "silent"])
def test_given_a_broker_that_hears_no_goodbye_then_the_end_does_not_wait_for_it(
    monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    broker = Broker(monkeypatch, fate=None if broken == "silent" else Published.CONFIRMED)
    broker.unconfirmed = 1  # no entries beside the goodbye

    async def act(log: TelemetryLog) -> None:
        if broken == "away":
            log._publisher = None
        broker.connection.blocked = broken == "blocked"
        started = time.monotonic()
        await log.say_goodbye()
        assert time.monotonic() - started < 1
        assert [b'"goodbye":true' in one.body for one in broker.sent] == ([True] if broken == "silent" else [])

    kept(broker, act, 0.01)


def test_an_entry_of_the_largest_host_is_one_that_can_be_read() -> None:
    # Given many processes with long readings
    long = tuple(reading(index, "l" * 40_000) for index in range(256))
    entry = HostReading(time.time(), "web-1", "box", 17, long)
    assert len(entry.body()) > MAX_ENTRY_BYTES

    # Then as many as fit in are written, and a small entry as it is
    found = fitting(entry)
    assert MAX_ENTRY_BYTES - 50_000 < len(found.body()) <= MAX_ENTRY_BYTES
    assert found.processes == long[: len(found.processes)]
    small = HostReading(time.time(), "web-1", "box", 17, long[:3])
    assert fitting(small) == small
