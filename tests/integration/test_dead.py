"""Dead letters: looked at without a loss, replayed and dropped with a count that is true, whatever ends it."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pika
import pytest

from qctl.broker import topology, walk
from qctl.broker.subscription import Subscription
from qctl.broker.walk import MAX_RETURNS, WINDOW
from qctl.errors import BrokerBlocked, Exit, QctlError, UnknownName
from qctl.inventory.load import load
from qctl.inventory.model import Inventory
from qctl.ops import dead, enqueue, triage
from qctl.ops.letters import Which
from qctl.ops.triage import Act, Order, Triage, chosen
from qctl.units import parse_rate
from tests import commands
from tests.brokers import LOOPBACK, Vhost
from tests.faults.proxy import Proxy, Way
from tests.fleet import wait_until
from tests.wire import connected, depth, stranger, take_all

RUN_TIMEOUT_S = 60.0
CONNECT_S = 10.0


def write_inventory(vhost: Vhost, directory: Path, *, amqp: str | None = None) -> Inventory:
    path = directory / "inventory.yaml"
    document = {
        "version": 1,
        "broker": {**vhost.inventory_broker(), **({"amqp": amqp} if amqp else {})},
        "quotas": {},
        "consumers": {
            "work": {"handler": {"exec": ["cat"]}, "quota": {}},
            "mails": {"queue": "outbox", "handler": {"exec": ["cat"]}, "quota": {}},
        },
        "hosts": {"web-1": None},
    }
    path.write_text(json.dumps(document), encoding="utf-8")
    return load(path)


@pytest.fixture
def inventory(vhost: Vhost, tmp_path: Path) -> Inventory:
    """On each broker, with the queues of its consumers."""
    found = write_inventory(vhost, tmp_path)
    declare(vhost, found)
    return found


@pytest.fixture
def local_inventory(local_vhost: Vhost, tmp_path: Path) -> Inventory:
    """On this machine's broker alone."""
    found = write_inventory(local_vhost, tmp_path)
    declare(local_vhost, found)
    return found


def declare(vhost: Vhost, inventory: Inventory) -> None:
    async def make() -> None:
        async with connected(vhost) as connection:
            for consumer in inventory.consumers.values():
                await topology.ensure(connection, dead.declarations(consumer))

    asyncio.run(make())


def bury(vhost: Vhost, count: int, *, queue: str = "work.dead", **more: object) -> list[str]:
    """Put so many letters into a queue, every fourth of them poison; their ids."""
    names = [f"task-{number}" for number in range(count)]
    with stranger(vhost) as channel:
        for number, name in enumerate(names):
            headers = {
                "qctl-reason": "poison" if number % 4 == 0 else "attempts",
                "qctl-error": "boom",
                "qctl-attempt": 5,
                "qctl-deferrals": 2,
                "qctl-crashes": 3,
                "qctl-died-at": "2026-11-22T14:00:07.120Z",
                "qctl-died-on": "web-1",
                "qctl-first-seen": "2026-11-22T13:00:07.120Z",
                "qctl-cost": {"api": 2},
                "theirs": "kept",
            }
            properties = pika.BasicProperties(
                **{"delivery_mode": 2, "message_id": name, "type": "mail", "headers": headers, **more}
            )
            if number == count - 1:
                channel.confirm_delivery()
            channel.basic_publish("", queue, b'{"n": %d}' % number, properties)
    return names


def bury_alike(vhost: Vhost, bodies: Iterable[bytes], **more: object) -> None:
    """Put these into `work.dead`, with nothing else said of them."""
    with stranger(vhost) as channel:
        channel.confirm_delivery()
        for body in bodies:
            channel.basic_publish("", "work.dead", body, pika.BasicProperties(delivery_mode=2, **more))


