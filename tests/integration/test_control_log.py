"""Commands over a real control log: folded before the first consume, followed live, and proof against what is sent."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from typing import Any

import pika
import pytest

from qctl.broker import topology
from qctl.broker.message import utc
from qctl.broker.publisher import Publisher
from qctl.broker.session import Connection
from qctl.control import history
from qctl.control.desired import Desired, Pause
from qctl.control.event import Command, Hello, Verb
from qctl.control.following import NOTHING, Known
from qctl.control.history import Entry, entries, read_to_end
from qctl.control.log import Heard, Live, introduce
from qctl.control.stream import PREFETCH, still_has
from qctl.control.target import Subject, Target
from qctl.errors import ControlLogError
from tests.brokers import Vhost
from tests.wire import connected, scenario, stranger, until

TIMELINE = Subject("web-1", "timeline", "timeline", "qctl/web-1/timeline/0")
HOST = Target(host="web-1")


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "EMPTY_S", 0.5)
    monkeypatch.setattr(history, "RESUME_S", 0.5)


def paused(known: Known) -> list[str]:
    return [each.id for each in known.desired.pauses_of(TIMELINE, time.time())]


def order(verb: Verb = Verb.PAUSE, target: Target = HOST, *, until_s: float | None = None) -> Command:
    return Command(secrets.token_hex(16), utc(time.time()), verb, target, until_s=until_s)


class Process:
    """A worker process, as the control log sees it."""

    def __init__(self, vhost: Vhost, reading: Connection, publisher: Publisher) -> None:
        self.vhost = vhost
        self.reading = reading
        self.publisher = publisher
        self.heard: list[Heard] = []

    async def introduce(self, known: Known | None = None, operators: frozenset[str] | None = None) -> Live:
        said = Hello(secrets.token_hex(16), "web-1", 0, "ledger", "box", 17)
        return await introduce(
            self.reading,
            self.publisher,
            said,
            username=self.vhost.username,
            operators=operators,
            known=known,
            on_heard=self.heard.append,
        )

    async def hears(self, count: int) -> list[Heard]:
        await until(f"{count} entries are heard", lambda: len(self.heard) >= count, 10)
        return self.heard


@asynccontextmanager
async def process(vhost: Vhost) -> AsyncIterator[Process]:
    async with connected(vhost) as reading, connected(vhost) as publishing:
        yield Process(vhost, reading, await Publisher.open(publishing))


def say(vhost: Vhost, *commands: Command | bytes, signed: bool = True, exchange: str = topology.CONTROL) -> None:
    """Publish to the control log as any program can, all of it confirmed at the end."""
    with stranger(vhost) as channel:
        for number, command in enumerate(commands):
            if number == len(commands) - 1:
                channel.confirm_delivery()
            body, identity = (command, "any") if isinstance(command, bytes) else (command.body(), command.id)
            properties = pika.BasicProperties(
                message_id=identity, delivery_mode=2, user_id=vhost.username if signed else None, reply_to="answers"
            )
            channel.basic_publish(exchange, "command.any", body, properties)


@contextmanager
def short_log(vhost: Vhost) -> Iterator[None]:
    """A policy that keeps only the last few segments of the control log."""
    limits = {"max-length-bytes": 200_000, "stream-max-segment-size-bytes": 50_000}
    policy = {"pattern": "^qctl", "definition": limits, "apply-to": "queues"}
    path = f"/policies/{vhost.name}/short"
    vhost.broker.api("PUT", path, policy)
    yield
    vhost.broker.api("DELETE", path)


async def cut(own: Process, known: Known) -> None:
    """Fill the log until its retention has taken an entry away, no faster than it is followed."""
    for _ in range(100):
        count = len(own.heard)
        say(own.vhost, b"x" * 20_000)
        await own.hears(count + 1)
        if not await still_has(own.reading, known):
            return
    raise AssertionError("the policy cut nothing off")


@scenario
async def test_given_commands_before_and_after_the_hello_then_all_of_them_hold_and_nothing_falls_between(
    vhost: Vhost,
) -> None:
    # Given a log with a pause that still holds, and one that has ended
    async with process(vhost) as first, process(vhost) as second:
        await (await first.introduce()).close()
        before, ended = order(), order(until_s=time.time() - 1)
        say(vhost, before, ended)

        # When two processes follow it while more is commanded
        lives = await asyncio.gather(first.introduce(), second.introduce())
        after, resume = order(target=Target(host="*", consumer="timeline")), order(Verb.RESUME, Target(host="web-2"))
        say(vhost, after, resume, after)

        # Then both come to the same, and the one that was given twice was obeyed once
        for one, live in zip((first, second), lives, strict=True):
            await until("all is heard", lambda one=one: any(h.refused for h in one.heard))
            commands = [heard for heard in one.heard if heard.command]
            assert [heard.record.id for heard in commands] == [after.id, resume.id, after.id]
            assert [heard.refused for heard in commands] == ["", "", "seen before"]
            assert commands[0].record.reply_to == "answers"
            assert paused(live.known) == [before.id, after.id]
            assert [each.lifted for each in live.known.desired.pauses] == [(), (Target(host="web-2"),)]


@scenario
async def test_given_what_is_forged_unsigned_stale_huge_malformed_or_unknown_then_nothing_of_it_is_obeyed(
    vhost: Vhost,
) -> None:
    async with process(vhost) as own:
        live = await own.introduce(operators=frozenset({"oncall"}))
        resume = order(Verb.RESUME, Target(host="*"))
        body = json.loads(order().body())

        say(vhost, order(), signed=False)
        say(vhost, order(), exchange=topology.HELLO)
        say(
            vhost,
            resume,
            order(),  # signed, of a user that is no operator
            json.dumps({**body, "verb": "explode"}).encode(),
            json.dumps({**body, "v": 2}).encode(),
            b'{"v":NaN}',
            b"[" * 60_000,
            b"\xff\xfe",
            b"",
            b"x" * (16 << 20),
            json.dumps({**body, "reason": "x" * (15 << 20)}).encode(),
        )

        heard = await own.hears(12)
        assert all(each.refused for each in heard)
        assert [len(each.record.body) <= 65_537 for each in heard] == [True] * 12
        assert live.known.desired.pauses == ()
        assert not live.lost.done()
        # What is sent in order is still obeyed by who obeys its sender
        found = await read_to_end(own.reading, operators=frozenset({vhost.username}))
        assert len(found.desired.pauses) == 1


@scenario
async def test_given_a_log_that_is_cut_off_then_who_knows_what_was_said_goes_on_and_who_does_not_is_told(
    local_vhost: Vhost,
) -> None:
    with short_log(local_vhost):
        async with process(local_vhost) as own:
            # Given a process that follows the log, and knows of a pause
            live = await own.introduce()
            given = order()
            say(local_vhost, given)
            await own.hears(1)
            old = live.known

            # When retention takes the beginning away, the pause with it
            await cut(own, old)

            # Then it follows as before, and one that goes on from what it knows still knows of the pause
            assert not live.lost.done()
            again = await own.introduce(live.known)
            assert paused(again.known) == [given.id]

            # but what stands before the cut helps nobody, nor does nothing
            for known in (old, None):
                with pytest.raises(ControlLogError, match="the control log begins at entry ") as failed:
                    await own.introduce(known)
                assert "then delete that stream" in failed.value.hint
            with pytest.raises(ControlLogError, match="the control log begins at entry "):
                await read_to_end(own.reading, operators=None)
            shown = [entry async for entry in entries(own.reading, operators=None)]
            assert shown[0].record.offset > old.offset


@scenario
async def test_given_a_log_that_was_deleted_then_it_is_lost_and_what_was_known_to_be_paused_stays_so(
    vhost: Vhost,
) -> None:
    # Given a process that knows of two pauses
    async with process(vhost) as own:
        live = await own.introduce()
        first, second = order(), order(target=Target(consumer="timeline"))
        say(vhost, first, second)
        await own.hears(2)

        # When the log is deleted and made anew
        channel = await own.publisher.channel.connection.channel()
        await channel.call("queue_delete", queue=topology.CONTROL_LOG)
        assert isinstance(await asyncio.wait_for(live.lost, 10), ControlLogError)
        await live.close()
        again = await own.introduce(live.known)

        # Then both still hold, and can be resumed
        assert paused(again.known) == [first.id, second.id]
        assert again.known.offset == 0
        say(vhost, order(Verb.RESUME, Target(host="web-*")))
        await own.hears(3)
        assert paused(again.known) == []


# For commands


@scenario
async def test_given_an_event_that_was_published_then_all_up_to_it_is_known(vhost: Vhost) -> None:
    async with connected(vhost) as reading:
        assert await read_to_end(reading, operators=None) == NOTHING
        commands = [order(target=Target(host=f"web-{n}")) for n in range(3 * PREFETCH)]
        say(vhost, *commands)

        found = await read_to_end(reading, operators=None, until=commands[-1].id)
        without = await read_to_end(reading, operators=None)
        nothing_new = await read_to_end(reading, operators=None, known=without)
        say(vhost, more := order())
        onwards = await read_to_end(reading, operators=None, known=without)
        another = await read_to_end(reading, operators=None, known=Known(7, "another", without.desired))
        shorter = await read_to_end(reading, operators=None, known=Known(9_999, "gone", without.desired))

    assert len(found.desired.pauses) == len(without.desired.pauses) == 3 * PREFETCH
    assert (without.offset, without.id) == (3 * PREFETCH - 1, commands[-1].id)
    assert nothing_new == without
    assert (onwards.offset, onwards.id) == (3 * PREFETCH, more.id)
    assert onwards == another == shorter


async def shown(reading: Connection, **more: Any) -> list[Entry]:
    operators = frozenset({"oncall"})
    return [entry async for entry in entries(reading, operators=operators, **more)]


@scenario
async def test_given_what_was_known_of_another_log_then_a_command_that_looks_takes_the_log_at_its_word(
    vhost: Vhost,
) -> None:
    pause = Pause("a" * 32, "oncall", None, "then", None, None, HOST)
    async with process(vhost) as own:
        await own.introduce()

        known = await read_to_end(own.reading, operators=None, known=Known(-1, "", Desired(pauses=(pause,))))

    assert paused(known) == []


@scenario
async def test_given_a_log_then_every_entry_is_shown_with_what_became_of_it(vhost: Vhost) -> None:
    async with process(vhost) as own:
        assert await shown(own.reading) == []
        await (await own.introduce()).close()
        say(vhost, refused := order(), b"nonsense")

        found = await shown(own.reading)

        assert [entry.record.offset for entry in found] == [0, 1, 2]
        assert isinstance(found[0].event, Hello)
        assert found[1].event == replace(refused, user=vhost.username)
        assert [entry.refused.partition(":")[0] for entry in found] == [
            "",
            f"user {vhost.username} is not an operator",
            "not understood",
        ]


@scenario
async def test_given_since_when_then_older_entries_are_read_and_not_shown(vhost: Vhost) -> None:
    async with process(vhost) as own:
        await (await own.introduce()).close()
        say(vhost, old := order())
        await asyncio.sleep(1.1)  # the broker notes when entries came; it has to be later by its clock
        middle_s = time.time()
        await asyncio.sleep(0.1)
        say(vhost, new := order(), b"nonsense", old)

        found = await shown(own.reading, since_s=middle_s)

        assert [entry.record.id for entry in found] == [new.id, "any", old.id]
        assert await shown(own.reading, since_s=time.time() + 60) == []
        assert len(await shown(own.reading, since_s=0.0)) == 5


@scenario
async def test_given_that_it_is_followed_then_entries_are_shown_as_they_come_and_many_wait_at_the_broker(
    vhost: Vhost,
) -> None:
    async with connected(vhost) as reading:
        following = entries(reading, operators=None, follow=True)
        asked = asyncio.ensure_future(anext(following))
        await topology.ensure(reading, topology.control_log())
        say(vhost, *(given := [order() for _ in range(3 * PREFETCH)]))

        found = [await asked]
        await asyncio.sleep(0.2)
        found += [await anext(following) for _ in given[1:]]
        late = order()
        waiting = asyncio.ensure_future(anext(following))
        say(vhost, late)

        assert [entry.record.id for entry in found] == [each.id for each in given]
        assert (await asyncio.wait_for(waiting, 10)).record.id == late.id
        await following.aclose()
