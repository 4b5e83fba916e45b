"""A host's supervisor towards others: what it answers of its processes, what it writes down, what it takes locally."""

from __future__ import annotations

import json
import os
import secrets
import signal
import time
from pathlib import Path
from typing import Any

import pika

from qctl.control.host_answer import HostAnswer, ProcessState, parse_answer
from qctl.control.reading import Goodbye, HostReading
from qctl.control.reading_parse import parse_entry
from qctl.ops.local import Given, give
from tests.brokers import Vhost
from tests.fleet import Fleet, wait_until
from tests.integration.test_enqueue_outages import alarm
from tests.integration.worker_harness import Letter, alive, await_history, close_connections, start_consuming, wire

HANDLERS = """
    def calls(task):
        note("calls", task.id)
"""
INVENTORY: dict[str, Any] = {
    "consumers": {"calls": {"handler": {"python": "handlers:calls"}, "quota": {}}},
    "hosts": {"web-1": None},
}
HOST_QUEUE = "qctl.host.web-1"
QUIET_S = 0.5


def ask(channel: Any) -> HostAnswer | None:
    """Ask the supervisor of web-1; None when nobody answers within a second."""
    found: list[HostAnswer | None] = []

    def on_answer(_channel: object, _method: object, properties: pika.BasicProperties, body: bytes) -> None:
        assert properties.correlation_id == "question"
        assert properties.user_id
        found.append(parse_answer(body))

    tag = channel.basic_consume("amq.rabbitmq.reply-to", on_answer, auto_ack=True)
    properties = pika.BasicProperties(reply_to="amq.rabbitmq.reply-to", correlation_id="question")
    channel.basic_publish("", HOST_QUEUE, b"", properties)
    deadline = time.monotonic() + 1.0
    while not found and time.monotonic() < deadline:
        channel.connection.process_data_events(0.05)
    channel.basic_cancel(tag)
    return found[0] if found else None


def entries(vhost: Vhost, stream: str) -> list[Letter]:
    """What lies in a stream now."""
    with wire(vhost) as own:
        own.channel.basic_qos(prefetch_count=100)
        found = []
        arguments = {"x-stream-offset": "first"}
        for method, properties, body in own.channel.consume(stream, inactivity_timeout=QUIET_S, arguments=arguments):
            if method is None:
                break
            own.channel.basic_ack(method.delivery_tag)
            found.append(Letter(body, properties, redelivered=False))
        return found


def telemetry(vhost: Vhost) -> list[HostReading | Goodbye]:
    """The entries of the telemetry log."""
    found = [parse_entry(letter.body) for letter in entries(vhost, "qctl.telemetry.log")]
    return [one for one in found if isinstance(one, HostReading | Goodbye)]


def commands(vhost: Vhost) -> list[str]:
    """The verbs of what was commanded, in the order of the control log."""
    return [
        letter.properties.type for letter in entries(vhost, "qctl.control.log") if letter.properties.type != "hello"
    ]


def test_given_processes_that_are_killed_then_the_supervisor_tells_it_and_never_too_early(
    local_vhost: Vhost, tmp_path: Path
) -> None:
    with Fleet(local_vhost, tmp_path, HANDLERS, **INVENTORY) as fleet, wire(local_vhost) as own:
        # Given two processes that consume
        worker = start_consuming(fleet, "web-1", "calls", processes=2)
        pids = set(worker.pids())
        answer = ask(own.channel)
        assert answer is not None
        assert (answer.host, answer.pid, answer.heartbeat_s) == ("web-1", worker.process.pid, 10)
        assert [(one.index, one.state) for one in answer.processes] == [(0, "connected"), (1, "connected")]
        assert {one.pid for one in answer.processes} == pids
        assert {one.user for one in answer.processes} == {fleet.vhost.username}

        # When one is killed, and asked for all the time
        killed = answer.processes[0].pid
        os.kill(killed, signal.SIGKILL)
        seen = []

        def is_back() -> bool:
            found = ask(own.channel)
            assert found is not None
            first = found.processes[0]
            seen.append(first.state)
            # Then it is told as ended only when it has, and the next one is not connected before it is
            assert first.state is not ProcessState.ENDED or not alive(first.pid)
            assert found.processes[1].state is ProcessState.CONNECTED
            return first.pid != killed and first.state is ProcessState.CONNECTED

        wait_until("its successor consumes", is_back)
        assert ProcessState.ENDED in seen or ProcessState.STARTING in seen

        # When connections are lost, then nothing is told as connected that is not
        close_connections_of(local_vhost)
        wait_until("told", lambda: (found := ask(own.channel)) and found.processes[1].state != "connected")
        wait_until("back", lambda: (found := ask(own.channel)) and found.processes[1].state == "connected")
        assert worker.stop() == 0
        assert own.channel.connection.is_open


def close_connections_of(vhost: Vhost) -> None:
    wait_until("the broker knows its name", lambda: close_connections(vhost, "qctl web-1/1 consume"))