@contextmanager
def by_proxy(vhost: Vhost, directory: Path) -> Iterator[tuple[Proxy, Inventory]]:
    """An inventory whose broker is reached through a proxy."""
    with Proxy.to(vhost.broker.amqp_port) as way:
        amqp = vhost.amqp_url.replace(f"{LOOPBACK}:{vhost.broker.amqp_port}", f"{LOOPBACK}:{way.port}")
        inventory = write_inventory(vhost, directory, amqp=amqp)
        declare(vhost, inventory)
        yield way, inventory


def after_each(monkeypatch: pytest.MonkeyPatch, act: Callable[[int], object]) -> None:
    """Call this with how many letters were acknowledged so far, after each of them."""
    take, count = walk.Walk.take, itertools.count(1)

    def take_and_act(self: walk.Walk, met: walk.Met) -> None:
        take(self, met)
        act(next(count))

    monkeypatch.setattr(walk.Walk, "take", take_and_act)


def look(inventory: Inventory, queue: str = "work.dead", **which: object) -> dead.Letters:
    return asyncio.run(dead.letters(inventory, queue, which=Which(**which), connect_timeout_s=CONNECT_S))  # type: ignore[arg-type]


def carry_out(inventory: Inventory, order: Order) -> triage.Report:
    return asyncio.run(Triage(inventory, order).run(connect_timeout_s=CONNECT_S))


def ids(vhost: Vhost, queue: str) -> list[str]:
    return [str(found.properties.message_id) for found in take_all(vhost, queue)]


def command(inventory: Inventory, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "qctl", "-i", str(inventory.path), *arguments]


def run(inventory: Inventory, *arguments: str, **more: object) -> subprocess.CompletedProcess[str]:
    """`qctl ARGUMENTS` to its end, without a terminal."""
    where: dict[str, Any] = {"env": os.environ, "cwd": inventory.path.parent, **more}
    done = commands.run(["-i", inventory.path, *arguments], text=True, timeout=RUN_TIMEOUT_S, **where)
    assert "Traceback" not in done.stderr
    return done


