"""Reading the control log up to one's own hello: all confirmed before is known then, or nothing is consumed."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pika
import pytest

from qctl.broker import topology
from qctl.broker.publisher import Publisher
from qctl.broker.session import Connection
from qctl.control import checkpoint
from qctl.control import log as control_log
from qctl.control.desired import Desired, Pause, Reign
from qctl.control.event import Hello
from qctl.control.log import Known, introduce
from qctl.control.stream import PREFETCH, Place, still_has
from qctl.control.target import Target
from qctl.errors import BrokerRefused, ControlLogError, QctlError, TopologyMismatch
from qctl.quota import Leases
from qctl.worker.identity import Identity
from tests.brokers import Vhost
from tests.fleet import Fleet
from tests.integration.test_enqueue_outages import alarm
from tests.integration.worker_harness import assert_no_traceback, await_consuming, await_history, wire
from tests.wire import connected, scenario, stranger, until


def hello(ledger: str = "a", host: str = "web-1") -> Hello:
    return Hello(secrets.token_hex(8), host, 0, ledger, "box", 17)


@dataclass(frozen=True, slots=True)
class Process:
    """The two connections of a process, as the control log sees it."""

    vhost: Vhost
    reading: Connection
    publisher: Publisher

    async def say(self, said: Hello, known: Known | None = None, **more: Any) -> Known:
        username = more.pop("username", self.vhost.username)
        live = await introduce(self.reading, self.publisher, said, username=username, known=known, **more)
        await live.close()
        return live.known


@asynccontextmanager
async def process(vhost: Vhost, **user: str) -> AsyncIterator[Process]:
    async with connected(vhost, **user) as reading, connected(vhost, **user) as publishing:
        yield Process(vhost, reading, await Publisher.open(publishing))


def command(vhost: Vhost, exchange: str, body: bytes, **properties: Any) -> None:
    """Publish something to the control log as any program can."""
    with stranger(vhost) as channel:
        channel.confirm_delivery()
        channel.basic_publish(exchange, "", body, pika.BasicProperties(delivery_mode=2, **properties))


def lay_cut_log(vhost: Vhost) -> None:
    """A control log whose beginning a policy has cut off."""
    limits = {"max-length-bytes": 200_000, "stream-max-segment-size-bytes": 50_000}
    policy = {"pattern": "^qctl", "definition": limits, "apply-to": "queues"}
    vhost.broker.api("PUT", f"/policies/{vhost.name}/short", policy)
    with stranger(vhost) as channel:
        channel.exchange_declare(topology.HELLO, "fanout", durable=True)
        channel.queue_declare(topology.CONTROL_LOG, durable=True, arguments={"x-queue-type": "stream"})
        channel.queue_bind(topology.CONTROL_LOG, topology.HELLO)
        channel.confirm_delivery()
        for _ in range(100):
            channel.basic_publish(topology.HELLO, "", b"x" * 20_000, pika.BasicProperties(delivery_mode=2))


@scenario
async def test_given_hellos_confirmed_before_then_all_of_them_are_known(vhost: Vhost) -> None:
    # Given a log with the hellos of other hosts, and an earlier one of this host
    async with process(vhost) as other, process(vhost) as own:
        for number in range(20):
            await other.say(hello("theirs", f"other-{number}"))
        first = hello("a")
        await own.say(first)

        # When the host says hello with another ledger
        second = hello("b")
        known = await own.say(second)

        # Then all of them are known, and so is what this one replaces
        assert {f"other-{number}" for number in range(20)} < set(known.desired.reigns)
        assert known.desired.reigns["web-1"] == Reign("b", second.nonce, "a", vhost.username)
        assert (known.offset, known.id) == (21, second.nonce)


@scenario
async def test_given_more_entries_than_are_on_their_way_at_once_then_the_end_is_reached(local_vhost: Vhost) -> None:
    count = 3 * PREFETCH
    async with process(local_vhost) as own:
        await own.say(hello())
        with stranger(local_vhost) as channel:
            for _ in range(count):
                channel.basic_publish(topology.HELLO, "", b"{}")

        assert (await own.say(hello())).offset == count + 1


@scenario
async def test_given_what_is_known_already_then_it_is_gone_on_from_there(
    vhost: Vhost, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="qctl.control.log")
    async with process(vhost) as own:
        known = await own.say(hello("a"))
        for _ in range(10):
            await own.say(hello("a"))
        caplog.clear()

        last = await own.say(hello("b"), known)

        assert last.offset == 11
        assert last.desired.reigns["web-1"].before == "a"
        known_once_more = await own.say(hello("b"), last)
        assert known_once_more.offset == 12
        assert "read 2 entries" in caplog.text  # the one to go on from, and the new one


@scenario
@pytest.mark.parametrize("entries", [0, 5])
async def test_given_another_log_in_its_place_then_it_is_read_from_its_beginning(
    vhost: Vhost, entries: int, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a log that was deleted and made anew, shorter or longer than what was known of it
    async with process(vhost) as own:
        await own.say(hello("a"))
        known = await own.say(hello("a"))
        channel = await own.reading.channel()
        await channel.call("queue_delete", queue=topology.CONTROL_LOG)
        await topology.ensure(own.reading, topology.control_log())
        for _ in range(entries):
            command(own.vhost, topology.HELLO, b"{}")

        # When hello is said with what is known
        found = await own.say(hello("b"), known)

        # Then the old log is forgotten
        assert found.offset == entries
        assert found.desired.reigns["web-1"].before is None
        assert "the control log is another one than before" in caplog.text


@scenario
async def test_given_entries_that_are_no_events_then_they_are_ignored_and_said_once(
    vhost: Vhost, caplog: pytest.LogCaptureFixture
) -> None:
    async with process(vhost) as own:
        await own.say(hello("a"))
        forged = Hello("forged", "web-1", 0, "evil", "box", 1)
        command(own.vhost, topology.HELLO, forged.body(), message_id="forged")  # nobody's
        command(own.vhost, topology.CONTROL, forged.body(), message_id="forged", user_id=own.vhost.username)
        command(own.vhost, topology.HELLO, b"\xff" * 1000, user_id=own.vhost.username)
        command(own.vhost, topology.HELLO, b"{}" * 100_000, user_id=own.vhost.username)

        known = await own.say(hello("a"))

        assert known.desired.reigns["web-1"].ledger == "a"
        assert known.desired.reigns["web-1"].before is None
        who, ignored = own.vhost.username, [line for line in caplog.messages if "ignored" in line]
        prefix = "the control log has an entry that is ignored"
        assert ignored == [
            f"{prefix}: offset=1 user=-: not understood: nobody's: it has no user_id",
            f"{prefix}: offset=2 user={who}: not understood: verb None is not known",
            f"{prefix}: offset=3 user={who}: not understood: not UTF-8 at byte 1",
            f"{prefix}: offset=4 user={who}: not understood: too large: over 65536 bytes",
        ]


@scenario
async def test_given_a_log_whose_beginning_was_cut_off_then_it_is_an_error(vhost: Vhost) -> None:
    lay_cut_log(vhost)
    async with process(vhost) as own:
        with pytest.raises(ControlLogError) as failed:
            await own.say(hello())

    assert "the control log begins at entry " in failed.value.message
    assert "Clear the policy" in failed.value.hint


@scenario
async def test_given_a_queue_of_that_name_that_is_no_log_then_it_is_an_error(local_vhost: Vhost) -> None:
    with stranger(local_vhost) as channel:
        channel.queue_declare(topology.CONTROL_LOG, durable=True)
    async with process(local_vhost) as own:
        with pytest.raises(TopologyMismatch, match=r"queue qctl\.control\.log exists with other arguments"):
            await own.say(hello())


@scenario
@pytest.mark.parametrize(
    ("rights", "words"),
    [
        ({"configure": ".*", "write": ".*", "read": "^qctl.(control|hello)$"}, "the control log cannot be read: 403"),
        ({"configure": ".*", "write": "^qctl.control.log$", "read": ".*"}, "the control log cannot be read: 403"),
        ({"configure": "", "write": ".*", "read": ".*"}, "is missing and this user may not make it"),
    ],
)
async def test_given_a_right_that_is_missing_then_it_is_an_error_that_says_so(
    local_vhost: Vhost, rights: dict[str, str], words: str
) -> None:
    name, api = f"limited-{secrets.token_hex(4)}", local_vhost.broker.api
    api("PUT", f"/users/{name}", {"password": "limited", "tags": ""})
    try:
        api("PUT", f"/permissions/{local_vhost.name}/{name}", rights)
        async with process(local_vhost, username=name, password="limited") as own:
            with pytest.raises(QctlError) as failed:
                await own.say(hello(), username=name)
    finally:
        api("DELETE", f"/users/{name}")

    assert words in failed.value.message
    assert "qctl.hello" in failed.value.hint or "configure permission" in failed.value.hint


@scenario
async def test_given_a_hello_in_another_users_name_then_the_broker_refuses_it(local_vhost: Vhost) -> None:
    async with process(local_vhost) as own:
        with pytest.raises(ControlLogError, match="the control log cannot be read: 406"):
            await own.say(hello(), username="somebody-else")


@scenario
async def test_given_an_alarm_then_it_is_said_and_waited_for(local_vhost: Vhost) -> None:
    async with process(local_vhost) as own:
        await own.say(hello())
        said: list[str] = []
        with alarm(local_vhost.broker):
            saying = asyncio.ensure_future(own.say(hello("b"), on_delay=said.append))

            await until("the alarm is noticed", lambda: said)
            assert said[0].startswith("the broker takes no events (memory or disk alarm)")
            assert not saying.done()

        assert (await saying).desired.reigns["web-1"].before == "a"


@scenario
async def test_given_a_log_of_several_segments_then_the_entries_of_the_brokers_own_between_them_are_passed_over(
    vhost: Vhost, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a log whose segments are short, and what was known of it in the first of them
    policy = {"pattern": "^qctl", "definition": {"stream-max-segment-size-bytes": 20_000}, "apply-to": "queues"}
    vhost.broker.api("PUT", f"/policies/{vhost.name}/segments", policy)
    asked: list[int] = []
    still_has = control_log.still_has

    async def noted(connection: Connection, place: Place) -> bool:
        asked.append(place.offset)
        return await still_has(connection, place)

    monkeypatch.setattr(control_log, "still_has", noted)
    async with process(vhost) as own:
        known = await own.say(hello("a"))
        with stranger(vhost) as channel:
            channel.confirm_delivery()
            for _ in range(60):
                channel.basic_publish(topology.HELLO, "", b"x" * 1_000)
        assert asked == []

        # When hello is said, with what is known and without, then both are read to their end
        resumed, fresh = await own.say(hello("a"), known), await own.say(hello("b"))

        assert fresh.offset == resumed.offset + 1 > 62
        assert fresh.desired.reigns["web-1"].before == "a"
        # once it was seen that nothing was cut off where the first of them stands
        assert asked == [asked[0]] * 2
        assert 0 < asked[0] < 62


@scenario
async def test_given_a_log_that_was_cut_off_where_it_was_read_then_it_is_seen(local_vhost: Vhost) -> None:
    lay_cut_log(local_vhost)
    async with connected(local_vhost) as reading:
        assert not await still_has(reading, Known(1, "cut off", Desired()))


@scenario
async def test_given_a_virtual_host_that_takes_no_more_queues_then_it_is_said(local_vhost: Vhost) -> None:
    local_vhost.broker.api("PUT", f"/vhost-limits/{local_vhost.name}/max-queues", {"value": 0})
    async with process(local_vhost) as own:
        with pytest.raises(BrokerRefused, match=r"queue qctl\.control\.log cannot be made: .*limit"):
            await own.say(hello())


@scenario
async def test_given_a_process_that_starts_then_it_goes_on_from_where_the_host_last_read(
    local_vhost: Vhost, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="qctl.control.log")
    async with process(local_vhost) as own:
        with Leases.open(tmp_path, []) as leases:
            for _ in range(2):
                one = Identity("web-1", 0, leases, tmp_path)
                await one.introduce(own.reading, own.publisher, local_vhost.username, lambda _why: None)
                for _ in range(5):
                    await own.say(hello("a", "web-2"))

    assert "read 7 entries" in caplog.text  # the one to go on from, five others', and the new one
    assert (tmp_path / "control.json").exists()


@scenario
async def test_given_other_operators_and_another_log_then_a_pause_that_was_proven_still_holds(
    local_vhost: Vhost, tmp_path: Path
) -> None:
    # given a pause of an operator, by a log that is gone
    pause = Pause("a" * 32, "oncall", None, "then", "sick", None, Target(host="web-1"))
    checkpoint.save(tmp_path, Known(9, "a nonce", Desired(pauses=(pause,))), frozenset({"oncall"}))

    # when a process starts that obeys one operator more
    operators = frozenset({"oncall", "deploy"})
    async with process(local_vhost) as own:
        with Leases.open(tmp_path, []) as leases:
            one = Identity("web-1", 0, leases, tmp_path, operators)
            live = await one.introduce(own.reading, own.publisher, local_vhost.username, lambda _why: None)

    # then it holds, and will after the next start
    assert live.known.desired.pauses == (pause,)
    saved = checkpoint.load(tmp_path, operators)
    assert saved is not None
    assert (saved.offset, saved.desired.pauses) == (live.known.offset, (pause,))


@scenario
async def test_given_a_pause_that_ended_then_it_stays_ended_whatever_the_clock_says_after_a_restart(
    local_vhost: Vhost, tmp_path: Path
) -> None:
    # given a pause that is about to end, and a process that knows of it
    until_s = time.time() + 1.5
    pause = Pause("a" * 32, "oncall", None, "then", "sick", until_s, Target(host="web-1"))
    checkpoint.save(tmp_path, Known(9, "a nonce", Desired(pauses=(pause,))), frozenset({"oncall", "deploy"}))
    operators = frozenset({"oncall"})
    async with process(local_vhost) as own:
        with Leases.open(tmp_path, []) as leases:
            one = Identity("web-1", 0, leases, tmp_path, operators)
            live = await one.introduce(own.reading, own.publisher, local_vhost.username, lambda _why: None)
            assert live.known.desired.pauses == (pause,)

            # when it ends, and nothing else happens
            await until("its time is up", lambda: time.time() >= until_s)
            await one.keep(live)

    # then the next process knows nothing of it, not even by a clock that is set back
    saved = checkpoint.load(tmp_path, operators)
    assert saved is not None
    assert (saved.offset, saved.desired.pauses) == (live.known.offset, ())


# A worker


def document() -> dict[str, Any]:
    return {
        "consumers": {"calls": {"handler": {"python": "handlers:calls"}, "quota": {}}},
        "hosts": {"web-1": None},
    }


HANDLERS = """
    def calls(task):
        note("calls", task.id)