def test_given_a_host_that_runs_and_ends_then_the_telemetry_log_says_both(local_vhost: Vhost, tmp_path: Path) -> None:
    with Fleet(local_vhost, tmp_path, HANDLERS, **INVENTORY) as fleet, wire(local_vhost) as own:
        # Given somebody who listens to the host
        worker = start_consuming(fleet, "web-1", "calls")
        queue = own.channel.queue_declare("", exclusive=True).method.queue
        own.channel.queue_bind(queue, "qctl.telemetry", "host.#")

        # Then soon after its start it is in the log
        first = wait_until("an entry", lambda: telemetry(local_vhost), 10.0)[0]
        assert isinstance(first, HostReading)
        assert (first.host, first.pid) == ("web-1", worker.process.pid)

        # When it ends in order, then it says so in the log and to who listens
        started = time.monotonic()
        assert worker.stop() == 0
        assert time.monotonic() - started < 5
        last = telemetry(local_vhost)[-1]
        assert isinstance(last, Goodbye)
        assert (last.host, last.index) == ("web-1", None)
        assert all(
            letter.properties.user_id == local_vhost.username for letter in entries(local_vhost, "qctl.telemetry.log")
        )
        said = []
        while letter := own.look(queue):
            said.append(json.loads(letter.body))
        assert {"goodbye": True, "index": None} in [{key: one.get(key) for key in ("goodbye", "index")} for one in said]


def local(fleet: Fleet, verb: str, timeout_s: float = 10.0) -> Given:
    """`qctl pause --local`, or another verb."""
    fields = {
        "v": 1,
        "id": secrets.token_hex(16),
        "at": "2026-11-22T21:00:00.123Z",
        "verb": verb,
        "target": {"host": "web-1"},
        "reason": "the broker is blocked",
        "args": {"local": True},
    }
    return give(fleet.state / "web-1", json.dumps(fields).encode(), timeout_s=timeout_s)


def test_given_a_blocked_broker_then_a_local_pause_holds_at_once_and_over_kill_9_and_gets_into_the_log(
    local_vhost: Vhost, tmp_path: Path
) -> None:
    pending = tmp_path / "state" / "web-1" / "pending.jsonl"
    with Fleet(local_vhost, tmp_path, HANDLERS, **INVENTORY) as fleet, wire(local_vhost) as own:
        worker = start_consuming(fleet, "web-1", "calls")
        own.task("calls", {}, message_id="before")
        await_history(fleet, "calls", 1)

        # Given a broker that takes no publishes
        with alarm(local_vhost.broker):
            # When the host is told on itself to pause
            given = local(fleet, "pause")

            # Then its process proves it, the broker has no consumer of it, and the log does not know yet
            (answer,) = (json.loads(body) for body in given.answers)
            assert [row["state"] for row in answer["rows"]] == ["paused"]
            assert all(row["cancelled_at"] for row in answer["rows"])
            assert given.after is not None
            assert fleet.consumer_tags() == []
            assert commands(local_vhost) == []
            assert len(pending.read_text().splitlines()) == 1

            # When all of it is killed and started anew
            worker.kill()
            worker = fleet.start("web-1", ready=False)
            worker.await_log("pause web-1 waits for the control log and holds here")

        # Then, the alarm over, the pause is in the log once or twice under one id, and waits no more
        wait_until("the log has it", lambda: commands(local_vhost))
        assert (
            len(
                {
                    letter.properties.message_id
                    for letter in entries(local_vhost, "qctl.control.log")
                    if letter.properties.type == "pause"
                }
            )
            == 1
        )
        wait_until("nothing waits", lambda: not pending.read_text())
        # and nothing is consumed
        own.task("calls", {}, message_id="held back")
        worker.await_log("web-1/calls paused")
        assert fleet.consumer_tags() == []
        assert fleet.history("calls") == ["before"]

        # When it is resumed, locally too, then it goes on, and the log has that as well
        local(fleet, "resume")
        assert await_history(fleet, "calls", 2) == ["before", "held back"]
        wait_until("the log has it", lambda: commands(local_vhost)[-1] == "resume")
        assert worker.stop() == 0
        assert not (tmp_path / "state" / "web-1" / "control.sock").exists()


def test_given_a_pause_that_only_the_host_knows_then_a_process_that_starts_later_obeys_it(
    local_vhost: Vhost, tmp_path: Path
) -> None:
    # Given a worker whose user may do everything but command
    name, api = f"worker-{secrets.token_hex(4)}", local_vhost.broker.api
    rights = {"configure": ".*", "read": ".*", "write": "^(?!qctl\\.control$).*$"}
    api("PUT", f"/users/{name}", {"password": "limited", "tags": ""})
    try:
        api("PUT", f"/permissions/{local_vhost.name}/{name}", rights)
        with Fleet(local_vhost, tmp_path, HANDLERS, **INVENTORY) as fleet, wire(local_vhost) as own:
            path = tmp_path / "inventory.yaml"
            document = json.loads(path.read_text())
            document["broker"] |= {"username": name, "password": {"value": "limited"}}
            path.write_text(json.dumps(document))
            worker = start_consuming(fleet, "web-1", "calls")
            assert len(local(fleet, "pause").answers) == 1

            # When its process is killed, and the next one is started
            (killed,) = worker.pids()
            os.kill(killed, signal.SIGKILL)
            wait_until("it is back", lambda: (found := ask(own.channel)) and found.processes[0].state == "connected")

            # Then that consumes nothing either, until the host is told to go on
            wait_until("it is paused as well", lambda: worker.log().count("web-1/calls paused") >= 2)
            own.task("calls", {}, message_id="held back")
            assert fleet.consumer_tags() == []
            assert fleet.history("calls") == []
            local(fleet, "resume")
            assert await_history(fleet, "calls", 1) == ["held back"]
            assert worker.log().count("local command(s) are not in the control log yet") <= 2
            assert worker.stop() == 0
    finally:
        api("DELETE", f"/users/{name}")
