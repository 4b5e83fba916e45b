"""What a process says of itself: numbers of its consumers and quotas; and that saying it never waits for anybody."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pika.exceptions
import pytest

from qctl import quota
from qctl.broker import lossy, topology
from qctl.broker.lossy import MAX_UNCONFIRMED, LossyPublisher
from qctl.broker.message import Outgoing, Properties
from qctl.broker.session import Channel, ChannelLost, Connection
from qctl.control.desired import Override, Pause
from qctl.control.quota_reading import ForeignReading, LimitReading, OverrideReading, QuotaReading
from qctl.control.reading import (
    MAX_READING_BYTES,
    Goodbye,
    Hold,
    Reading,
    Tag,
)
from qctl.control.reading_parse import from_json, parse
from qctl.control.target import Target
from qctl.quota import Account, Grant, Leases, Limit, Policy, Window
from qctl.quota.account import Counted
from qctl.quota.foreign import ForeignReport
from qctl.quota.window import Spent
from qctl.worker import readings
from qctl.worker.consumer import LiveConsumer
from qctl.worker.readings import Clocks, Telemetry, consumer_reading, quota_reading
from tests.fleet import wait_until
from tests.wire import scenario

S = 10**9
NOW = Clocks(now_ns=500 * S, now_s=1_800_000_000.0)
TWITTER = Policy("twitter", (Limit(100, 60 * S),))
NOON = "2026-11-22T12:00:00.000Z"
NOON_S = 1_795_348_800.0


def consumer(name: str = "calls", concurrency: int = 2) -> LiveConsumer:
    return LiveConsumer(
        address=f"web-1/{name}",
        host="web-1",
        queues={name: f"qctl/web-1/{name}/0", f"{name}@web-1": f"qctl/web-1/{name}/0/directed"},
        work_queue=name,
        declarations=(),
        persistent=True,
        ladder_s=(1.0,),
        concurrency=concurrency,
        flush_soon=lambda: None,
        publisher=lambda: None,
    )


def pause(name: str, until_s: float | None) -> Pause:
    return Pause(name, "anna", "anna@box", NOON, f"reason {name}", until_s, Target(host="web-1"))


# Consumers


def test_a_consumer_says_what_it_is_and_how_many_tasks_ended_in_which_way() -> None:
    live = consumer()
    live.counts.acked, live.counts.dead = 7, 1
    live.say_down("queue calls was deleted")

    found = consumer_reading(live, quota_until_s=None)

    assert (found.name, found.queue, found.state, found.why) == ("calls", "calls", "down", "queue calls was deleted")
    assert found.since_s == live.since_s
    assert found.tags == (
        Tag("qctl/web-1/calls/0", "calls", "down"),
        Tag("qctl/web-1/calls/0/directed", "calls@web-1", "down"),
    )
    assert (found.running, found.waiting, found.concurrency, found.prefetch) == (0, 0, 2, 2)
    assert (found.counts.acked, found.counts.dead, found.counts.retried) == (7, 1, 0)
    assert (found.by, found.claimed_by, found.reason, found.until_s) == (None, None, None, None)


@pytest.mark.parametrize(
    "order", list(itertools.permutations([("a", 1_000.0), ("b", None), ("c", 2_000.0), ("d", None)]))
)
def test_of_several_pauses_the_one_that_lasts_longest_shows(order: tuple[tuple[str, float | None], ...]) -> None:
    live = consumer()
    live.pause({"calls": tuple(pause(name, until_s) for name, until_s in order)})

    found = consumer_reading(live, quota_until_s=None)

    first_without_end = next(name for name, until_s in order if until_s is None)
    assert (found.by, found.claimed_by, found.reason) == ("anna", "anna@box", f"reason {first_without_end}")
    assert found.until_s is None


def test_a_hold_has_its_cause_and_one_for_want_of_quota_its_end() -> None:
    live = consumer()
    live.hold("quota", "quota twitter")
    live.hold("upstream", "api.example.org refuses")

    found = consumer_reading(live, quota_until_s=123.0)

    assert found.holds == (Hold("quota", "quota twitter", 123.0), Hold("upstream", "api.example.org refuses", None))


# Quotas


def account(units: int, limit: int = 100, **more: Any) -> Account:
    counted = Counted(Limit(limit, 60 * S), units)
    fields = {"lease_units": 3, "dry": units >= limit, "returns_ns": 510 * S, "blocked_until_ns": None, **more}
    return Account(counted, (counted,), **fields)


def test_when_units_return_is_told_in_seconds_from_now_for_the_limits_that_are_shown() -> None:
    # given a ledger that has forty units spent, of which ten are free again in five seconds
    limit = Limit(100, 60 * S)
    ledger = quota.Reading("twitter", (quota.LimitReading(limit, Spent.of([(505 * S, 10), (520 * S, 30)])),))

    # when
    found = quota_reading(TWITTER, account(40), NOW, spent=ledger)

    # then
    pairs = found.limits[0].returns
    assert sum(units for in_s, units in pairs if in_s == 5.0) == 10
    assert sum(units for in_s, units in pairs if in_s == 20.0) == 30
    assert quota_reading(TWITTER, account(40), NOW).limits[0].returns == ()


def test_instants_of_a_quota_are_told_by_the_wall_clock() -> None:
    found = quota_reading(TWITTER, account(40, blocked_until_ns=530 * S), NOW)

    assert found == QuotaReading(
        "twitter",
        used=40,
        limit=100,
        period_s=60.0,
        over=0,
        leased=3,
        returns_at_s=NOW.now_s + 10,
        blocked_until_s=NOW.now_s + 30,
        limits=(LimitReading(100, 60.0, 40),),
    )
    assert quota_reading(TWITTER, account(40, returns_ns=None), NOW).returns_at_s is None


@pytest.mark.parametrize(("units", "used", "over"), [(99, 99, 0), (100, 100, 0), (140, 100, 40)])
def test_used_is_never_more_than_the_limit(units: int, used: int, over: int) -> None:
    found = quota_reading(TWITTER, account(units), NOW)

    assert (found.used, found.over, found.dry) == (used, over, used == 100)


def test_an_override_says_who_why_and_until_when() -> None:
    override = Override("id", "anna", None, NOON, "sale", 2e9, "web-1", "twitter", ("50/m",))

    found = quota_reading(TWITTER, account(40), NOW, override=override)

    assert found.override == OverrideReading(("50/m",), "anna", "sale", 2e9, NOON_S)


def test_what_a_task_has_reserved_is_used_and_what_lies_in_memory_is_leased(tmp_path: Path) -> None:
    # given a real ledger, of which a process has taken 4 units for tasks
    policy = Policy("twitter", (Limit(1_000, 3_600 * S),))
    with Leases.open(tmp_path / "web-1", [policy]) as leases:
        priced = leases.register("calls", {"twitter": 1})
        for _ in range(4):
            assert isinstance(leases.acquire(priced), Grant)

        # when the ledger's thread has looked at the ledger again
        wait_until("a look at the ledger", lambda: leases.readings()["twitter"].leased_units)

        # then those are used; what it has leased beyond that is not
        found = leases.accounts([policy, Policy("unheard", policy.limits)])
        assert list(found) == ["twitter"]
        assert found["twitter"].binding.units == 4
        assert found["twitter"].lease_units == leases.readings()["twitter"].leased_units - 4 > 0
        assert not found["twitter"].dry


@pytest.mark.parametrize(("most", "told"), [(14, 14), (300, 100)])
def test_what_others_have_spent_is_told_with_what_the_upstream_said(most: int, told: int) -> None:
    report = ForeignReport(
        quota="twitter",
        limit=Limit(100, 60 * S),
        lo_units=12,
        hi_units=most,
        remaining_units=-3,
        limit_units=90,
        our_units=60,
        since_ns=440 * S,
        until_ns=550 * S,
        lasting=True,
    )

    found = quota_reading(TWITTER, account(60), NOW, foreign=report).foreign

    # more than the limit cannot be gone of it
    assert found == ForeignReading(
        12, told, 60, 60.0, limit=90, remaining=0, since_s=NOW.now_s - 60, until_s=NOW.now_s + 50, lasting=True
    )


def test_what_others_have_spent_is_not_over_a_lowered_limit() -> None:
    counted = Counted(Limit(100, 60 * S), 90, others_units=30)

    found = quota_reading(TWITTER, Account(counted, (counted,), 0, True, None, None), NOW)

    assert (counted.room_units, found.used, found.over) == (-20, 90, 0)


def test_a_fixed_window_says_when_it_begins_anew() -> None:
    counted = Counted(Limit(100, 60 * S), 40, resets_ns=530 * S)
    policy = Policy("twitter", (Limit(100, 60 * S),), Window.FIXED)

    found = quota_reading(policy, Account(counted, (counted,), 0, False, None, None), NOW)

    assert (found.window, found.limits[0].resets_at_s) == ("fixed", NOW.now_s + 30)


# Sending


class Raw:
    """pika's channel, as far as a lossy publisher uses it."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, str, bytes, Properties]] = []
        self.fails = False

    def basic_publish(self, exchange: str, key: str, body: bytes, properties: Properties, *, mandatory: bool) -> None:
        if self.fails:
            raise pika.exceptions.ChannelWrongStateError("gone")
        assert not mandatory
        self.sent.append((exchange, key, body, properties))