class TestLooking:
    def test_a_look_tells_all_and_changes_neither_what_is_there_nor_its_order(
        self, inventory: Inventory, vhost: Vhost
    ) -> None:
        # Given more letters than a quorum queue's client returns in order by itself
        names = bury(vhost, 3 * MAX_RETURNS + 7)

        # When they are looked at twice, and those that died of poison alone
        first, second = look(inventory), look(inventory)
        poison = look(inventory, reasons=("poison",))

        # Then each says what it is, and both looks say the same but for the mark of a delivery
        assert [letter.id for letter in first.letters] == names
        assert [letter.key for letter in second.letters] == [letter.key for letter in first.letters]
        letter = first.letters[0]
        assert (letter.type, letter.reason, letter.error, letter.attempt) == ("mail", "poison", "boom", 5)
        assert (letter.died_on, letter.died_at_s, letter.body) == ("web-1", 1795356007.12, b'{"n": 0}')
        assert (letter.redelivered, second.letters[0].redelivered) == (False, True)
        assert [letter.id for letter in poison.letters] == names[::4]

        # and they are all there, in order
        assert ids(vhost, "work.dead") == names

    def test_a_letter_of_the_brokers_own_making_has_its_reason(self, inventory: Inventory, vhost: Vhost) -> None:
        # Given a task that somebody rejects
        with stranger(vhost) as channel:
            channel.basic_publish("qctl.tasks", "work", b"{}", pika.BasicProperties(delivery_mode=2))
            wait_until("it is there", lambda: depth(vhost, "work"))
            method, _, _ = channel.basic_get("work")
            assert method is not None
            channel.basic_reject(method.delivery_tag, requeue=False)
            wait_until("it is dead", lambda: depth(vhost, "work.dead"))

        # Then it says so, and can be named though it has no id
        (letter,) = look(inventory).letters
        assert letter.reason == "broker: rejected"
        assert letter.died_at_s is not None
        found = look(inventory, ids=(letter.address,))
        assert [one.key for one in found.letters] == [letter.key]

    def test_large_bodies_behind_small_ones_are_met(
        self, local_inventory: Inventory, local_vhost: Vhost, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Given more small ones than a subscription holds, and behind them more bytes than are kept at once
        monkeypatch.setattr(walk, "MAX_WAITING_BYTES", 200_000)
        large = 60
        bury_alike(local_vhost, [b"{}"] * WINDOW + [b"y" * 50_000] * large)

        # When they are looked at, and dropped, then each is met
        found = look(local_inventory)
        assert (found.met, found.waiting, found.notes) == (WINDOW + large, WINDOW + large, ())
        report = carry_out(local_inventory, Order(Act.DROP, "work.dead", WINDOW + large))
        assert (report.done, depth(local_vhost, "work.dead")) == (WINDOW + large, 0)

    def test_a_slow_line_is_waited_for_as_long_as_something_comes(
        self, local_vhost: Vhost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Given letters that take longer on the way than nothing at all is waited for
        monkeypatch.setattr(walk, "PATIENCE_S", 0.3)
        bodies = [b"y" * 60_000] * 2
        with by_proxy(local_vhost, tmp_path) as (way, inventory):
            bury_alike(local_vhost, bodies)
            way.narrow(100_000, Way.DOWN)

            # When they are looked at, then all are seen
            found = look(inventory)
        assert ([letter.size_bytes for letter in found.letters], found.notes) == ([60_000] * 2, ())

    def test_more_than_its_channels_hold_ends_a_walk_with_words(
        self, local_inventory: Inventory, local_vhost: Vhost, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(walk, "MAX_STRETCHES", 1)
        bury(local_vhost, WINDOW + 1)
        with pytest.raises(QctlError, match=r"as far as 1 channels go, with 500 messages held"):
            look(local_inventory)
        wait_until("all are back", lambda: depth(local_vhost, "work.dead") == WINDOW + 1)

    def test_a_slow_replay_of_one_far_behind_takes_few_channels(
        self, local_inventory: Inventory, local_vhost: Vhost, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(walk, "MAX_STRETCHES", 2)
        names = bury(local_vhost, WINDOW + 100)
        far = look(local_inventory, ids=(names[-1],))
        assert carry_out(local_inventory, chosen(Act.REPLAY, far, rate=parse_rate("1/m"))).done == 1
        assert ids(local_vhost, "work") == [names[-1]]

    def test_a_look_that_goes_no_further_says_so(self) -> None:
        assert dead.unseen(dead.MAX_LIMIT, dead.MAX_LIMIT) == []
        (own,) = dead.unseen(dead.MAX_LIMIT, dead.MAX_LIMIT + 7)
        assert own == "a look goes through the first 100000 letters; 7 lie behind them"
        (others,) = dead.unseen(3, 5)
        assert others.startswith("2 of 5 letters did not come within 2 s")

    def test_what_no_queue_took_is_no_dead_letter(self, local_inventory: Inventory) -> None:
        with pytest.raises(UnknownName, match="tasks that no queue took") as caught:
            dead.dead_queue_of(local_inventory, topology.UNROUTABLE)
        assert "qctl queues peek qctl.unroutable" in caught.value.hint


class TestReplaying:
    def test_what_is_chosen_gets_another_life_and_the_rest_stays_in_order(
        self, inventory: Inventory, vhost: Vhost
    ) -> None:
        # Given letters, some of them chosen
        names = bury(vhost, 40)
        poison = look(inventory, reasons=("poison",))

        # When these are replayed
        report = carry_out(inventory, chosen(Act.REPLAY, poison))

        # Then they are in the work queue, with nothing counted against them, and all that their producer said
        assert (report.done, report.total, report.maybe_twice, report.stays) == (10, 10, 0, 0)
        assert report.words == "replayed 10 of 10"
        found = take_all(vhost, "work")
        assert [one.properties.message_id for one in found] == names[::4]
        assert found[0].properties.headers == {
            "qctl-first-seen": "2026-11-22T13:00:07.120Z",
            "qctl-cost": {"api": 2},
            "theirs": "kept",
        }
        assert (found[0].properties.type, found[0].properties.delivery_mode) == ("mail", 2)

        # and the others are where they were
        assert ids(vhost, "work.dead") == [name for name in names if name not in names[::4]]

    def test_all_means_those_that_were_there(self, inventory: Inventory, vhost: Vhost) -> None:
        bury(vhost, 30)
        report = carry_out(inventory, Order(Act.REPLAY, "work.dead", 20))
        assert (report.done, depth(vhost, "work"), depth(vhost, "work.dead")) == (20, 20, 10)

    def test_the_broker_lost_on_the_way_costs_no_letter_and_the_count_is_true(
        self, local_vhost: Vhost, tmp_path: Path
    ) -> None:
        # Given a replay on its way, through a proxy
        count = 900
        with by_proxy(local_vhost, tmp_path) as (way, inventory):
            names = bury(local_vhost, count)
            work = Triage(inventory, Order(Act.REPLAY, "work.dead", count, rate=parse_rate("1000/s")))

            # When its connections are reset twice
            trouble: list[object] = []

            async def scenario() -> triage.Report:
                asyncio.get_running_loop().set_exception_handler(lambda _, what: trouble.append(what))
                running = asyncio.ensure_future(work.run(connect_timeout_s=CONNECT_S))
                for mark in (200, 500):
                    while work.report.done < mark:
                        assert not running.done()
                        await asyncio.sleep(0.005)
                    await asyncio.to_thread(way.reset)
                return await running

            report = asyncio.run(asyncio.wait_for(scenario(), RUN_TIMEOUT_S))

        assert trouble == []
        # Then it says that all are replayed, and they are; what is there twice is no more than it says
        assert (report.done, report.total) == (count, count)
        assert depth(local_vhost, "work.dead") == 0
        times = Counter(ids(local_vhost, "work"))
        assert set(times) == set(names)
        assert sum(times.values()) - count <= report.maybe_twice

    def test_what_no_queue_takes_stays_and_is_said(self, local_inventory: Inventory, local_vhost: Vhost) -> None:
        # Given dead letters of a queue that is not in the inventory, and is not there
        with stranger(local_vhost) as channel:
            channel.queue_declare("gone.dead", durable=True, arguments=dict(quorum_arguments()))
        bury(local_vhost, 5, queue="gone.dead")

        # When they are replayed
        with pytest.raises(QctlError, match="no queue took the letter: gone is not bound") as caught:
            carry_out(local_inventory, Order(Act.REPLAY, "gone.dead", 5))

        # Then it failed, and all are there
        assert caught.value.exit_code is Exit.FAILED
        assert depth(local_vhost, "gone.dead") == 5

    def test_a_broker_that_takes_nothing_ends_it_and_all_stays(
        self, local_inventory: Inventory, local_vhost: Vhost, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Given an alarm, and less patience than a minute
        for module in (triage, enqueue):
            monkeypatch.setattr(module, "STALL_S", 1.0)
        bury(local_vhost, 5)
        local_vhost.broker.ctl("set_vm_memory_high_watermark", "absolute", "1")
        try:
            # When they are replayed, then it says to try again
            work = Triage(local_inventory, Order(Act.REPLAY, "work.dead", 5))
            with pytest.raises(BrokerBlocked, match="memory or disk alarm"):
                asyncio.run(work.run(connect_timeout_s=CONNECT_S))
        finally:
            local_vhost.broker.ctl("set_vm_memory_high_watermark", "0.4")

        # and none has left the dead, as it says
        wait_until("they are back", lambda: depth(local_vhost, "work.dead") == 5 - work.report.done)
        assert depth(local_vhost, "work") <= work.report.done + work.report.maybe_twice

    def test_drop_takes_exactly_what_was_chosen(self, inventory: Inventory, vhost: Vhost) -> None:
        names = bury(vhost, 12)
        report = carry_out(inventory, chosen(Act.DROP, look(inventory, ids=("task-3", "task-5"))))
        assert report.words == "dropped 2 of 2"
        assert ids(vhost, "work.dead") == [name for name in names if name not in ("task-3", "task-5")]
        assert depth(vhost, "work") == 0

    def test_of_letters_that_say_the_same_as_many_as_were_chosen_are_taken(
        self, local_inventory: Inventory, local_vhost: Vhost
    ) -> None:
        # Given letters that nobody can tell apart, without an id and with one, all of them delivered before
        bury_alike(local_vhost, [b"{}"] * 10)
        bury_alike(local_vhost, [b"{}"] * 10, message_id="same")
        found = look(local_inventory)

        # When some are dropped, then so many are gone
        some = chosen(Act.DROP, dead.Letters(found.queue, found.letters[:2], found.met, found.waiting))
        assert carry_out(local_inventory, some).words == "dropped 2 of 2"
        assert depth(local_vhost, "work.dead") == 18

        # and when all are replayed, so many are there, and none is said to be there twice
        assert carry_out(local_inventory, Order(Act.REPLAY, "work.dead", 18)).words == "replayed 18 of 18"
        assert (depth(local_vhost, "work"), depth(local_vhost, "work.dead")) == (18, 0)

    @pytest.mark.parametrize("act", Act)
    def test_of_letters_that_say_the_same_a_lost_connection_costs_none(
        self, local_vhost: Vhost, tmp_path: Path, act: Act, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Given such letters, some of which are chosen
        with by_proxy(local_vhost, tmp_path) as (way, inventory):
            bury_alike(local_vhost, [b"{}"] * 20)
            found = look(inventory)
            work = Triage(inventory, chosen(act, replace(found, letters=found.letters[:15])))

            # When the connection is lost in the middle of them, and the broker has all acknowledgements
            def break_off(taken: int) -> None:
                if taken == 7:
                    time.sleep(0.2)  # this thread alone: the proxy carries on
                    way.reset()

            after_each(monkeypatch, break_off)
            report = asyncio.run(asyncio.wait_for(work.run(connect_timeout_s=CONNECT_S), RUN_TIMEOUT_S))

        # Then no more are gone than were chosen, and what may be too many is said
        assert (report.done, report.total) == (15, 15)
        left = depth(local_vhost, "work.dead")
        assert 5 <= left <= 5 + report.maybe_twice
        if act is Act.REPLAY:
            assert 20 <= left + depth(local_vhost, "work") <= 20 + report.maybe_twice

    @pytest.mark.parametrize("act", Act)
    def test_the_broker_lost_at_the_very_end_leaves_nothing_behind(
        self, local_vhost: Vhost, tmp_path: Path, act: Act, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Given acknowledgements of which the last ones do not get to the broker
        count, most = 600, 500
        monkeypatch.setattr(triage, "TAKEN_BACK_S", 5.0)
        with by_proxy(local_vhost, tmp_path) as (way, inventory):
            names = bury(local_vhost, count)
            acked = itertools.count(1)
            ack = Subscription.ack

            def lose(self: Subscription, tags: Iterable[int]) -> None:
                number = next(acked)
                if not most < number <= count:
                    ack(self, tags)

            monkeypatch.setattr(Subscription, "ack", lose)

            # When the connection ends a moment after the last of them
            def end(taken: int) -> None:
                if taken == count:
                    asyncio.get_running_loop().call_later(0.1, way.reset)

            after_each(monkeypatch, end)
            work = Triage(inventory, Order(act, "work.dead", count))
            report = asyncio.run(asyncio.wait_for(work.run(connect_timeout_s=CONNECT_S), RUN_TIMEOUT_S))

        # Then all are gone, as it says
        assert (report.done, report.total) == (count, count)
        assert depth(local_vhost, "work.dead") == 0
        if act is Act.REPLAY:
            times = Counter(ids(local_vhost, "work"))
            assert set(times) == set(names)
            assert sum(times.values()) - count <= report.maybe_twice


class TestCommands:
    def test_from_a_look_to_a_replay(self, local_inventory: Inventory, local_vhost: Vhost) -> None:
        bury(local_vhost, 8)
        bury(local_vhost, 1, queue="outbox.dead", type="t\x1b[2J", app_id="\u202e")

        # how many there are, and which
        counts = run(local_inventory, "dead", "ls", "-o", "json")
        found = {item["queue"]: item["letters"] for item in json.loads(counts.stdout)["items"]}
        assert found == {"work.dead": 8, "outbox.dead": 1, "qctl.unroutable": 0}
        names = run(local_inventory, "dead", "ls", "work", "--reason", "poison", "-o", "name")
        assert names.stdout.split() == ["task-0", "task-4"]
        # what one says, with nothing of it that a terminal would obey
        shown = run(local_inventory, "dead", "show", "task-0", "mails")
        assert (shown.returncode, "\x1b" in shown.stdout, r"t\x1b[2J" in shown.stdout) == (0, False, True)
        # it is not done to what is not there, and not when it is only asked
        done = run(local_inventory, "dead", "drop", "task\x1b99", "--yes")
        assert (done.returncode, r"there is no dead letter 'task\x1b99'" in done.stderr) == (Exit.FAILED, True)
        dry = run(local_inventory, "dead", "replay", "work", "--all", "--dry-run")
        assert (dry.returncode, dry.stdout) == (0, "work.dead: 8 dead letters\n")
        assert depth(local_vhost, "work.dead") == 8

        # with it, it is
        done = run(local_inventory, "dead", "replay", "task-4", "task-5", "--yes", "-o", "json")
        said = json.loads(done.stdout)
        assert (done.returncode, said["exit_code"], said["items"][0]["done"]) == (0, 0, 2)
        dropped = run(local_inventory, "dead", "drop", "work", "--older-than", "1s", "--yes")
        assert (dropped.returncode, dropped.stdout) == (0, "work.dead: dropped 6 of 6\n")
        assert depth(local_vhost, "work") == 2

    def test_ctrl_c_ends_it_with_the_truth(self, local_inventory: Inventory, local_vhost: Vhost) -> None:
        # Given a slow replay
        bury(local_vhost, 500)
        with running(local_inventory, "dead", "replay", "work", "--all", "--yes", "--rate", "50/s") as process:
            wait_until("some are replayed", lambda: depth(local_vhost, "work") >= 10)

            # When it is interrupted
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=RUN_TIMEOUT_S)

        # Then what it says is so
        done = depth(local_vhost, "work")
        assert process.returncode == Exit.INTERRUPTED
        assert f"interrupted; work.dead: replayed {done} of 500; the others are where they were" in err
        wait_until("the others are back", lambda: depth(local_vhost, "work.dead") == 500 - done)

    def test_a_reader_that_leaves_costs_nothing(self, local_inventory: Inventory, local_vhost: Vhost) -> None:
        bury(local_vhost, 300)
        with running(local_inventory, "dead", "ls", "work", "-o", "jsonl") as process:
            assert process.stdout is not None
            process.stdout.close()
            process.stdout = None
            process.communicate(timeout=RUN_TIMEOUT_S)
        assert process.returncode == 128 + signal.SIGPIPE
        wait_until("all are back", lambda: depth(local_vhost, "work.dead") == 300)

    def test_without_a_broker_it_says_so(self, local_vhost: Vhost, tmp_path: Path) -> None:
        inventory = write_inventory(local_vhost, tmp_path, amqp=f"amqp://{LOOPBACK}:1/")
        done = run(inventory, "dead", "replay", "work", "--all", "--yes", "--connect-timeout", "300ms")
        assert done.returncode == Exit.UNREACHABLE


@contextmanager
def running(inventory: Inventory, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`qctl ARGUMENTS` while the block goes on."""
    process = subprocess.Popen(
        command(inventory, *arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ},
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def quorum_arguments() -> dict[str, object]:
    (one,) = (
        each for each in topology.work_queue("gone") if isinstance(each, topology.Queue) and each.name == "gone.dead"
    )
    return dict(one.arguments)
