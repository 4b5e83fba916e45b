"""Readings on a real broker: heard live while they come, and found again at the end of the log of them."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pika
import pytest

from qctl.broker import core, topology
from qctl.broker.lossy import MAX_UNCONFIRMED, LossyPublisher
from qctl.broker.message import Outgoing, Properties
from qctl.broker.publisher import Published, Publisher
from qctl.broker.session import Connection
from qctl.control import telemetry, telemetry_log
from qctl.control.host_quotas import host_quotas
from qctl.control.reading import ConsumerReading, Goodbye, HostReading, Reading, Tag
from qctl.control.telemetry import listen
from qctl.control.telemetry_log import last_minutes
from qctl.errors import BrokerRefused
from tests.brokers import Vhost
from tests.fleet import Fleet
from tests.integration.test_enqueue_outages import alarm
from tests.wire import connected, scenario, stranger, until


def reading(host: str = "web-1", index: int = 0) -> Reading:
    now_s = time.time()
    return Reading(now_s, host, index, 17, "box", now_s, 10.0)


def outgoing(said: Reading | Goodbye, username: str) -> Outgoing:
    return Outgoing(topology.TELEMETRY, f"host.{said.host}", said.body(), Properties(user_id=username))


async def write_log(connection: Connection, *entries: HostReading | Goodbye) -> None:
    """Write to the log as a supervisor does."""
    await topology.ensure(connection, topology.telemetry())
    publisher = await Publisher.open(connection)
    for entry in entries:
        properties = Properties(user_id=connection.username, delivery_mode=2)
        assert (
            await publisher.publish(Outgoing("", topology.TELEMETRY_LOG, entry.body(), properties))
            is Published.CONFIRMED
        )


def user(vhost: Vhost, name: str, **permissions: str) -> dict[str, str]:
    """Another user of the broker, with these permissions only; what `connected` takes."""
    vhost.broker.api("PUT", f"/users/{name}", {"password": "secret", "tags": ""})
    vhost.broker.api(
        "PUT", f"/permissions/{vhost.name}/{name}", {"configure": "", "write": "", "read": "", **permissions}
    )
    return {"username": name, "password": "secret"}


@scenario
async def test_given_processes_that_send_then_their_last_readings_are_heard(vhost: Vhost) -> None:
    async with connected(vhost) as sending, connected(vhost) as hearing, listen(hearing) as listener:
        publisher = await LossyPublisher.open(sending, topology.telemetry()[:1])

        # When two processes of a host, whose name has dots, send readings, and somebody sends one without saying who
        started_s = core.now_s()
        last = reading("web-1.example.com", 1)
        for said in (reading("web-1.example.com"), reading("web-1.example.com", 1), last):
            assert publisher.send(outgoing(said, sending.username))
        with stranger(vhost) as channel:
            channel.basic_publish(topology.TELEMETRY, "host.web-2", reading("web-2").body(), pika.BasicProperties())
        assert await listener.until(lambda: len(listener.heard) == 2 and bool(listener.ignored), 10.0)

        # Then the last ones are known, with who sent them and when they were heard
        first, second = listener.of("web-1.example.com")
        assert (first.reading.index, second.reading.at_s) == (0, pytest.approx(last.at_s, abs=0.001))
        assert first.user == vhost.username
        assert started_s <= first.heard_s <= core.now_s()
        assert listener.of("web-2") == ()

        # And a goodbye is heard as well
        publisher.send(outgoing(Goodbye(time.time(), "web-1.example.com"), sending.username))
        assert await listener.until(lambda: listener.said_goodbye("web-1.example.com", 1) is not None, 10.0)


@scenario
async def test_given_a_listener_that_is_slow_then_it_hears_the_newest(
    vhost: Vhost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telemetry, "MAX_QUEUED", 10)
    monkeypatch.setattr(telemetry, "PREFETCH", 1)
    monkeypatch.setattr(telemetry, "ACK_WITHIN_S", 3_600.0)
    async with connected(vhost) as sending, connected(vhost) as hearing, listen(hearing) as listener:
        # Given more readings than the broker keeps, of which only the first is taken
        publisher = await Publisher.open(sending)
        fates = [publisher.publish(outgoing(reading(f"h-{number}"), sending.username)) for number in range(50)]
        assert set(await asyncio.gather(*fates)) == {Published.CONFIRMED}
        assert await listener.until(lambda: bool(listener.heard), 10.0)

        # When it goes on
        monkeypatch.setattr(telemetry, "ACK_EVERY", 1)
        listener._channel.raw.basic_ack(1)
        assert await listener.until(lambda: ("h-49", 0) in listener.heard, 10.0)

        # Then it has heard the first and the last ones
        assert [host for host, _ in listener.heard] == ["h-0", *(f"h-{number}" for number in range(40, 50))]


@scenario
async def test_given_a_listener_that_left_then_nothing_of_it_remains(vhost: Vhost) -> None:
    async with connected(vhost) as hearing:
        async with listen(hearing) as listener:
            (queue,) = [one["name"] for one in vhost.broker.api("GET", f"/queues/{vhost.name}")]
        assert listener.lost.done()
        assert not await topology.exists(hearing, topology.Existing(queue))
        assert hearing.is_open


@scenario
async def test_given_no_right_to_listen_then_that_is_said(vhost: Vhost) -> None:
    async with connected(vhost) as connection:
        await topology.ensure(connection, topology.telemetry())
    async with connected(vhost, **user(vhost, "blind", configure="qctl.*", write="qctl.*")) as connection:
        with pytest.raises(BrokerRefused, match="may not be listened to"):
            async with listen(connection):
                pass


@scenario
async def test_given_no_right_to_send_readings_then_only_their_channel_is_lost(vhost: Vhost) -> None:
    async with connected(vhost) as connection:
        await topology.ensure(connection, topology.telemetry())
    async with connected(vhost, **user(vhost, "mute", configure="qctl.*")) as connection:
        publisher = await LossyPublisher.open(connection, topology.telemetry()[:1])

        assert publisher.send(outgoing(reading(), connection.username))
        lost = await publisher.channel.closed

        assert lost.code == topology.ACCESS_REFUSED
        assert not publisher.send(outgoing(reading(), connection.username))
        assert connection.is_open


@scenario
async def test_given_a_log_then_its_last_minutes_are_read_to_a_proven_end(vhost: Vhost) -> None:
    # Given entries of two hosts, an unsigned one and one that is no entry
    entries = [HostReading(1.0 + i, f"web-{i % 2}", "box", 1, (reading(f"web-{i % 2}"),)) for i in range(20)]
    async with connected(vhost) as connection:
        await write_log(connection, *entries, Goodbye(30.0, "web-0"))
        with stranger(vhost) as channel:
            channel.confirm_delivery()
            channel.basic_publish("", topology.TELEMETRY_LOG, entries[0].body(), pika.BasicProperties())
            channel.basic_publish("", topology.TELEMETRY_LOG, b"{}", pika.BasicProperties(user_id=vhost.username))

        # When the last minutes are asked for, twice, since each leaves a mark
        await last_minutes(connection, 60.0)
        tail = await last_minutes(connection, 60.0)

        # Then they are all there, in their order
        assert (tail.proven, tail.why, tail.omitted, tail.ignored) == (True, "", 0, 2)
        assert [(one.host, one.at_s) for one in tail.entries] == [
            *((one.host, one.at_s) for one in entries),
            ("web-0", 30.0),
        ]
        assert tail.last()["web-0"] == Goodbye(30.0, "web-0", None, vhost.username)
        assert isinstance(tail.last()["web-1"], HostReading)


@scenario
async def test_given_an_older_entry_then_only_the_later_ones_are_read(
    vhost: Vhost, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given an entry, and another one more than a second later
    monkeypatch.setattr(telemetry_log, "SKEW_S", 0.0)
    async with connected(vhost) as connection:
        await write_log(connection, Goodbye(1.0, "old"))
        written_s = time.time()
        await asyncio.sleep(2.1)  # the broker's places in time are whole seconds
        await write_log(connection, Goodbye(2.0, "new"))

        # When only what came after the first is asked for
        tail = await last_minutes(connection, time.time() - written_s - 1.0)

        # Then that is what is read; and nothing at all is an end as well
        assert (tail.proven, [one.host for one in tail.entries]) == (True, ["new"])
        nothing = await last_minutes(connection, -3_600.0)
        assert (nothing.proven, nothing.entries) == (True, ())


@scenario
async def test_given_no_log_then_that_is_said_and_none_is_made(local_vhost: Vhost) -> None:
    async with connected(local_vhost) as connection:
        tail = await last_minutes(connection, 60.0)

        assert (tail.entries, tail.proven) == ((), False)
        assert tail.why == "there is no stream qctl.telemetry.log; workers make it"
        assert not await topology.exists(connection, topology.Existing(topology.TELEMETRY_LOG))


@scenario
async def test_given_a_log_that_may_only_be_read_then_the_end_is_where_nothing_comes(local_vhost: Vhost) -> None:
    async with connected(local_vhost) as connection:
        await write_log(connection, Goodbye(1.0, "web-1"))
    started_s = time.monotonic()
    async with connected(local_vhost, **user(local_vhost, "reader", read=".*")) as connection:
        tail = await last_minutes(connection, 60.0)

        assert [one.host for one in tail.entries] == ["web-1"]
        assert not tail.proven
        assert "access" in tail.why
        assert time.monotonic() - started_s < 5
        assert connection.is_open


@scenario
async def test_given_more_entries_than_are_kept_then_the_last_ones_are(
    local_vhost: Vhost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telemetry_log, "MAX_ENTRIES", 5)
    monkeypatch.setattr(telemetry_log, "PREFETCH", 4)
    monkeypatch.setattr(telemetry_log, "ACK_EVERY", 2)
    async with connected(local_vhost) as connection:
        await write_log(connection, *(Goodbye(float(number), "web-1") for number in range(20)))

        tail = await last_minutes(connection, 60.0)

        assert [one.at_s for one in tail.entries] == [15.0, 16.0, 17.0, 18.0, 19.0]
        assert (tail.proven, tail.omitted) == (True, 15)


@scenario
async def test_given_a_broker_in_alarm_then_the_log_is_read_all_the_same_and_nothing_waits(local_vhost: Vhost) -> None:
    # Given a log, and a broker that takes nothing
    async with connected(local_vhost) as connection:
        await write_log(connection, Goodbye(1.0, "web-1"))
    async with connected(local_vhost) as hearing, connected(local_vhost) as sending, listen(hearing):
        publisher = await LossyPublisher.open(sending, topology.telemetry()[:1])
        with alarm(local_vhost.broker):
            # When the log is read, and readings are sent
            started_s = time.monotonic()
            tail = await last_minutes(hearing, 60.0)

            # Then what was read is there, without a proof
            assert [one.host for one in tail.entries] == ["web-1"]
            assert (tail.proven, bool(tail.why)) == (False, True)
            assert time.monotonic() - started_s < 5

            # And of the readings only a few are on their way, whatever is sent
            sent = [publisher.send(outgoing(reading(), sending.username)) for _ in range(100)]
            assert 1 <= sum(sent) <= MAX_UNCONFIRMED
            await until("the broker blocks", lambda: sending.blocked)
            assert not publisher.ready

        # And afterwards it goes on
        await until("the broker takes readings again", lambda: publisher.ready)
        assert publisher.send(outgoing(reading(), sending.username))


HANDLERS = """
    def paid(task):
        task.spend(1)
    def free(task):
        pass