class Link:
    """A connection with one channel on which all this happens."""

    def __init__(self) -> None:
        self.raw = Raw()
        self.connection = SimpleNamespace(blocked=False, is_open=True, username="worker", heartbeat_s=7)
        self.closed: asyncio.Future[ChannelLost] = asyncio.get_running_loop().create_future()
        self.channel = SimpleNamespace(raw=self.raw, connection=self.connection, is_open=True, closed=self.closed)
        self.publisher = LossyPublisher(cast(Channel, self.channel))

    def lose_channel(self) -> None:
        self.channel.is_open = False
        self.closed.set_result(ChannelLost(403, "not any more"))

    def confirm(self, tag: int) -> None:
        self.publisher._on_confirm(SimpleNamespace(method=SimpleNamespace(delivery_tag=tag)))


OUTGOING = Outgoing("exchange", "key", b"body", Properties())


@scenario
async def test_what_the_broker_does_not_read_is_dropped_until_it_reads_again() -> None:
    link = Link()

    assert [link.publisher.send(OUTGOING) for _ in range(MAX_UNCONFIRMED + 2)] == [True] * MAX_UNCONFIRMED + [False] * 2
    link.confirm(2)
    assert [link.publisher.send(OUTGOING) for _ in range(3)] == [True, True, False]
    assert len(link.raw.sent) == MAX_UNCONFIRMED + 2


