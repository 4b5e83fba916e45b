"""Queues of every kind: a host's own ones, work that may be lost, and those that belong to somebody else."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from qctl.broker import topology
from qctl.broker.connect import connect
from qctl.broker.publisher import Publisher
from qctl.worker.consumer import LiveConsumer
from qctl.worker.execute import Executor
from tests.brokers import Vhost
from tests.fleet import Fleet, wait_until
from tests.integration.worker_harness import await_history, start_consuming, wire
from tests.unit.worker.stand_ins import Slots
from tests.wire import depth, fill, login, scenario, stranger, until

HANDLERS = """
    from qctl import Reject

    def runs(task):
        note(task.consumer, task.host, task.id, task.attempt)
        if task.payload == "dies":
            raise Reject("never again")
        if task.attempt == 1:
            raise ValueError("the first time")
"""


def consumer(**more: Any) -> dict[str, Any]:
    return {
        "handler": {"python": "handlers:runs"},
        "quota": {},
        "retry": {"attempts": 2, "delays": ["1s"]},
        **more,
    }


@pytest.fixture
def fleet(local_vhost: Vhost, tmp_path: Path) -> Iterator[Fleet]:
    consumers = {"jobs": consumer(directed=True), "brief": consumer(persistent=False)}
    hosts = {"web-1": None, "web-2": None}
    with Fleet(local_vhost, tmp_path, HANDLERS, consumers=consumers, hosts=hosts) as found:
        yield found


def test_a_directed_task_runs_fails_and_runs_again_on_its_own_host_alone(fleet: Fleet) -> None:
    # Given a worker of one host, and tasks for the other
    first = start_consuming(fleet, "web-1", "jobs")
    fleet.enqueue("jobs", ["for web-2", "dies"], "--host", "web-2")
    fleet.enqueue("jobs", ["for anybody"])
    assert all(line.startswith("web-1 ") for line in await_history(fleet, "jobs", 2))

    # When that host's worker starts, then it runs them, and what failed comes back to it and nobody else
    second = start_consuming(fleet, "web-2", "jobs")
    wait_until("all have run", lambda: len(fleet.history("jobs")) >= 5)
    hosts = [line.split()[0] for line in fleet.history("jobs")]
    assert (hosts.count("web-1"), hosts.count("web-2")) == (2, 3)
    with wire(fleet.vhost) as connected:
        # and a dead letter lies where those of its consumer lie
        assert connected.take("jobs.dead").headers["qctl-died-on"] == "web-2"
        assert connected.depth("jobs@web-2") == 0
        assert connected.depth("qctl.unroutable") == 0
    assert first.stop() == 0
    assert second.stop() == 0


def test_work_that_may_be_lost_is_retried_and_dies_like_any_other(fleet: Fleet) -> None:
    worker = start_consuming(fleet, "web-1", "brief")
    fleet.enqueue("brief", ["fails once", "dies"])

    wait_until("all have run", lambda: len(fleet.history("brief")) >= 3)
    with wire(fleet.vhost) as connected:
        # A dead letter is to be looked at by somebody, and kept until then
        assert connected.take("brief.dead").properties.delivery_mode == 2
        assert connected.depth("brief") == 0
    assert sorted(line.split()[2] for line in fleet.history("brief")) == ["1", "1", "2"]
    assert worker.stop() == 0


def test_after_a_restart_of_the_broker_directed_tasks_are_there_and_both_kinds_are_consumed(fleet: Fleet) -> None:
    # Given tasks for a host that is down
    first = start_consuming(fleet, "web-1", "jobs", "brief")
    fleet.enqueue("jobs", ["a", "b", "c"], "--host", "web-2")

    # When the broker goes and comes again
    before = len(first.log())
    fleet.vhost.broker.stop_app()
    fleet.vhost.broker.start_app()

    # Then the other host consumes both kinds of queue again
    wait_until("jobs", lambda: "web-1/jobs consuming" in first.log()[before:])
    wait_until("brief", lambda: "web-1/brief consuming" in first.log()[before:])
    fleet.enqueue("brief", ["after"])
    await_history(fleet, "brief", 2)
    # and the directed tasks have waited for their own
    assert fleet.history("jobs") == []
    start_consuming(fleet, "web-2", "jobs")
    wait_until("all have run twice", lambda: len(fleet.history("jobs")) >= 6)
    assert {line.split()[0] for line in fleet.history("jobs")} == {"web-2"}


@scenario
async def test_thirty_pauses_kill_nothing_of_somebody_elses_queue_with_a_low_limit(vhost: Vhost) -> None:
    # Given a queue that is not ours, buries what came back more than twice, and has ten tasks
    with stranger(vhost) as channel:
        quorum = {"x-queue-type": "quorum"}
        channel.queue_declare("buried", durable=True, arguments=quorum)
        limit = {"x-delivery-limit": 2, "x-dead-letter-exchange": "", "x-dead-letter-routing-key": "buried"}
        channel.queue_declare("theirs", durable=True, arguments={**quorum, **limit})
    bodies = fill(vhost, "theirs", 10)
    consuming = await connect(login(vhost), name="test consume")
    publishing = await connect(login(vhost), name="test publish")
    publisher = await Publisher.open(publishing)
    waiting = Slots()
    live = LiveConsumer(
        address="web-1/theirs",
        host="web-1",
        queues={"theirs": "tag"},
        work_queue="theirs",
        declarations=(*topology.exchanges(), *topology.for_consumer("theirs", declare=False)),
        persistent=True,
        ladder_s=(1.0,),
        concurrency=10,
        flush_soon=lambda: None,
        publisher=lambda: publisher,
    )
    live.executor = cast("Executor", waiting)
    serving = asyncio.create_task(live.serve(consuming))

    # When all of them are taken and given back, thirty times
    for _ in range(30):
        await until("ten deliveries", lambda: len(waiting.deliveries) >= 10)
        live.hold("test", "paused by the test")
        await until("all are back", lambda: not live.busy)
        live.release("test")
    await until("ten deliveries", lambda: len(waiting.deliveries) >= 10)

    # Then the same ten are there, none is buried, and none is there twice
    assert sorted(one.body for one in waiting.deliveries) == sorted(bodies)
    assert depth(vhost, "buried") == 0
    assert depth(vhost, "theirs") == 0
    for connection in (consuming, publishing):
        await connection.close()
    await serving
