"""Enqueueing through outages: what was said to be confirmed is there, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from qctl.broker import topology
from qctl.broker.connect import Login
from qctl.broker.publisher import MAX_UNCONFIRMED
from qctl.broker.request import request
from qctl.errors import BrokerBlocked, BrokerRefused, BrokerUnreachable, Exit, QctlError
from qctl.inventory.load import load
from qctl.inventory.model import Inventory
from qctl.ops import enqueue
from qctl.ops.enqueue import Enqueuer
from qctl.ops.lines import Line
from tests.brokers import LOOPBACK, Broker, Vhost
from tests.wire import connected, depth, fill, login, scenario, stranger, take_all, until

RUN_TIMEOUT_S = 90.0
#: In place of the minute after which a command gives up.
SHORT_STALL_S = 1.0


@pytest.fixture
def inventory(local_vhost: Vhost, tmp_path: Path) -> Inventory:
    path = tmp_path / "inventory.yaml"
    document = {
        "version": 1,
        "broker": local_vhost.inventory_broker(),
        "quotas": {},
        "consumers": {
            "work": {"handler": {"exec": ["cat"]}, "quota": {}},
            "theirs": {"handler": {"exec": ["cat"]}, "quota": {}, "declare": False},
        },
        "hosts": {"web-1": None},
    }
    path.write_text(json.dumps(document), encoding="utf-8")
    return load(path)


class Source:
    """Lines handed out one at a time, as a test wants them."""

    def __init__(self) -> None:
        self._lines: asyncio.Queue[Line | None] = asyncio.Queue()
        self.count = 0

    def put(self, count: int) -> None:
        for _ in range(count):
            self.count += 1
            self._lines.put_nowait(Line(self.count, b'{"n": %d}' % self.count))

    def end(self) -> None:
        self._lines.put_nowait(None)

    async def batches(self) -> AsyncIterator[list[Line]]:
        while (line := await self._lines.get()) is not None:
            yield [line]


def bodies(count: int) -> set[bytes]:
    return {b'{"n": %d}' % number for number in range(1, count + 1)}


class Gate:
    """A way to the broker that can be shut, and opened again."""

    def __init__(self, vhost: Vhost) -> None:
        self._vhost = vhost
        self._writers: list[asyncio.StreamWriter] = []
        self._server: asyncio.Server | None = None
        self.port = 0

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._forward, LOOPBACK, self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    def shut(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    def login(self) -> Login:
        there = login(self._vhost)
        return replace(there, addresses=(replace(there.addresses[0], port=self.port),))

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(LOOPBACK, self._vhost.broker.amqp_port)
        self._writers += [writer, far_writer]
        await asyncio.gather(self._copy(reader, far_writer), self._copy(far_reader, writer), return_exceptions=True)

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.close()


@contextmanager
def alarm(broker: Broker) -> Iterator[None]:
    """A memory alarm: the broker takes no publishes."""
    broker.ctl("set_vm_memory_high_watermark", "absolute", "1")
    try:
        yield
    finally:
        broker.ctl("set_vm_memory_high_watermark", "0.4")


@contextmanager
def short_stall(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(enqueue, "STALL_S", SHORT_STALL_S)
        patch.setattr(enqueue, "LOOK_EVERY_S", 0.1)
        yield


def test_ten_thousand_lines_through_a_broker_that_stops_and_starts(
    inventory: Inventory, local_vhost: Vhost, tmp_path: Path
) -> None:
    # given a stream of ten thousand lines under way
    count = 10_000
    process = subprocess.Popen(
        [sys.executable, "-m", "qctl", "enqueue", "work", "--file", "-"],
        cwd=tmp_path,
        env={"PATH": "", "HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    half, gone = threading.Event(), threading.Event()

    def produce() -> None:
        assert process.stdin is not None
        for number in range(1, count + 1):
            process.stdin.write(b'{"n": %d}\n' % number)
            if number == count // 2:
                process.stdin.flush()
                half.set()
            if number == count * 3 // 4:
                process.stdin.flush()
                gone.wait(RUN_TIMEOUT_S)
        process.stdin.close()

    producer = threading.Thread(target=produce)
    producer.start()
    try:
        assert half.wait(RUN_TIMEOUT_S)
        # when the broker goes away in the middle, and comes back
        try:
            local_vhost.broker.stop_app()
        finally:
            gone.set()
            local_vhost.broker.start_app()
        producer.join()
        process.stdin = None
        out, err = process.communicate(timeout=RUN_TIMEOUT_S)
    finally:
        process.kill()
        process.communicate()

    # then all are said to be confirmed, and that the broker was away
    assert (process.returncode, out) == (0, b"work: confirmed %d\n" % count), err
    assert b"broker lost, trying again; confirmed" in err
    assert b"Traceback" not in err

    # and every line is there; twice only what was under way when the connection broke, and under one id
    found = take_all(local_vhost, "work")
    assert {one.body for one in found} == bodies(count)
    assert len({one.properties.message_id for one in found}) == count
    assert len(found) - count <= MAX_UNCONFIRMED


@scenario
async def test_a_stream_that_rests_finds_its_connection_again(inventory: Inventory, local_vhost: Vhost) -> None:
    # given a slow stream, all of it confirmed so far
    gate, source = Gate(local_vhost), Source()
    await gate.open()
    sending = Enqueuer(request(inventory, "work"))
    running = asyncio.ensure_future(sending.run(gate.login, source.batches(), 10.0))
    for round_number in range(1, 4):
        source.put(10)
        await until("all confirmed", lambda n=round_number: sending.report.confirmed == 10 * n)

        # when the connection breaks while nothing comes, again and again
        gate.shut()
        await gate.open()
    source.put(1)
    source.end()
    report = await running

    # then the stream goes on, and no line is there twice
    assert (report.confirmed, report.skip, report.maybe_twice) == (31, 31, 0)
    assert Counter(found.body for found in take_all(local_vhost, "work")) == Counter(bodies(31))
    gate.shut()


@scenario
async def test_what_was_under_way_is_sent_again_although_no_further_line_comes(
    inventory: Inventory, local_vhost: Vhost
) -> None:
    # given lines that were sent into a connection that breaks
    gate, source = Gate(local_vhost), Source()
    await gate.open()
    sending = Enqueuer(request(inventory, "work"))
    running = asyncio.ensure_future(sending.run(gate.login, source.batches(), 10.0))
    source.put(1)
    await until("the first confirmed", lambda: sending.report.confirmed == 1)
    gate.shut()
    source.put(5)

    # when the broker can be reached again, and the producer is silent
    await gate.open()

    # then they arrive
    await until("all confirmed", lambda: sending.report.confirmed == 6)
    assert {found.body for found in take_all(local_vhost, "work")} == bodies(6)
    source.end()
    assert (await running).confirmed == 6
    gate.shut()


@pytest.mark.parametrize("busy", [True, False], ids=["lines wait", "the stream rests"])
@scenario
async def test_a_broker_that_stays_away_ends_it_with_the_truth(
    inventory: Inventory, local_vhost: Vhost, monkeypatch: pytest.MonkeyPatch, busy: bool
) -> None:
    # given a stream under way
    gate, source = Gate(local_vhost), Source()
    await gate.open()
    sending = Enqueuer(request(inventory, "work"), skip=3)
    source.count = 3
    with short_stall(monkeypatch):
        running = asyncio.ensure_future(sending.run(gate.login, source.batches(), 10.0))
        source.put(100)
        await until("all confirmed", lambda: sending.report.confirmed == 100)
        start_s = asyncio.get_running_loop().time()

        # when the broker is gone for good
        gate.shut()
        if busy:
            source.put(50)
        with pytest.raises(BrokerUnreachable) as failed:
            await running

    # then it was tried for its time, and the message says so
    assert failed.value.exit_code is Exit.UNREACHABLE
    assert "gone for 1 s" in failed.value.message
    assert str(gate.port) in failed.value.message
    assert SHORT_STALL_S / 2 <= asyncio.get_running_loop().time() - start_s < 15 * SHORT_STALL_S
    # and what it says is true: a hundred are there, and the rest is to be sent
    report = sending.report
    assert (report.confirmed, report.skip) == (100, 103)
    assert report.maybe_twice <= 50
    assert depth(local_vhost, "work") == 100


@scenario
async def test_a_broker_that_takes_connections_and_no_tasks_does_not_hold_it_for_ever(
    inventory: Inventory, local_vhost: Vhost, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a way to the broker that breaks each time as soon as something is published
    gate, source = Gate(local_vhost), Source()
    await gate.open()
    sending = Enqueuer(request(inventory, "work"))
    attempts = 0
    publish = Enqueuer._publish

    def break_instead(self: Enqueuer, order: int) -> None:
        nonlocal attempts
        attempts += 1
        for writer in gate._writers:
            writer.transport.abort()
        publish(self, order)

    monkeypatch.setattr(Enqueuer, "_publish", break_instead)
    with short_stall(monkeypatch):
        source.put(1)
        # when a task is enqueued
        with pytest.raises(BrokerUnreachable, match="gone for 1 s"):
            await sending.run(gate.login, source.batches(), 10.0)

    # then it was tried several times, not in a flurry, and given up
    assert 2 <= attempts < 20
    assert sending.report.confirmed == 0
    gate.shut()


@scenario
async def test_a_broker_that_is_gone_while_declaring_is_tried_again(
    inventory: Inventory, local_vhost: Vhost, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a connection that breaks on the first declaration
    gate, source = Gate(local_vhost), Source()
    await gate.open()
    sending = Enqueuer(request(inventory, "work"))
    declare = topology.ensure
    failures = [1]

    async def break_once(connection: object, declarations: object) -> None:
        if failures:
            failures.pop()
            for writer in gate._writers:
                writer.transport.abort()
        await declare(connection, declarations)  # type: ignore[arg-type]

    monkeypatch.setattr(topology, "ensure", break_once)

    # when a task is enqueued
    source.put(1)
    source.end()
    report = await sending.run(gate.login, source.batches(), 10.0)

    # then it arrives on the next connection
    assert report.confirmed == 1
    assert not failures
    assert depth(local_vhost, "work") == 1
    gate.shut()


@scenario
async def test_a_memory_alarm_ends_it_with_try_again_while_deliveries_go_on(
    inventory: Inventory, local_vhost: Vhost, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given tasks in the queue
    async with connected(local_vhost) as connection:
        await topology.ensure(connection, (*topology.exchanges(), *topology.for_consumer("work")))
    fill(local_vhost, "work", 10)
    source = Source()
    sending = Enqueuer(request(inventory, "work"))
    states: list[str] = []
    sending._on_progress = lambda _, state: states.append(state)
    with alarm(local_vhost.broker), short_stall(monkeypatch):
        start_s = asyncio.get_running_loop().time()
        # when more are enqueued while the broker takes none
        source.put(3)
        running = asyncio.ensure_future(sending.run(lambda: login(local_vhost), source.batches(), 10.0))

        # then what is there is delivered all the same
        assert len(await asyncio.to_thread(take_all, local_vhost, "work")) == 10
        # and the command ends in its time, asking to try again, and does not wait for a broker that reads nothing
        with pytest.raises(BrokerBlocked) as failed:
            await running
        assert asyncio.get_running_loop().time() - start_s < 15 * SHORT_STALL_S
    assert failed.value.exit_code is Exit.TRY_AGAIN
    assert "memory or disk alarm" in failed.value.message
    assert "broker blocked" in states
    assert (sending.report.confirmed, sending.report.skip, sending.report.maybe_twice) == (0, 0, 3)


@scenario
async def test_an_alarm_that_ends_in_time_is_waited_out(inventory: Inventory, local_vhost: Vhost) -> None:
    # given a stream that a memory alarm stops
    source = Source()
    sending = Enqueuer(request(inventory, "work"))
    running = asyncio.ensure_future(sending.run(lambda: login(local_vhost), source.batches(), 10.0))
    with alarm(local_vhost.broker):
        source.put(20)
        await until("blocked", lambda: sending._connection is not None and sending._connection.blocked)

    # when the alarm ends
    source.end()
    report = await running

    # then all arrive, once
    assert report.confirmed == 20
    assert Counter(found.body for found in take_all(local_vhost, "work")) == Counter(bodies(20))


@scenario
async def test_a_queue_that_stays_full_ends_it_with_try_again(
    inventory: Inventory, local_vhost: Vhost, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a queue of somebody else that takes ten
    with stranger(local_vhost) as channel:
        channel.queue_declare("theirs", durable=True, arguments={"x-max-length": 10, "x-overflow": "reject-publish"})
    source = Source()
    sending = Enqueuer(request(inventory, "theirs"))
    with short_stall(monkeypatch):
        running = asyncio.ensure_future(sending.run(lambda: login(local_vhost), source.batches(), 10.0))
        # when more come, slowly, and nobody takes any
        source.put(MAX_UNCONFIRMED)
        await until("it is full", lambda: sending._refused)
        source.put(3 * MAX_UNCONFIRMED)
        held = 0

        def watch() -> bool:
            nonlocal held
            held = max(held, len(sending._pending))
            return running.done()

        await until("it gave up", watch)

    # then it asks to try again, says what is there, and has not gathered the whole stream in memory
    with pytest.raises(BrokerBlocked, match="queue theirs has refused every task for 1 s") as failed:
        running.result()
    assert failed.value.exit_code is Exit.TRY_AGAIN
    assert sending.report.confirmed == depth(local_vhost, "theirs") == 10
    assert held <= 2 * MAX_UNCONFIRMED


@scenario
async def test_a_message_larger_than_the_broker_takes_is_refused_at_once(
    inventory: Inventory, local_vhost: Vhost
) -> None:
    # given a broker that takes a kilobyte
    broker = local_vhost.broker
    before = broker.eval("{ok, Size} = application:get_env(rabbit, max_message_size), Size.")
    broker.eval("application:set_env(rabbit, max_message_size, 1000).")
    try:
        sending = Enqueuer(request(inventory, "work"))

        async def batches() -> AsyncIterator[list[Line]]:
            yield [Line(1, b"1"), Line(2, b'"' + b"x" * 2000 + b'"'), Line(3, b"3")]

        # when a larger task is enqueued
        with pytest.raises(BrokerRefused, match=r"refuses the tasks: PRECONDITION_FAILED.*larger") as refused:
            await sending.run(lambda: login(local_vhost), batches(), 10.0)
    finally:
        broker.eval(f"application:set_env(rabbit, max_message_size, {before}).")

    # then the broker's own words say why, and where to go on is not beyond it
    assert "size of a message" in refused.value.hint
    assert sending.report.skip <= 1


@scenario
async def test_what_the_lines_raise_comes_after_all_before_it(inventory: Inventory, local_vhost: Vhost) -> None:
    # given lines that cannot be read to their end
    async def batches() -> AsyncIterator[list[Line]]:
        yield [Line(number, b'{"n": %d}' % number) for number in range(1, 501)]
        raise QctlError("the lines cannot be read: input/output error")

    # when they are enqueued
    sending = Enqueuer(request(inventory, "work"))
    with pytest.raises(QctlError, match="cannot be read"):
        await sending.run(lambda: login(local_vhost), batches(), 10.0)

    # then all that came is confirmed, and nothing is in doubt
    assert (sending.report.confirmed, sending.report.skip, sending.report.maybe_twice) == (500, 500, 0)
    assert depth(local_vhost, "work") == 500


@scenario
async def test_a_login_is_asked_for_at_each_connect(inventory: Inventory, local_vhost: Vhost) -> None:
    # given a stream, whose password may be changed while it runs
    gate, source = Gate(local_vhost), Source()
    await gate.open()
    asked = 0

    def dial() -> Login:
        nonlocal asked
        asked += 1
        return gate.login()

    sending = Enqueuer(request(inventory, "work"))
    running = asyncio.ensure_future(sending.run(dial, source.batches(), 10.0))
    source.put(1)
    await until("confirmed", lambda: sending.report.confirmed == 1)

    # when the connection has to be made anew
    gate.shut()
    await gate.open()
    source.put(1)
    source.end()
    await running

    # then the login was asked for again
    assert asked >= 2
    gate.shut()