@scenario
async def test_nothing_is_sent_while_the_broker_blocks_or_the_channel_is_gone() -> None:
    link = Link()
    link.connection.blocked = True
    assert not link.publisher.send(OUTGOING)
    link.connection.blocked = False
    link.raw.fails = True
    assert not link.publisher.send(OUTGOING)
    link.raw.fails = False
    assert link.publisher.send(OUTGOING)
    link.lose_channel()
    assert not link.publisher.send(OUTGOING)
    assert len(link.raw.sent) == 1


class Process:
    """A process that has telemetry and nothing else; `reported`: what its supervisor was told."""

    def __init__(self, *consumers: LiveConsumer) -> None:
        self.reported: list[dict[str, Any]] = []
        leases = SimpleNamespace(
            clock=SimpleNamespace(now_ns=lambda: NOW.now_ns),
            broken=None,
            ledger_id="abc",
            accounts=lambda policies: {policy.name: account(40) for policy in policies},
            readings=dict,
            foreign=dict,
            standing=lambda _consumer: SimpleNamespace(held=None),
        )
        self.telemetry = Telemetry(
            host="web-1",
            index=3,
            leases=cast(Leases, leases),
            consumers={live.name: live for live in consumers},
            policies=lambda: [Policy("twitter", (Limit(100, 60 * S),))],
            overrides=dict,
            offer=self.offer,
        )

    def offer(self, **event: Any) -> bool:
        self.reported.append(json.loads(json.dumps(event)))
        return True


