"""What is declared on the broker is what the design says, once and again, with rights and without."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import pytest

from qctl.broker import topology
from qctl.broker.publisher import Published, Publisher
from qctl.errors import BrokerRefused, Exit, TopologyMismatch
from tests.brokers import Vhost
from tests.wire import connected, depth, message, scenario, stranger, take_all, until

#: What every quorum queue of qctl has.
SAFE = {"x-queue-type": "quorum", "x-delivery-limit": 1_000_000, "x-overflow": "reject-publish"}
#: What a work queue has on top, for its dead letters.
NET = {
    "x-dead-letter-exchange": "qctl.dead",
    "x-dead-letter-routing-key": "timeline",
    "x-dead-letter-strategy": "at-least-once",
}


def everything() -> tuple[topology.Declaration, ...]:
    """All that a worker with a directed consumer and two delays needs."""
    return (
        *topology.exchanges(),
        *topology.ladder([5.0, 300.0, 5.0]),
        *topology.for_consumer("timeline", directed_hosts=["web-1"]),
    )


def queues(vhost: Vhost) -> dict[str, dict[str, Any]]:
    """Arguments by name, as the broker says."""
    found = vhost.broker.api("GET", f"/queues/{vhost.name}?disable_stats=true&enable_queue_totals=true")
    assert all(one["durable"] for one in found)
    return {one["name"]: one["arguments"] for one in found}


def exchanges(vhost: Vhost) -> dict[str, tuple[str, dict[str, Any]]]:
    """Kind and arguments by name, qctl's own only."""
    found = vhost.broker.api("GET", f"/exchanges/{vhost.name}")
    return {one["name"]: (one["type"], one["arguments"]) for one in found if one["name"].startswith("qctl.")}


def bindings(vhost: Vhost) -> set[tuple[str, str, str]]:
    """(exchange, queue, routing key), without the default exchange's."""
    found = vhost.broker.api("GET", f"/bindings/{vhost.name}")
    return {(one["source"], one["destination"], one["routing_key"]) for one in found if one["source"]}


def args(vhost: Vhost, exchange: str, queue: str) -> list[dict[str, Any]]:
    found = vhost.broker.api("GET", f"/bindings/{vhost.name}/e/{exchange}/q/{quote(queue, safe='')}")
    return [one["arguments"] for one in found]


@contextmanager
def user(vhost: Vhost, **permissions: str) -> Iterator[dict[str, str]]:
    """A user with these permissions in the virtual host, as `connected` takes it."""
    name, password = f"user-{secrets.token_hex(4)}", secrets.token_hex(8)
    vhost.broker.api("PUT", f"/users/{name}", {"password": password, "tags": ""})
    try:
        allowed = {"configure": "", "write": ".*", "read": ".*", **permissions}
        vhost.broker.api("PUT", f"/permissions/{vhost.name}/{name}", allowed)
        yield {"username": name, "password": password}
    finally:
        vhost.broker.api("DELETE", f"/users/{name}")


@scenario
async def test_everything_is_there_under_its_name_with_its_arguments(vhost: Vhost) -> None:
    # when all is declared, and once more, and by somebody else
    async with connected(vhost) as connection:
        await topology.ensure(connection, everything())
        await topology.ensure(connection, everything())
    async with connected(vhost) as connection:
        await topology.ensure(connection, everything())

    # then the queues are these
    waiting = {**SAFE, "x-dead-letter-exchange": "qctl.back", "x-dead-letter-strategy": "at-least-once"}
    assert queues(vhost) == {
        "timeline": {**SAFE, **NET},
        "timeline@web-1": {**SAFE, **NET},
        "timeline.dead": SAFE,
        "qctl.unroutable": SAFE,
        "qctl.retry.5s": {**waiting, "x-message-ttl": 5_000},
        "qctl.retry.5m": {**waiting, "x-message-ttl": 300_000},
    }
    # and the exchanges
    assert exchanges(vhost) == {
        "qctl.tasks": ("direct", {}),
        "qctl.dead": ("direct", {}),
        "qctl.retry": ("headers", {}),
        "qctl.back": ("direct", {"alternate-exchange": "qctl.unroutable"}),
        "qctl.unroutable": ("fanout", {}),
    }
    # and each is bound as the way of a task wants it
    assert bindings(vhost) == {
        ("qctl.tasks", "timeline", "timeline"),
        ("qctl.back", "timeline", "timeline"),
        ("qctl.tasks", "timeline@web-1", "timeline@web-1"),
        ("qctl.back", "timeline@web-1", "timeline@web-1"),
        ("qctl.dead", "timeline.dead", "timeline"),
        ("qctl.unroutable", "qctl.unroutable", ""),
        ("qctl.retry", "qctl.retry.5s", ""),
        ("qctl.retry", "qctl.retry.5m", ""),
    }
    assert args(vhost, "qctl.retry", "qctl.retry.5s") == [{"x-match": "all", "qctl-delay": "5s"}]
    assert args(vhost, "qctl.retry", "qctl.retry.5m") == [{"x-match": "all", "qctl-delay": "5m"}]