"""


@scenario
async def test_given_a_worker_then_its_processes_say_what_they_do_and_what_is_left(
    local_vhost: Vhost, tmp_path: Path
) -> None:
    # Given a host with two processes, a quota of twenty calls, and more tasks
    inventory = {
        "quotas": {"api": "20/h"},
        "consumers": {
            "paid": {"handler": {"python": "handlers:paid"}, "quota": {"api": 1}},
            "free": {"handler": {"python": "handlers:free"}, "quota": {}, "directed": True},
        },
        "hosts": {"web-1": None},
    }
    with Fleet(local_vhost, tmp_path, HANDLERS, **inventory) as fleet:
        await asyncio.to_thread(fleet.enqueue, "paid", range(30))
        async with connected(local_vhost) as connection, listen(connection) as listener:
            worker = await asyncio.to_thread(fleet.start, "web-1", "--processes", "2")

            # When the quota is gone
            def readings() -> list[Reading]:
                return [heard.reading for heard in listener.of("web-1")]

            def of(name: str) -> list[ConsumerReading]:
                return [one for reading in readings() for one in reading.consumers if one.name == name]

            def is_dry() -> bool:
                return [one.state for one in of("paid")] == ["held", "held"] and host_quotas(readings())[0].dry

            assert await listener.until(is_dry, 20.0), readings()
            assert await listener.until(lambda: sum(one.counts.acked for one in of("paid")) == 20, 5.0), of("paid")

            # Then both say so: used up, by whom, until when; and what else they do
            (quota,) = host_quotas(readings())
            assert (quota.used, quota.limit, quota.period_s, quota.leased, quota.over) == (20, 20, 3_600.0, 0, 0)
            assert [one.state for one in of("free")] == ["consuming", "consuming"]
            assert quota.returns_at_s == pytest.approx(time.time() + 3_600, abs=60)
            for index, one in enumerate(readings()):
                paid, free = sorted(one.consumers, key=lambda consumer: consumer.name, reverse=True)
                assert [(hold.cause, hold.words) for hold in paid.holds] == [("quota", "quota api")]
                assert paid.holds[0].until_s == pytest.approx(quota.returns_at_s, abs=5)
                assert paid.tags == (Tag(f"qctl/web-1/paid/{index}", "paid", "held"),)
                assert [tag.tag for tag in free.tags] == [
                    f"qctl/web-1/free/{index}",
                    f"qctl/web-1/free/{index}/directed",
                ]
                assert one.pid in worker.pids()
                assert one.ledger_fault is None
                assert 0 <= time.time() - one.at_s < 3

            # And when the worker is stopped, each of them says goodbye
            assert await asyncio.to_thread(worker.stop) == 0
            assert await listener.until(lambda: {("web-1", 0), ("web-1", 1)} <= listener.goodbyes.keys(), 10.0)
            assert listener.ignored == {}