def _attach_to(monkeypatch: pytest.MonkeyPatch, outcome: LossyPublisher | Exception) -> list[Connection]:
    tried: list[Connection] = []

    async def opened(connection: Connection, declarations: Any) -> LossyPublisher:
        assert list(declarations) == [topology.Exchange(topology.TELEMETRY, "topic")]
        tried.append(connection)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(lossy.LossyPublisher, "open", opened)
    return tried


@scenario
async def test_with_nobody_connected_only_the_supervisor_hears_and_only_now_and_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    process = Process(consumer())

    with monkeypatch.context() as patch:
        patch.setattr(process.telemetry, "reading", pytest.fail)  # nobody could have it
        process.telemetry.tick(reported=False)
    assert process.reported == []
    process.telemetry.tick(reported=True)

    assert [event["event"] for event in process.reported] == ["reading"]
    reading = from_json(process.reported[0]["reading"])
    assert (reading.host, reading.index, reading.ledger_id, reading.heartbeat_s) == ("web-1", 3, "abc", 10.0)
    assert [one.name for one in reading.consumers] == ["calls"]
    assert [one.name for one in reading.quotas] == ["twitter"]


@scenario
async def test_a_reading_goes_out_signed_transient_and_under_its_host(monkeypatch: pytest.MonkeyPatch) -> None:
    # given a process that is connected
    process, link = Process(consumer()), Link()
    _attach_to(monkeypatch, link.publisher)
    await process.telemetry.attach(cast(Connection, link.connection))

    # when it sends a reading, and says goodbye
    process.telemetry.tick(reported=False)
    process.telemetry.say_goodbye()

    # then both go to whoever listens
    (first, second) = link.raw.sent
    for exchange, key, _, properties in (first, second):
        assert (exchange, key, properties.user_id, properties.delivery_mode) == (
            "qctl.telemetry",
            "host.web-1",
            "worker",
            1,
        )
    reading, goodbye = parse(first[2]), parse(second[2])
    assert isinstance(reading, Reading)
    assert (reading.index, reading.heartbeat_s) == (3, 7.0)
    assert isinstance(goodbye, Goodbye)
    assert (goodbye.host, goodbye.index) == ("web-1", 3)
    assert process.reported == []


@scenario
async def test_after_the_connection_is_lost_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    process, link = Process(consumer()), Link()
    _attach_to(monkeypatch, link.publisher)
    await process.telemetry.attach(cast(Connection, link.connection))

    process.telemetry.detach()
    process.telemetry.tick(reported=False)
    process.telemetry.say_goodbye()

    assert link.raw.sent == []


@scenario
async def test_what_is_sent_fits_into_the_supervisors_pipe() -> None:
    process = Process(*(consumer(f"calls-{number}") for number in range(300)))

    process.telemetry.tick(reported=True)

    reading = from_json(process.reported[0]["reading"])
    assert len(reading.body()) <= MAX_READING_BYTES
    assert reading.omitted == 300 - len(reading.consumers)


