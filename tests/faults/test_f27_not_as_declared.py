"""F27: queues with other arguments, exchanges that are missing, permissions that were refused."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from qctl.broker import topology
from tests.brokers import Vhost
from tests.faults.accounts import account
from tests.faults.rows import row
from tests.faults.scene import Scene
from tests.fleet import wait_until
from tests.integration.worker_harness import wire

#: What is changed of the arguments that qctl would declare, and how the log says so.
DIFFERENCES: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "a length": ({"x-max-length": 5}, "x-max-length is 5, wanted none"),
    "a type": ({"x-queue-type": "classic"}, "x-queue-type is classic, wanted quorum"),
    "a limit": ({"x-delivery-limit": 20}, "x-delivery-limit is 20, wanted 1000000"),
    "other dead letters": ({"x-dead-letter-exchange": "theirs"}, "x-dead-letter-exchange is theirs, wanted qctl.dead"),
}


def arguments_of(queue: str) -> dict[str, Any]:
    """What qctl declares a work queue with."""
    return next(
        dict(one.arguments)
        for one in topology.for_consumer(queue)
        if isinstance(one, topology.Queue) and one.name == queue
    )


def connections(vhost: Vhost) -> set[str]:
    """The connections of a virtual host; the same set means that none was lost."""
    rows = vhost.broker.ctl("list_connections", "vhost", "pid").splitlines()
    return {row.split("\t")[1] for row in rows if row.split("\t")[0] == vhost.name}


#: In the short run one that is only an argument, and one that is another kind of queue.
SHORT = ("a length", "a type", "missing")


def variants(names: Iterable[str]) -> list[Any]:
    """The names as parameters, of which the short run has the ones in SHORT."""
    return [pytest.param(name, marks=() if name in SHORT else pytest.mark.long_run) for name in names]


@pytest.mark.parametrize("difference", variants(DIFFERENCES))
@row("F27", "a queue exists with another length, type or delivery limit", selected=True)
def test_one_error_names_the_difference_and_the_neighbour_works(scene: Scene, difference: str) -> None:
    changes, words = DIFFERENCES[difference]
    arguments = {**arguments_of("calls"), **changes}
    if arguments["x-queue-type"] == "classic":
        del arguments["x-delivery-limit"], arguments["x-dead-letter-strategy"]  # which only quorum queues have
    with wire(scene.vhost) as own:
        # Given a queue that somebody else made
        own.channel.queue_declare("calls", durable=True, arguments=arguments)
        scene.stage()

        # When a worker starts that would declare it otherwise
        worker = scene.start(consumers=("plain",))
        worker.await_log("web-1/calls down: ")
        before = connections(scene.vhost)

        # Then one line says which argument it is, what it has and what was wanted, and that consumer alone is down
        scene.await_ended(scene.enqueue("plain", 10, s=0.05))
        said = worker.log().partition("web-1/calls down: ")[2].partition("\n")[0]
        assert f"queue calls exists with other arguments than qctl declares: {words}. Move " in said, said
        scene.record.figure("lines about it", worker.log().count("web-1/calls down"), equals=1)
        scene.record.figure("connections lost", len(before - connections(scene.vhost)), equals=0)

        # And when its owner takes it away, the consumer is there
        own.channel.queue_delete("calls")
        at_s, log_before = time.monotonic(), len(worker.log())
        wait_until("it consumes", lambda: "web-1/calls consuming" in worker.log()[log_before:])
        scene.record.figure("consuming afterwards, s", time.monotonic() - at_s, at_most=10)
        scene.await_ended(scene.enqueue("calls", 2))
    assert "connection lost" not in worker.log()


@row("F27", "the user may not read one of its queues", selected=True)
def test_a_queue_that_may_not_be_read_is_one_error_and_its_neighbour_works(scene: Scene) -> None:
    user = scene.keep(account(scene.vhost, scene.directory))
    scene.stage()
    user.use(scene.fleet)
    user.allow(read="^(qctl\\..*|plain|.*\\.dead)$")

    worker = scene.start(consumers=("plain",))
    worker.await_log("web-1/calls down: ")
    scene.await_ended(scene.enqueue("plain", 10, s=0.05))

    said = worker.log().partition("web-1/calls down: ")[2].partition("\n")[0]
    assert user.name in said
    assert "calls" in said
    assert "refused" in said
    scene.record.figure("lines about it", worker.log().count("web-1/calls down"), equals=1)
    before, at_s = len(worker.log()), time.monotonic()
    user.allow()
    wait_until("it consumes", lambda: "web-1/calls consuming" in worker.log()[before:])
    scene.record.figure("consuming once allowed, s", time.monotonic() - at_s, at_most=10)
    assert "connection lost" not in worker.log()


FAILS = """
    def fails(task):
        mark("started", task.payload["task"])
        if task.attempt == 1:
            raise ValueError("once")
        mark("done", task.payload["task"])
"""


REFUSALS = {
    "missing": ({"configure": "^qctl\\.host\\."}, "exchange qctl.retry is missing and this user may not make it"),
    "not to be written": (
        {"write": "^(?!qctl\\.retry$).*"},
        "exchange qctl.retry may not be published to: ACCESS_REFUSED",
    ),
}


@pytest.mark.parametrize("refusal", variants(REFUSALS))
@row("F27", "the exchange of retries is deleted and may not be made again, or may not be written", selected=True)
def test_an_exchange_out_of_reach_holds_who_needs_it_and_says_which(scene: Scene, refusal: str) -> None:
    permissions, words = REFUSALS[refusal]
    user = scene.keep(account(scene.vhost, scene.directory))
    retry = {"attempts": 3, "delays": ["1s"]}
    consumers = {
        "fails": {"handler": {"python": "handlers:fails"}, "quota": {}, "retry": retry},
        "plain": {"handler": {"python": "handlers:plain"}, "quota": {}},
    }
    scene.runs = {"fails": 2}
    scene.stage(handlers=FAILS, consumers=consumers)
    user.use(scene.fleet)
    worker = scene.start(consumers=("fails", "plain"))
    user.allow(**permissions)

    # When a task fails and its retry has nowhere to go
    if refusal == "missing":
        with wire(scene.vhost) as own:
            own.channel.exchange_delete("qctl.retry")
    with wire(scene.vhost) as own:
        scene.history.note("attempted", ["fails-by-hand"])
        own.task("fails", {"task": "fails-by-hand"}, message_id="by-hand")
        scene.history.note("confirmed", ["fails-by-hand"])
        worker.await_log("web-1/fails held: broker takes no retries")

        # Then one line says what is missing, others go on, and nobody's connection is lost over and over
        worker.await_log(words)
        time.sleep(4.0)  # several tries
        scene.record.figure("lines about it", worker.log().count(words), equals=1)
        own.task("plain", {"task": "plain-by-hand"})
        scene.history.note("attempted", ["plain-by-hand"])
        scene.history.note("confirmed", ["plain-by-hand"])
    wait_until("the neighbour works", lambda: "plain-by-hand" in scene.history.tasks("done"))

    # And when it may be made again, the retry runs
    at_s = time.monotonic()
    user.allow()
    scene.await_ended(["fails-by-hand"])
    scene.record.figure("done once it may be made, s", time.monotonic() - at_s, at_most=15)
    scene.record.figure("publishing connections lost", worker.log().count("publishing connection lost"), at_most=1)