@scenario
async def test_work_that_may_be_lost_gets_a_classic_queue(vhost: Vhost) -> None:
    async with connected(vhost) as connection:
        await topology.ensure(connection, topology.exchanges())
        for _ in range(2):
            await topology.ensure(connection, topology.for_consumer("timeline", persistent=False))

    # then the work queue is durable and classic, and its dead letters are safe all the same
    found = queues(vhost)
    assert found["timeline"] == {
        "x-queue-type": "classic",
        "x-overflow": "reject-publish",
        "x-dead-letter-exchange": "qctl.dead",
        "x-dead-letter-routing-key": "timeline",
    }
    assert found["timeline.dead"] == SAFE


@scenario
async def test_a_delayed_task_comes_back_and_a_stray_is_kept(vhost: Vhost) -> None:
    # given a work queue, a waiting room of a second, and tasks for it and for a queue that is gone
    async with connected(vhost) as connection:
        await topology.ensure(
            connection, (*topology.exchanges(), *topology.ladder([1.0]), *topology.for_consumer("timeline"))
        )
        publisher = await Publisher.open(connection)
        headers = {"qctl-delay": "1s"}
        for queue in ("gone", "timeline"):
            fate = await publisher.publish(message(queue, exchange="qctl.retry", headers=headers, type=queue))
            assert fate is Published.CONFIRMED
        # and one that no waiting room fits
        unknown = message("timeline", exchange="qctl.retry", headers={"qctl-delay": "2s"})
        assert await publisher.publish(unknown) is Published.UNROUTABLE

        # when the second is over
        await until("both are back", lambda: depth(vhost, "timeline") and depth(vhost, "qctl.unroutable"))

    # then the task is in its queue, and the stray where it is found
    assert [found.properties.type for found in take_all(vhost, "timeline")] == ["timeline"]
    assert [found.properties.type for found in take_all(vhost, "qctl.unroutable")] == ["gone"]


