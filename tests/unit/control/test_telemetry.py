"""What a process says of itself: what was written is read again; whatever else comes is refused, and harms nobody."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qctl.broker.session import Channel, ChannelLost
from qctl.control import telemetry
from qctl.control.event import NotUnderstood
from qctl.control.host_quotas import host_costs, host_quotas
from qctl.control.quota_reading import CostReading, ForeignReading, LimitReading, OverrideReading, QuotaReading
from qctl.control.reading import (
    MAX_READING_BYTES,
    ConsumerReading,
    Counts,
    Goodbye,
    Hold,
    HostReading,
    Mark,
    Reading,
    Tag,
)
from qctl.control.reading_parse import MAX_ENTRY_BYTES, MAX_ITEMS, from_json, parse, parse_entry
from qctl.control.telemetry import MAX_REASONS, Hearing, Listener
from qctl.control.telemetry_log import Tail
from tests.wire import scenario, until

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
# As they travel: in whole milliseconds.
instants = st.integers(0, 4 * 10**12).map(lambda ms: ms / 1000)
words = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=80).map(str.strip)
some = st.integers(0, 10**12)
seconds = st.floats(0, 1e9, allow_nan=False)
states = st.sampled_from(["down", "draining", "paused", "held", "consuming"])
rates_per_s = st.integers(0, 10**7).map(lambda thousandths: thousandths / 1000)

consumers = st.builds(
    ConsumerReading,
    name=names,
    queue=names,
    state=states,
    why=words,
    since_s=st.none() | instants,
    by=st.none() | words,
    claimed_by=st.none() | words,
    reason=st.none() | words,
    until_s=st.none() | instants,
    holds=st.lists(st.builds(Hold, names, words, st.none() | instants), max_size=2).map(tuple),
    tags=st.lists(st.builds(Tag, names, names, states), max_size=2).map(tuple),
    running=some,
    waiting=some,
    concurrency=some,
    prefetch=some,
    counts=st.builds(Counts, some, some, some, some, some),
    rate_per_s=rates_per_s,
    put_off_per_s=rates_per_s,
)
overrides = st.builds(
    OverrideReading,
    rates=st.lists(words, max_size=3).map(tuple),
    by=st.none() | words,
    reason=st.none() | words,
    until_s=st.none() | instants,
    at_s=st.none() | instants,
)
foreigns = st.builds(
    lambda units, more, **rest: ForeignReading(units, units + more, **rest),
    some,
    some,
    ours=some,
    period_s=seconds,
    limit=st.none() | some,
    remaining=st.none() | some,
    since_s=st.none() | instants,
    until_s=st.none() | instants,
    lasting=st.booleans(),
)
returns = st.lists(st.tuples(st.integers(0, 10**7).map(lambda ms: ms / 1000), some), max_size=3).map(tuple)
quotas = st.builds(
    QuotaReading,
    name=names,
    used=some,
    limit=some,
    period_s=seconds,
    over=some,
    leased=some,
    returns_at_s=st.none() | instants,
    blocked_until_s=st.none() | instants,
    limits=st.lists(st.builds(LimitReading, some, seconds, some, st.none() | instants, returns), max_size=2).map(tuple),
    override=st.none() | overrides,
    window=st.sampled_from(["sliding", "fixed", "paced"]),
    burst=some,
    foreign=st.none() | foreigns,
    spend_per_s=st.none() | rates_per_s,
)
costs = st.builds(CostReading, names, words, names, some, some, some, some)
readings = st.builds(
    Reading,
    at_s=instants,
    host=names,
    index=some,
    pid=some,
    machine=words,
    started_at_s=instants,
    heartbeat_s=seconds,
    consumers=st.lists(consumers, max_size=3).map(tuple),
    quotas=st.lists(quotas, max_size=3).map(tuple),
    costs=st.lists(costs, max_size=3).map(tuple),
    ledger_id=words,
    ledger_fault=st.none() | words,
    omitted=some,
)

PLAIN = Reading(
    at_s=1_800_000_000.5,
    host="web-1",
    index=0,
    pid=17,
    machine="box",
    started_at_s=1_800_000_000.0,
    heartbeat_s=10.0,
    consumers=(ConsumerReading("timeline", "timeline", "consuming", tags=(Tag("t", "timeline", "consuming"),)),),
    quotas=(QuotaReading("twitter", 5, 100, 3600.0, limits=(LimitReading(100, 3600.0, 5),)),),
    ledger_id="abc",
)


@given(readings)
def test_what_a_process_writes_is_what_is_read(reading: Reading) -> None:
    assert parse(reading.body()) == reading
    assert from_json(json.loads(json.dumps(reading.to_json()))) == reading


@given(instants, names, names, some, st.lists(readings, max_size=2).map(tuple))
def test_what_a_host_writes_is_what_is_read(
    at_s: float, host: str, machine: str, pid: int, processes: tuple[Reading, ...]
) -> None:
    entry = HostReading(at_s, host, machine, pid, processes)

    assert parse_entry(entry.body()) == entry


@given(instants, names, st.none() | some)
def test_goodbyes_and_marks_are_read_as_what_they_are(at_s: float, host: str, index: int | None) -> None:
    assert parse(Goodbye(at_s, host, index).body()) == Goodbye(at_s, host, index)
    assert parse_entry(Goodbye(at_s, host).body()) == Goodbye(at_s, host)
    assert parse_entry(Mark("abc").body()) == Mark("abc")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=300),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=10,
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from _places(inner, (*path, key))


FULL = replace(
    PLAIN,
    consumers=(
        ConsumerReading(
            "timeline", "timeline", "held", holds=(Hold("quota", "quota twitter"),), tags=(Tag("t", "q", "held"),)
        ),
    ),
    quotas=(
        QuotaReading(
            "twitter",
            5,
            9,
            1.0,
            limits=(LimitReading(9, 1.0, 5),),
            override=OverrideReading(("9/s",)),
            foreign=ForeignReading(1, 2, 5, 1.0, 9, 3, 1_800_000_000.0, 1_800_000_001.0, lasting=True),
        ),
    ),
    costs=(CostReading("timeline", "refresh", "twitter", 1, 20, 3, 7, 3.5, 2),),
)
PLACES = list(_places(FULL.to_json()))


@given(st.sampled_from(PLACES), json_values)
def test_one_wrong_value_anywhere_is_refused_or_of_the_right_kind(place: tuple[Any, ...], value: Any) -> None:
    # given a reading in which somebody has put anything at all in one place
    document = FULL.to_json()
    inner = document
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value

    # when it is read, then it is refused with a reason, or it can be written and read once more
    try:
        found = parse(json.dumps(document).encode())
    except NotUnderstood as why:
        assert str(why)
    else:  # numbers are rounded as they are written
        assert parse(found.body()).body() == found.body()


@given(st.binary(max_size=200))
def test_bytes_that_are_no_reading_are_refused(body: bytes) -> None:
    for read in (parse, parse_entry):
        with pytest.raises(NotUnderstood):
            read(body)


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 40_000,
        b"[]",
        b"{}",
        b'{"v":2}',
        b'{"v":true}',
        b'{"v":1,"at":NaN}',
        b'{"v":1,"goodbye":true}',
        b'{"v":1,"goodbye":true,"at":"2026-11-22T14:00:00Z","host":"../x"}',
        b'{"v":1,"goodbye":true,"at":"2026-11-22T14:00:00","host":"x"}',
        b'{"v":1,"goodbye":true,"at":"2026-11-22T14:00:00Z","host":"x","index":-1}',
    ],
)
def test_hostile_bodies_are_refused(body: bytes) -> None:
    for read in (parse, parse_entry):
        with pytest.raises(NotUnderstood):
            read(body)


def test_what_is_too_large_is_refused_though_it_could_be_read() -> None:
    entry = HostReading(1.0, "web-1", "box", 1)
    assert parse(PLAIN.body().ljust(MAX_READING_BYTES)) == PLAIN
    assert parse_entry(entry.body().ljust(MAX_ENTRY_BYTES)) == entry

    with pytest.raises(NotUnderstood, match="too large"):
        parse(PLAIN.body().ljust(MAX_READING_BYTES + 1))
    with pytest.raises(NotUnderstood, match="too large"):
        parse_entry(entry.body().ljust(MAX_ENTRY_BYTES + 1))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("host", "a b"),
        ("host", "x" * 64),
        ("index", 1.5),
        ("index", True),
        ("pid", 1 << 60),
        ("heartbeat_s", "10"),
        ("machine", "two\nlines"),
        ("machine", "x" * 256),
        ("at", None),
        ("ledger", []),
        ("consumers", {}),
        ("consumers", [[]]),
        ("quotas", [{}] * (MAX_ITEMS + 1)),
    ],
)
def test_a_field_of_another_type_or_beyond_its_bounds_is_refused(field: str, value: object) -> None:
    with pytest.raises(NotUnderstood, match=field):
        parse(json.dumps({**PLAIN.to_json(), field: value}).encode())


@pytest.mark.parametrize(
    "foreign",
    [
        [],
        "212",
        {"units": 3, "most": 2, "ours": 0, "period_s": 1.0},
        {"units": -1, "ours": 0, "period_s": 1.0},
        {"units": 1 << 60, "ours": 0, "period_s": 1.0},
        {"units": 1, "ours": 0, "period_s": 1.0, "since": "yesterday"},
        {"units": 1, "ours": 0, "period_s": 1.0, "limit": 1.5},
    ],
)
def test_spending_of_others_that_cannot_be_is_refused(foreign: object) -> None:
    document = PLAIN.to_json()
    document["quotas"][0]["foreign"] = foreign

    with pytest.raises(NotUnderstood):
        parse(json.dumps(document).encode())


def test_a_worker_that_says_nothing_of_windows_costs_and_others_is_understood() -> None:
    document = FULL.to_json()
    del document["costs"], document["quotas"][0]["window"], document["quotas"][0]["burst"]
    del document["quotas"][0]["foreign"], document["quotas"][0]["limits"][0]["resets_at"]

    found = parse(json.dumps(document).encode())

    assert found == replace(FULL, costs=(), quotas=(replace(FULL.quotas[0], foreign=None),))


def test_fields_that_are_not_known_are_passed_over() -> None:
    document = PLAIN.to_json()
    document["consumers"][0]["colour"] = document["quotas"][0]["colour"] = document["colour"] = {"blue": [1]}

    assert parse(json.dumps(document).encode()) == PLAIN


def test_words_for_people_are_one_line_and_cut_short() -> None:
    document = PLAIN.to_json()
    document["consumers"][0]["why"] = "a\x1b[2J\n" + "b" * 1_000

    found = parse(json.dumps(document).encode())

    assert isinstance(found, Reading)
    why = found.consumers[0].why
    assert len(why) == 500
    assert why.startswith("a [2J b")


# A reading that is too large


def _with_consumers(states: list[str]) -> Reading:
    many = tuple(ConsumerReading(f"c{i}", "q", state, why="w" * 100) for i, state in enumerate(states))
    return replace(PLAIN, consumers=many)


def test_a_reading_that_fits_is_not_touched() -> None:
    assert PLAIN.fitting() is PLAIN


@pytest.mark.parametrize("count", [200, 1_000, 5_000])
def test_a_reading_that_is_too_large_leaves_out_consumers_that_consume(count: int) -> None:
    # given more consumers than fit, a few of which do not consume
    reading = _with_consumers(["consuming"] * count + ["paused", "held", "down"])

    # when it is made to fit
    found = reading.fitting()

    # then it does, says how many are missing, and has kept those of which there is something to say
    assert len(found.body()) <= MAX_READING_BYTES
    assert found.omitted == count + 3 - len(found.consumers) > 0
    assert [one.state for one in found.consumers[:3]] == ["paused", "held", "down"]
    assert len(found.body()) > MAX_READING_BYTES // 2
    assert parse(found.body()) == found


def test_what_tasks_cost_is_left_out_before_any_consumer_is() -> None:
    reading = replace(_with_consumers(["consuming"] * 50), costs=FULL.costs * 1_000)

    found = reading.fitting()

    assert (found.costs, found.consumers, found.omitted) == ((), reading.consumers, 0)


def test_a_reading_of_too_many_quotas_fits_all_the_same() -> None:
    quotas = tuple(QuotaReading(f"q{i}", 1, 2, 3.0) for i in range(1_000))
    reading = replace(PLAIN, quotas=quotas)

    assert len(reading.fitting().body()) <= MAX_READING_BYTES


# A host's numbers


def _process(index: int, used: int, leased: int, at_s: float = 1_000.0, limit: int = 100, over: int = 0) -> Reading:
    quota = QuotaReading(
        "twitter", used, limit, 60.0, over=over, leased=leased, limits=(LimitReading(limit, 60.0, used + over),)
    )
    return replace(PLAIN, index=index, at_s=at_s, quotas=(quota,))


@given(st.integers(0, 100), st.lists(st.integers(0, 20), min_size=1, max_size=4), st.randoms())
def test_what_lies_unspent_in_any_process_is_not_used(spent: int, lefts: list[int], random: Any) -> None:
    # given processes of one host: each takes what the others have leased for used
    out = sum(lefts)
    limit = spent + out + 7
    processes = [_process(i, spent + out - left, left, limit=limit) for i, left in enumerate(lefts)]
    random.shuffle(processes)

    # when their numbers are put together
    (found,) = host_quotas(processes)

    # then only what is spent is used
    assert (found.used, found.leased, found.over, found.limits[0].used) == (spent, out, 0, spent)


def test_a_reading_of_another_moment_does_not_count() -> None:
    # given a process that is gone: its lease is spent for the others
    gone, lives = _process(0, 10, 20, at_s=990.0), _process(1, 50, 5, at_s=1_000.0)

    assert host_quotas([gone, lives]) == lives.quotas
    assert host_quotas([]) == ()


def test_what_is_over_a_lowered_limit_is_told_apart() -> None:
    # given a limit of 100 lowered to 10 when 40 were used, 6 of which another process has not spent
    (found,) = host_quotas([_process(0, 10, 0, limit=10, over=30), _process(1, 10, 6, at_s=999.9, limit=10, over=24)])

    assert (found.used, found.limit, found.over, found.leased) == (10, 10, 24, 6)
    assert found.dry


@pytest.mark.parametrize(
    ("used", "foreign", "dry"),
    [
        (60, None, False),
        (60, ForeignReading(39, 45, 60, 60.0), False),
        (60, ForeignReading(40, 45, 60, 60.0), True),
        (60, ForeignReading(90, 90, 60, 3600.0), False),  # of another limit
    ],
)
def test_what_others_have_spent_for_certain_is_gone_too(used: int, foreign: ForeignReading | None, dry: bool) -> None:
    assert QuotaReading("twitter", used, 100, 60.0, foreign=foreign).dry is dry


def test_costs_of_several_processes_are_taken_together() -> None:
    # given three that see a type, the second of them most of it, and one that was gone before
    seen = [
        CostReading("timeline", "", "twitter", 1, tasks, p50, p95, mean, gave_up)
        for tasks, p50, p95, mean, gave_up in [(5, 9, 9, 9.0, 1), (20, 3, 7, 3.0, 2), (5, 1, 8, None, 0)]
    ]
    others = CostReading("mail", "", "twitter", 1, 1, 1, 1)
    processes = [replace(PLAIN, index=index, costs=(cost,)) for index, cost in enumerate(seen)]
    gone = replace(PLAIN, index=9, at_s=PLAIN.at_s - 60, costs=(replace(others, tasks=900),))

    found = host_costs([*processes, gone, replace(PLAIN, index=3, costs=(others,))])

    assert set(found) == {CostReading("timeline", "", "twitter", 1, 30, 3, 9, 4.2, 3), others}


def test_the_end_of_the_log_tells_what_a_host_said_before_its_goodbye() -> None:
    said = HostReading(PLAIN.at_s, PLAIN.host, PLAIN.machine, 1, (PLAIN,))
    tail = Tail(entries=(replace(said, at_s=said.at_s - 30), said, Goodbye(said.at_s + 1, PLAIN.host, 0)))

    assert tail.before() == {PLAIN.host: said}
    assert isinstance(tail.last()[PLAIN.host], Goodbye)


# Listening


class _Raw:
    def __init__(self) -> None:
        self.acked: list[int] = []

    def add_on_cancel_callback(self, callback: Any) -> None:
        self.cancelled = callback

    def basic_ack(self, tag: int, *, multiple: bool) -> None:
        assert multiple
        self.acked.append(tag)


class _Heard:
    """A listener, and a broker that is no more than its queue."""

    def __init__(self) -> None:
        self.raw = _Raw()
        self.closed: asyncio.Future[ChannelLost] = asyncio.get_running_loop().create_future()
        self.listener = Listener(cast(Channel, SimpleNamespace(raw=self.raw, closed=self.closed, is_open=True)))
        self.count = 0

    def come(self, said: Reading | Goodbye | bytes, *, user: str | None = "worker", key: str = "") -> None:
        self.count += 1
        body = said if isinstance(said, bytes) else said.body()
        key = key or ("host.web-1" if isinstance(said, bytes) else f"host.{said.host}")
        method = SimpleNamespace(delivery_tag=self.count, routing_key=key)
        self.listener.deliver(None, method, cast(Any, SimpleNamespace(user_id=user)), body)


def _at(at_s: float, index: int = 0) -> Reading:
    return _process(index, 1, 0, at_s=at_s)


@scenario
async def test_the_last_reading_of_each_process_is_kept() -> None:
    heard = _Heard()

    for reading in (_at(1.0), _at(2.0), _at(1.5, index=1)):
        heard.come(reading)

    assert [(one.reading.index, one.reading.at_s, one.user) for one in heard.listener.of("web-1")] == [
        (0, 2.0, "worker"),
        (1, 1.5, "worker"),
    ]
    assert heard.listener.of("web-2") == ()


@scenario
async def test_unsigned_forged_and_malformed_readings_are_ignored_and_reported(
    caplog: pytest.LogCaptureFixture,
) -> None:
    heard = _Heard()

    for _ in range(3):
        heard.come(_at(1.0), user=None)
        heard.come(_at(1.0), key="host.web-2")
        heard.come(b"{")

    assert heard.listener.heard == {}
    assert list(heard.listener.ignored.values()) == [3, 3, 3]
    assert [record.getMessage().partition(" (")[0] for record in caplog.records] == [
        "a reading is ignored: nobody's: it has no user_id",
        "a reading is ignored: its routing key is not its host's",
        "a reading is ignored: not JSON: Expecting property name enclosed in double quotes at column 2",
    ]


@scenario
async def test_reasons_to_ignore_a_reading_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    heard = _Heard()

    for column in range(2 * MAX_REASONS):
        heard.come(b" " * column + b"{")

    assert len(heard.listener.ignored) == MAX_REASONS + 1
    assert sum(heard.listener.ignored.values()) == 2 * MAX_REASONS
    assert len(caplog.records) == MAX_REASONS + 1


@scenario
async def test_a_goodbye_holds_until_a_later_reading() -> None:
    heard = _Heard()
    heard.come(_at(1.0))
    heard.come(Goodbye(2.0, "web-1", 0))
    assert heard.listener.said_goodbye("web-1", 0) == Goodbye(2.0, "web-1", 0, "worker")
    assert heard.listener.said_goodbye("web-1", 1) is None

    # One that was on its way: the host's own clock says so.
    heard.come(_at(1.9))
    assert heard.listener.said_goodbye("web-1", 0)

    heard.come(_at(3.0))
    assert heard.listener.said_goodbye("web-1", 0) is None

    heard.come(Goodbye(4.0, "web-1"))
    of_all = Goodbye(4.0, "web-1", None, "worker")
    assert heard.listener.said_goodbye("web-1", 0) == heard.listener.said_goodbye("web-1", 7) == of_all
    heard.come(_at(5.0, index=7))
    assert heard.listener.said_goodbye("web-1", 7) is None


@scenario
async def test_who_goes_on_speaking_is_there_though_its_clock_was_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    # given a host that said goodbye by a clock five minutes ahead, and comes back by the right one
    heard, now_s = _Heard(), 1_000.0
    monkeypatch.setattr(telemetry, "now_s", lambda: now_s)
    for goodbye in (Goodbye(302.0, "web-1"), Goodbye(302.0, "web-1", 0)):
        heard.come(goodbye)
    now_s += telemetry.LATE_S
    heard.come(_at(4.0))
    assert heard.listener.said_goodbye("web-1", 0)

    # then it is there once nothing that it says can be from before
    now_s += 0.5
    heard.come(_at(5.0))
    assert heard.listener.said_goodbye("web-1", 0) is None
    assert heard.listener.goodbyes == {}
    assert heard.listener.of("web-1")[0].heard_s == now_s

    # and the next goodbye holds as the first did
    heard.come(Goodbye(4.0, "web-1", 0))
    heard.come(_at(3.0))
    assert heard.listener.said_goodbye("web-1", 0)


@scenario
async def test_what_comes_is_acknowledged_as_it_comes() -> None:
    heard = _Heard()

    for _ in range(250):
        heard.come(_at(1.0))

    assert heard.raw.acked == [100, 200]


@scenario
async def test_what_came_is_acknowledged_soon_even_where_nothing_more_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    # given a listener to a small fleet: the broker ends a channel that keeps a delivery for its consumer_timeout
    monkeypatch.setattr(telemetry, "ACK_WITHIN_S", 0.01)
    heard = _Heard()

    # when three readings come, and then a fourth
    for _ in range(3):
        heard.come(_at(1.0))
    await until("they are acknowledged", lambda: heard.raw.acked == [3])
    heard.come(_at(2.0))

    # then each has been acknowledged, at once with its neighbours
    await until("the last one is too", lambda: heard.raw.acked == [3, 4])


@scenario
async def test_processes_and_hosts_are_bounded_and_those_one_expects_are_heard_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(telemetry, "MAX_OF_A_HOST", 2)
    monkeypatch.setattr(telemetry, "MAX_HOSTS", 1)
    hearing = Hearing(expected={"web-1"})

    def come(host: str, index: int) -> None:
        said = replace(_at(1.0, index), host=host)
        hearing.take(said.body(), user="worker", routing_key=f"host.{host}")

    # when a stranger has too many processes, and there is one stranger too many
    for index in range(3):
        come("stranger", index)
    come("stranger-2", 0)
    come("web-1", 0)

    # then they are not kept, and that is said
    assert list(hearing.heard) == [("stranger", 0), ("stranger", 1), ("web-1", 0)]
    assert hearing.ignored == {"a host has more than 2 processes": 1, "there are more than 1 hosts": 1}


@scenario
async def test_waiting_ends_with_what_is_waited_for_with_the_time_and_with_the_channel() -> None:
    heard = _Heard()
    listener = heard.listener

    asyncio.get_running_loop().call_soon(heard.come, _at(1.0))
    assert await listener.until(lambda: bool(listener.heard), math.inf)

    assert not await listener.until(lambda: len(listener.heard) > 1, 0.01)

    asyncio.get_running_loop().call_soon(heard.closed.set_result, ChannelLost(320, "gone"))
    assert not await listener.until(lambda: len(listener.heard) > 1, 60.0)
    assert listener.lost.result().text == "gone"


# When units return


@pytest.mark.parametrize(
    "returns",
    [
        "soon",
        [5],
        [[1.0]],
        [[1.0, 2, 3]],
        [[-1.0, 2]],
        [[1.0, -2]],
        [[1.0, 2.5]],
        [[True, 2]],
        [["1", 2]],
        [[1.0, 2]] * 65,
    ],
)
def test_when_units_return_is_told_in_a_few_pairs_of_seconds_and_units_or_not_understood(returns: Any) -> None:
    fields = PLAIN.to_json()
    fields["quotas"][0]["limits"][0]["returns"] = [[1.5, 3], [2, 2]]
    assert from_json(fields).quotas[0].limits[0].returns == ((1.5, 3), (2.0, 2))

    fields["quotas"][0]["limits"][0]["returns"] = returns
    with pytest.raises(NotUnderstood, match="returns must be a list of at most 64 pairs"):
        from_json(fields)


def test_a_reading_that_is_too_long_leaves_out_when_units_return_before_it_leaves_out_consumers() -> None:
    # given many quotas, each with all its parts
    limit = LimitReading(100, 3600.0, 64, returns=tuple((1.0 + number, 2) for number in range(32)))
    quotas_ = tuple(QuotaReading(f"q{number}", 64, 100, 3600.0, limits=(limit,)) for number in range(100))

    # when
    found = replace(PLAIN, quotas=quotas_).fitting()

    # then all quotas and consumers are there
    assert (len(found.quotas), len(found.consumers), found.omitted) == (100, 1, 0)
    assert not any(one.limits[0].returns for one in found.quotas)


# The page


def test_the_samples_of_the_page_are_what_is_sent() -> None:
    # given the samples of docs/telemetry.md
    page = (Path(__file__).parents[3] / "docs" / "telemetry.md").read_text(encoding="utf-8")
    reading, goodbye, entry = (block.encode() for block in re.findall(r"```json\n(.*?)```", page, re.DOTALL))

    # then they are read, and a reading written by us has the same fields
    found = parse(reading)
    assert isinstance(found, Reading)
    assert json.loads(found.body()) == json.loads(reading)
    assert isinstance(parse(goodbye), Goodbye)
    assert isinstance(parse_entry(entry), HostReading)
    for name in json.loads(reading):
        assert f"`{name}`" in page or name == "v"