"""


def test_given_a_worker_that_starts_then_each_process_has_said_hello_before_it_consumes(
    local_vhost: Vhost, tmp_path: Path
) -> None:
    with Fleet(local_vhost, tmp_path, HANDLERS, **document()) as fleet:
        worker = fleet.start("web-1", "--processes", "2", ready=False)
        await_consuming(worker, "calls", processes=2)

        with stranger(local_vhost) as channel:
            channel.basic_qos(prefetch_count=10)
            found = {}
            for method, properties, body in channel.consume(
                topology.CONTROL_LOG, arguments={"x-stream-offset": "first"}, inactivity_timeout=10
            ):
                assert method is not None
                assert properties.user_id == local_vhost.username
                found[json.loads(body)["index"]] = json.loads(body)
                if len(found) == 2:
                    break

        assert {one["pid"] for one in found.values()} == set(worker.pids())
        assert {one["host"] for one in found.values()} == {"web-1"}
        assert len({one["ledger"] for one in found.values()}) == 1
        assert worker.log().count("first start of host web-1, assuming nothing was spent") == 1
        assert worker.stop() == 0


def test_given_a_log_that_cannot_be_read_then_the_consumers_are_down_with_that_cause_until_it_can(
    local_vhost: Vhost, tmp_path: Path
) -> None:
    # Given a control log whose beginning is gone
    lay_cut_log(local_vhost)
    with Fleet(local_vhost, tmp_path, HANDLERS, **document()) as fleet, wire(local_vhost) as connected:
        # When a worker starts
        worker = fleet.start("web-1", ready=False)

        # Then its consumers are down with that cause, and nothing is consumed
        worker.await_log("web-1/calls down: the control log begins at entry ")
        assert " consuming\n" not in worker.log()

        # until the log is one that can be read
        local_vhost.broker.api("DELETE", f"/policies/{local_vhost.name}/short")
        connected.channel.queue_delete(topology.CONTROL_LOG)
        await_consuming(worker, "calls")
        connected.task("calls", {}, message_id="at last")
        assert await_history(fleet, "calls", 1) == ["at last"]
        assert worker.stop() == 0
        assert_no_traceback(worker.log())


def test_given_a_ledger_that_is_replaced_under_a_worker_then_it_says_hello_with_the_new_one(
    local_vhost: Vhost, tmp_path: Path
) -> None:
    # Given a worker that spends
    sections = document()
    sections["consumers"]["calls"]["quota"] = {"api": 1}
    with Fleet(local_vhost, tmp_path, HANDLERS, quotas={"api": "1000/s"}, **sections) as fleet:
        worker = fleet.start("web-1")
        fleet.enqueue("calls", range(1))
        await_history(fleet, "calls", 1)

        # When its ledger is lost, and it makes another
        (fleet.state / "web-1" / "ledger.sqlite").unlink()
        fleet.enqueue("calls", range(1))

        # Then the control log hears of it at once, without a new connection
        worker.await_log("host web-1 spent from another ledger before (")
        await_history(fleet, "calls", 2)
        assert worker.log().count("consuming connection open") == 1
        assert worker.stop() == 0