@pytest.mark.parametrize(
    ("theirs", "difference"),
    [
        ({"x-queue-type": "classic"}, "wanted"),
        ({**SAFE, **NET, "x-delivery-limit": 5}, "x-delivery-limit"),
        ({**SAFE, **NET, "x-dead-letter-exchange": "elsewhere"}, "x-dead-letter-exchange"),
        ({**SAFE, **NET, "x-max-length": 10}, "x-max-length"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@scenario
async def test_a_queue_with_other_arguments_is_named_with_the_difference(
    vhost: Vhost, theirs: dict[str, Any], difference: str
) -> None:
    # given a queue of that name with other arguments
    with stranger(vhost) as channel:
        channel.queue_declare("timeline", durable=True, arguments=theirs)

    # when ours is declared
    async with connected(vhost) as connection:
        await topology.ensure(connection, topology.exchanges())
        with pytest.raises(TopologyMismatch) as refused:
            await topology.ensure(connection, topology.for_consumer("timeline"))

        # then one sentence names the queue and the argument, and the hint a way out
        assert "queue timeline exists with other arguments" in refused.value.message
        assert difference in refused.value.message
        assert "declare: false" in refused.value.hint
        assert refused.value.exit_code is Exit.REFUSED
        # and the connection serves on
        assert connection.is_open
        await topology.ensure(connection, topology.for_consumer("other"))
    assert queues(vhost)["timeline"] == theirs


@scenario
async def test_an_exchange_of_another_kind_is_named(local_vhost: Vhost) -> None:
    with stranger(local_vhost) as channel:
        channel.exchange_declare("qctl.tasks", "topic", durable=True)
    async with connected(local_vhost) as connection:
        with pytest.raises(TopologyMismatch, match=r"exchange qctl\.tasks .*: type is topic, wanted direct"):
            await topology.ensure(connection, topology.exchanges())


@scenario
async def test_a_queue_that_is_not_ours_is_used_as_it_is(vhost: Vhost) -> None:
    # given somebody else's queue, with arguments of its own
    with stranger(vhost) as channel:
        channel.queue_declare("theirs", durable=True, arguments={"x-max-length": 10})

    # when it is used with `declare: false`
    async with connected(vhost) as connection:
        await topology.ensure(connection, topology.exchanges())
        await topology.ensure(connection, topology.for_consumer("theirs", declare=False))
        publisher = await Publisher.open(connection)
        fate = await publisher.publish(message("theirs", exchange="qctl.tasks"))

    # then only its bindings and its dead-letter queue are ours
    assert fate is Published.CONFIRMED
    assert ("qctl.back", "theirs", "theirs") in bindings(vhost)
    assert queues(vhost)["theirs.dead"] == SAFE
    assert queues(vhost)["theirs"]["x-max-length"] == 10


@scenario
async def test_a_queue_that_is_not_ours_and_missing_is_said_to_be_its_owners_business(vhost: Vhost) -> None:
    async with connected(vhost) as connection:
        await topology.ensure(connection, topology.exchanges())
        with pytest.raises(BrokerRefused, match="queue theirs does not exist") as refused:
            await topology.ensure(connection, topology.for_consumer("theirs", declare=False))
    assert "declare: false" in refused.value.hint
    assert "theirs" not in queues(vhost)


@scenario
async def test_without_the_right_to_declare_what_exists_is_used(vhost: Vhost) -> None:
    # given everything in place, and a user who may only read and write
    async with connected(vhost) as connection:
        await topology.ensure(connection, everything())
    before = (queues(vhost), exchanges(vhost), bindings(vhost))
    with user(vhost) as limited:
        async with connected(vhost, **limited) as connection:
            # when that user's command makes sure of it
            await topology.ensure(connection, everything())

            # then it works, and nothing has changed
            publisher = await Publisher.open(connection)
            fate = await publisher.publish(message("timeline", exchange="qctl.tasks"))
    assert fate is Published.CONFIRMED
    assert (queues(vhost), exchanges(vhost), bindings(vhost)) == before


@scenario
async def test_without_the_right_to_bind_existing_bindings_are_believed(local_vhost: Vhost) -> None:
    # given a user who may write to the tasks' exchange and nothing else
    async with connected(local_vhost) as connection:
        await topology.ensure(connection, everything())
    with user(local_vhost, write="qctl[.]tasks", read="") as limited:
        async with connected(local_vhost, **limited) as connection:
            await topology.ensure(connection, everything())
            publisher = await Publisher.open(connection)
            fate = await publisher.publish(message("timeline", exchange="qctl.tasks"))
    assert fate is Published.CONFIRMED


@pytest.mark.parametrize(
    ("present", "missing"),
    [
        ((), "exchange qctl.tasks"),
        (topology.exchanges(), "queue qctl.retry.5s"),
        ((*topology.exchanges(), *topology.ladder([5.0, 300.0])), "queue timeline.dead"),
    ],
    ids=["nothing", "no queues", "no work queue"],
)
@scenario
async def test_without_the_right_to_declare_what_is_missing_is_named(
    vhost: Vhost, present: tuple[topology.Declaration, ...], missing: str
) -> None:
    # given a broker where something is missing, and a user who may not declare it
    async with connected(vhost) as connection:
        await topology.ensure(connection, present)
    with user(vhost) as limited:
        async with connected(vhost, **limited) as connection:
            # when that user's command needs it
            with pytest.raises(BrokerRefused) as refused:
                await topology.ensure(connection, everything())

    # then the message names it, and the hint who could make it
    assert f"{missing} is missing and this user may not make it" in refused.value.message
    assert "configure permission" in refused.value.hint


@scenario
async def test_a_queue_may_be_declared_by_several_at_once(vhost: Vhost) -> None:
    # given several who start at the same time on an empty broker
    async def one() -> None:
        async with connected(vhost) as connection:
            await topology.ensure(connection, everything())

    # when all make sure of everything
    await asyncio.gather(*(one() for _ in range(4)))

    # then it is there once
    assert set(queues(vhost)) == {
        "timeline",
        "timeline@web-1",
        "timeline.dead",
        "qctl.unroutable",
        "qctl.retry.5s",
        "qctl.retry.5m",
    }