@scenario
async def test_without_the_right_to_publish_it_is_told_once_and_tried_again_later(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # given a user who may not publish readings
    process, link = Process(consumer()), Link()
    tried = _attach_to(monkeypatch, ChannelLost(403, "no write access"))
    now_s = 1_000.0
    monkeypatch.setattr(readings.time, "monotonic", lambda: now_s)

    # when the process connects and goes on
    await process.telemetry.attach(cast(Connection, link.connection))
    for _ in range(10):
        await process.telemetry._reopen()
    assert len(tried) == 1
    now_s += readings.REOPEN_S
    link.connection.blocked = True  # a channel could not be opened now
    await process.telemetry._reopen()
    assert len(tried) == 1
    link.connection.blocked = False
    await process.telemetry._reopen()

    # then it was tried once more, and said once
    assert len(tried) == 2
    assert [record.getMessage() for record in caplog.records] == [
        "readings of this process are not sent: 403 no write access"
    ]


@scenario
async def test_a_channel_that_is_lost_alone_is_opened_again(monkeypatch: pytest.MonkeyPatch) -> None:
    process, first, second = Process(consumer()), Link(), Link()
    now_s = 1_000.0
    monkeypatch.setattr(readings.time, "monotonic", lambda: now_s)
    _attach_to(monkeypatch, first.publisher)
    await process.telemetry.attach(cast(Connection, first.connection))
    _attach_to(monkeypatch, second.publisher)

    first.lose_channel()
    now_s += readings.REOPEN_S
    await process.telemetry._reopen()
    process.telemetry.tick(reported=False)

    assert (len(first.raw.sent), len(second.raw.sent)) == (0, 1)


@scenario
async def test_a_lost_connection_is_for_the_caller_to_know(monkeypatch: pytest.MonkeyPatch) -> None:
    process, link = Process(consumer()), Link()
    link.connection.is_open = False
    _attach_to(monkeypatch, ChannelLost(320, "gone"))

    with pytest.raises(ChannelLost):
        await process.telemetry.attach(cast(Connection, link.connection))


@scenario
async def test_a_bug_in_telling_ends_nothing(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    # given a process whose reading cannot be made
    monkeypatch.setattr(readings, "PERIOD_S", 0.001)
    process, tries, many = Process(consumer()), itertools.count(1), asyncio.Event()

    def fail() -> None:
        if next(tries) == 3:
            many.set()
        raise KeyError("a bug")

    monkeypatch.setattr(process.telemetry, "reading", fail)

    # when it goes on
    running = asyncio.ensure_future(process.telemetry.run())
    await many.wait()

    # then that was told once, with where it happened, and it goes on
    assert not running.done()
    running.cancel()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.exc_info


# How fast a quota is spent


def test_units_a_second_are_those_that_the_ledger_has_settled_lately() -> None:
    # given forty units of the last ten seconds and sixty before, by the history of a minute; and a bucket beside it
    limit, bucket = Limit(1_000, 60 * S), Limit(5, S, Window.PACED)
    now_ns = NOW.now_ns
    rows = [(now_ns - 12 * S + limit.kept_ns, 60), (now_ns - 4 * S + limit.kept_ns, 40)]
    ledger = quota.Reading("twitter", (quota.LimitReading(bucket), quota.LimitReading(limit, Spent.of(rows))))

    assert readings.spend_per_s(ledger, now_ns) == 4.0
    assert quota_reading(TWITTER, account(40), NOW, spent=ledger).spend_per_s == 4.0


def test_of_a_shorter_period_it_is_what_was_settled_in_it_and_of_a_bucket_alone_nothing_is_known() -> None:
    limit = Limit(60, 2 * S)
    rows = [(NOW.now_ns - S + limit.kept_ns, 30)]

    assert readings.spend_per_s(quota.Reading("q", (quota.LimitReading(limit, Spent.of(rows)),)), NOW.now_ns) == 15.0
    bucket = quota.LimitReading(Limit(5, S, Window.PACED))
    assert readings.spend_per_s(quota.Reading("q", (bucket,)), NOW.now_ns) is None


def test_what_comes_back_later_is_told_apart_from_what_is_done() -> None:
    # given twenty tasks acknowledged, six retried and ten deferred in four seconds
    live = consumer()
    live.counts.tick(100.0)
    live.counts.acked, live.counts.retried, live.counts.deferred, live.counts.dead = 20, 6, 10, 3
    live.counts.tick(104.0)

    found = consumer_reading(live, quota_until_s=None)

    assert (found.rate_per_s, found.put_off_per_s) == (5.0, 4.0)
