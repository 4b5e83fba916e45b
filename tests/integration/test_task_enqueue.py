"""What a task enqueues: there before it is acknowledged, and only when it has returned."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pika.exceptions
import pytest

from tests.brokers import Broker, Vhost, fresh_vhost
from tests.fleet import Fleet, wait_until
from tests.integration.worker_harness import Wire, assert_no_traceback, await_consuming, wire

HANDLERS = """
    import time
    from qctl import Reject

    def expand(task):
        for number in range(task.payload["children"]):
            note("ids", task.enqueue("leaf", {"of": task.id, "number": number}, type="leaf", **task.payload["options"]))
        note("expanded", task.id, task.attempt)
        if task.payload.get("fails"):
            raise Reject("on purpose")

    async def expand_async(task):
        note("ids", task.enqueue("leaf", {"of": task.id}))

    def late(task):
        time.sleep(1.5)
        try:
            task.enqueue("leaf", {})
        except Exception as error:
            note("late", type(error).__name__, error)
"""


@pytest.fixture
def vhost(local_broker: Broker) -> Iterator[Vhost]:
    with fresh_vhost(local_broker) as fresh:
        yield fresh


@pytest.fixture
def fleet(vhost: Vhost, tmp_path: Path) -> Iterator[Fleet]:
    """A host that expands tasks into others, for a consumer that runs on no host that is up."""
    spare = {"retry": {"attempts": 1}, "quota": {}}
    inventory: dict[str, Any] = {
        "quotas": {"api": "100/h"},
        "consumers": {
            "expand": {"handler": {"python": "handlers:expand"}, **spare},
            "expand_async": {"handler": {"python": "handlers:expand_async"}, **spare},
            "late": {"handler": {"python": "handlers:late"}, "timeout": "1s", **spare},
            "leaf": {
                "queue": "leaves",
                "handler": {"python": "handlers:expand"},
                "quota": {"api": 1},
                "directed": True,
            },
        },
        "hosts": {
            "web-1": {"consumers": {"expand": {}, "expand_async": {}, "late": {}}},
            "web-2": {"consumers": {"leaf": {}}},
        },
    }
    with Fleet(vhost, tmp_path, HANDLERS, **inventory) as fleet:
        worker = fleet.start("web-1")
        await_consuming(worker, "expand", "expand_async", "late")
        yield fleet


@pytest.fixture
def connected(vhost: Vhost) -> Iterator[Wire]:
    with wire(vhost) as connected:
        yield connected


def fill(connected: Wire, queue: str) -> None:
    """Put messages into a queue until it refuses one."""
    with suppress(pika.exceptions.NackError):
        while True:
            connected.task(queue, {}, message_id="filler")


def test_given_a_task_that_enqueues_others_then_they_are_there_for_a_queue_that_nobody_had_made(
    fleet: Fleet, connected: Wire
) -> None:
    # when a task enqueues more than is published at once, to a queue that does not exist yet
    connected.task("expand", {"children": 250, "options": {"cost": {"api": 3}}}, message_id="parent")

    # then all are there, as `qctl enqueue` would have written them
    wait_until("the queue", lambda: "leaves" in fleet.queues())
    found = [connected.take("leaves") for _ in range(250)]
    assert [letter.properties.message_id for letter in found] == fleet.history("ids")
    assert json.loads(found[7].body) == {"of": "parent", "number": 7}
    assert found[0].headers["qctl-cost"] == {"api": 3}
    written = found[0].properties
    assert (written.type, written.content_type, written.delivery_mode) == ("leaf", "application/json", 2)
    assert connected.look("leaves") is None
    # and the parent is gone
    assert fleet.workers[0].stop() == 0
    assert connected.look("expand") is None


def test_given_a_run_that_raises_then_nothing_of_it_is_enqueued(fleet: Fleet, connected: Wire) -> None:
    connected.task("expand", {"children": 3, "options": {}, "fails": True}, message_id="parent")

    assert connected.take("expand.dead").headers["qctl-error"] == "on purpose"
    assert len(fleet.history("ids")) == 3
    assert "leaves" not in fleet.queues()


def test_given_a_coroutine_then_it_enqueues_in_the_same_words(fleet: Fleet, connected: Wire) -> None:
    connected.task("expand_async", {}, message_id="parent")

    wait_until("the queue", lambda: "leaves" in fleet.queues())
    assert json.loads(connected.take("leaves").body) == {"of": "parent"}


def test_given_what_cannot_be_enqueued_then_the_task_fails_and_says_why(fleet: Fleet, connected: Wire) -> None:
    connected.task("expand", {"children": 1, "options": {"cost": {"apii": 3}}})
    connected.task("expand", {"children": 1, "options": {"host": "web-1"}})

    errors = {connected.take("expand.dead").headers["qctl-error"] for _ in range(2)}
    assert errors == {
        "UsageError: consumer leaf has no quota 'apii'",
        "UsageError: leaf cannot be sent to web-1: the host does not run it",
    }


def test_given_a_delay_and_a_host_then_it_waits_for_that_hosts_queue(fleet: Fleet, connected: Wire) -> None:
    connected.task("expand", {"children": 1, "options": {"host": "web-2", "delay": "1s"}})

    wait_until("the queue", lambda: "leaves@web-2" in fleet.queues())
    assert connected.take("leaves@web-2").properties.message_id == fleet.history("ids")[0]


def test_given_a_task_over_its_time_then_it_enqueues_no_more(fleet: Fleet, connected: Wire) -> None:
    connected.task("late", {})

    connected.take("late.dead")
    assert fleet.history("late") == ["TimedOut the task is over its timeout; nothing more is enqueued"]
    assert "leaves" not in fleet.queues()


def test_given_a_full_queue_then_the_task_waits_unacknowledged_until_there_is_room(
    vhost: Vhost, fleet: Fleet, connected: Wire
) -> None:
    # given a queue for others that is full
    fleet.enqueue("leaf", [{}])
    vhost.ctl("set_policy", "full", "^leaves$", '{"max-length": 1}', "--apply-to", "queues")
    fill(connected, "leaves")

    # when a task enqueues others
    connected.task("expand", {"children": 4, "options": {}}, message_id="parent")
    worker = fleet.workers[0]
    worker.await_log("held: broker takes no retries: qctl.tasks leaves: refused by the queue")

    # then the rest comes under the same ids as there is room, and the task has run once
    ids = fleet.history("ids")
    found: set[str | None] = set()
    while not set(ids) <= found:
        found.add(connected.take("leaves").properties.message_id)
    assert worker.stop() == 0
    assert connected.look("expand") is None
    assert fleet.history("expanded") == ["parent 1"]
    assert_no_traceback(worker.log())
