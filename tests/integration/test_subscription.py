"""Consuming: what is delivered is settled exactly once, and a cancelled subscription harms no message."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pika
import pytest

from qctl.broker import topology
from qctl.broker.session import ChannelLost, Connection
from qctl.broker.subscription import Subscription
from tests.brokers import Vhost
from tests.wire import connected, depth, fill, scenario, stranger, take_all, until

QUORUM = {"x-queue-type": "quorum"}


class Taken:
    """A subscription, and what was delivered to it."""

    def __init__(self) -> None:
        self.deliveries: dict[int, bytes] = {}
        self.first = asyncio.Event()
        self.subscription: Subscription

    @classmethod
    async def open(cls, connection: Connection, queue: str = "q", tag: str = "tag") -> Taken:
        taken = cls()
        taken.subscription = await Subscription.open(connection, queue, tag, taken.note)
        return taken

    def note(self, _: Subscription, tag: int, redelivered: bool, __: pika.BasicProperties, body: bytes) -> None:
        assert tag not in self.deliveries
        self.deliveries[tag] = body
        self.first.set()

    async def have(self, count: int) -> None:
        await until(f"{count} deliveries", lambda: len(self.deliveries) >= count)


def make_queue(vhost: Vhost, name: str = "q", **arguments: Any) -> None:
    with stranger(vhost) as channel:
        channel.queue_declare(name, durable=True, arguments={**QUORUM, **arguments})


async def closed(subscription: Subscription) -> ChannelLost:
    return await asyncio.wait_for(asyncio.shield(subscription.channel.closed), 10.0)


@scenario
async def test_no_more_is_delivered_than_asked_for(vhost: Vhost) -> None:
    # given a hundred messages
    make_queue(vhost)
    bodies = fill(vhost, "q", 100)
    async with connected(vhost) as connection:
        taken = await Taken.open(connection)

        # when ten are asked for, and cancelled, so that nothing is on its way
        await taken.subscription.consume(10)
        await taken.have(10)
        await taken.subscription.cancel()

        # then it is ten, in order, and they can still be settled
        assert list(taken.deliveries.values()) == bodies[:10]
        assert taken.subscription.unsettled == 10
        taken.subscription.ack(taken.deliveries)
        assert taken.subscription.unsettled == 0

        # and with the last settlement the channel closes itself
        await closed(taken.subscription)
    assert sorted(found.body for found in take_all(vhost, "q")) == sorted(bodies[10:])


@scenario
async def test_what_is_given_back_while_consuming_waits_for_the_cancel(vhost: Vhost) -> None:
    # given two deliveries of two messages
    make_queue(vhost)
    fill(vhost, "q", 2)
    async with connected(vhost) as connection:
        taken = await Taken.open(connection)
        await taken.subscription.consume(10)
        await taken.have(2)

        # when both are given back
        taken.subscription.give_back(taken.deliveries)

        # then neither comes straight back, as long as the subscription lives
        with stranger(vhost) as channel:
            assert channel.queue_declare("q", passive=True).method.message_count == 0
        assert len(taken.deliveries) == 2
        # and with cancel-ok both are in the queue
        await taken.subscription.cancel()
        assert taken.subscription.unsettled == 0
        await closed(taken.subscription)
    assert len(take_all(vhost, "q")) == 2
    assert len(taken.deliveries) == 2


@scenario
async def test_thirty_pauses_cost_no_message_of_ours(vhost: Vhost) -> None:
    # given a work queue as qctl declares it, with thirty tasks
    async with connected(vhost) as connection:
        await topology.ensure(connection, (*topology.exchanges(), *topology.for_consumer("work")))
        bodies = fill(vhost, "work", 30)

        # when ten are taken and given back, thirty times
        for _ in range(30):
            taken = await Taken.open(connection, "work")
            await taken.subscription.consume(10)
            await taken.have(10)
            taken.subscription.give_back(taken.deliveries)
            await taken.subscription.cancel()

    # then all are there, and none is dead
    assert sorted(found.body for found in take_all(vhost, "work")) == sorted(bodies)
    assert depth(vhost, "work.dead") == 0


@scenario
async def test_thirty_pauses_kill_messages_of_a_queue_with_a_low_limit_on_older_brokers(vhost: Vhost) -> None:
    # given somebody else's queue with a delivery limit of 20
    make_queue(vhost, "theirs.dead")
    make_queue(
        vhost,
        "theirs",
        **{"x-delivery-limit": 20, "x-dead-letter-exchange": "", "x-dead-letter-routing-key": "theirs.dead"},
    )
    fill(vhost, "theirs", 30)

    # when ten are taken and given back, thirty times
    async with connected(vhost) as connection:
        for _ in range(30):
            taken = await Taken.open(connection, "theirs")
            await taken.subscription.consume(10)
            await taken.have(10)
            taken.subscription.give_back(taken.deliveries)
            await taken.subscription.cancel()
    alive = len(take_all(vhost, "theirs"))

    # then brokers before 4.3 count each return, and later ones do not: that is why ours have a large limit
    version = tuple(int(part) for part in vhost.broker.version.split(".")[:2])
    assert alive == (30 if version >= (4, 3) else 20)


@scenario
async def test_what_arrives_after_the_cancel_was_sent_is_handed_over_and_never_rejected(vhost: Vhost) -> None:
    # given a queue that has more than fits on the way
    make_queue(vhost)
    bodies = fill(vhost, "q", 2500, size_bytes=2000)
    handed: list[bytes] = []
    late = 0
    async with connected(vhost) as connection:
        for _ in range(10):
            taken = await Taken.open(connection)
            await taken.subscription.consume(2000)
            await taken.first.wait()

            # when it is cancelled in the middle of the flood
            before = len(taken.deliveries)
            await taken.subscription.cancel()
            late += len(taken.deliveries) - before

            # then all that arrived is ours to settle
            assert taken.subscription.unsettled == len(taken.deliveries)
            handed += taken.deliveries.values()
            taken.subscription.ack(taken.deliveries)
            if len(handed) > 2000:
                break
    assert late, "nothing arrived between cancel and cancel-ok: this proved nothing"

    # and what was not handed over has never left the queue
    left = take_all(vhost, "q")
    assert sorted(handed + [found.body for found in left]) == sorted(bodies)
    assert not any(found.redelivered for found in left)


@pytest.mark.parametrize("seed", range(4))
@scenario
async def test_whatever_the_order_of_settling_exactly_what_is_acked_is_gone(local_vhost: Vhost, seed: int) -> None:
    # given many deliveries, and a random order in which tasks end, some acked and some given back
    chance = random.Random(seed)
    make_queue(local_vhost)
    bodies = fill(local_vhost, "q", 500)
    acked: list[bytes] = []
    async with connected(local_vhost) as connection:
        taken = await Taken.open(connection)
        await taken.subscription.consume(500)
        await taken.have(500)
        tags = list(taken.deliveries)
        # nearly in order, as tasks end, or in any order
        tags.sort(key=lambda tag: tag + chance.random() * chance.choice([1, 20, 1000]))

        # when they are settled in batches, and the subscription is cancelled in between
        cancel_at = chance.randrange(len(tags))
        while tags:
            batch, tags = tags[: (size := chance.randint(1, 40))], tags[size:]
            if chance.random() < 0.6:
                acked += (taken.deliveries[tag] for tag in batch)
                taken.subscription.ack(chance.sample(batch, len(batch)))
            else:
                taken.subscription.give_back(batch)
            if len(tags) <= cancel_at and taken.subscription.consuming:
                await taken.subscription.cancel()
        if taken.subscription.consuming:
            await taken.subscription.cancel()

        # then nothing is left to settle, and the channel closes, but not before the broker has digested it all: of
        # what is settled in a burst right before a close, a quorum queue forgets most
        assert taken.subscription.unsettled == 0
        await closed(taken.subscription)

    # and the queue has exactly what was not acked
    assert sorted(found.body for found in take_all(local_vhost, "q")) == sorted(set(bodies) - set(acked))


@scenario
async def test_a_run_of_acks_is_one_frame(local_vhost: Vhost, monkeypatch: pytest.MonkeyPatch) -> None:
    # given a hundred deliveries
    make_queue(local_vhost)
    fill(local_vhost, "q", 100)
    frames: list[tuple[int, bool]] = []
    async with connected(local_vhost) as connection:
        taken = await Taken.open(connection)
        await taken.subscription.consume(100)
        await taken.have(100)
        raw = taken.subscription.channel.raw
        send = raw.basic_ack

        def counting(delivery_tag: int = 0, multiple: bool = False) -> None:
            frames.append((delivery_tag, multiple))
            send(delivery_tag, multiple)

        monkeypatch.setattr(raw, "basic_ack", counting)

        # when they are acked in runs with a gap
        taken.subscription.ack(range(1, 50))
        taken.subscription.ack(range(51, 53))
        taken.subscription.ack([50])
        taken.subscription.ack(range(53, 101))

        # then a run is one frame, what lies beyond a gap is acked by itself, and each tag is acked once
        assert frames == [(49, True), (51, False), (52, False), (50, False), (100, True)]
        await taken.subscription.cancel()
        await closed(taken.subscription)
    assert depth(local_vhost, "q") == 0


@scenario
async def test_a_deleted_queue_ends_the_subscription(vhost: Vhost) -> None:
    # given a subscription with a delivery
    make_queue(vhost)
    fill(vhost, "q", 1)
    async with connected(vhost) as connection:
        taken = await Taken.open(connection)
        await taken.subscription.consume(10)
        await taken.have(1)

        # when its queue is deleted
        with stranger(vhost) as channel:
            channel.queue_delete("q")

        # then the subscription says so instead of idling
        lost = await asyncio.wait_for(asyncio.shield(taken.subscription.lost), 10.0)
        assert "the broker cancelled the consumer of q" in str(lost)
        assert not taken.subscription.consuming
        # and what it had is not ours any more: the broker may have given it to others
        assert not taken.subscription.is_open
        taken.subscription.ack(taken.deliveries)
        # which costs the channel, and the connection nothing
        await closed(taken.subscription)
        assert connection.is_open


@scenario
async def test_a_lost_connection_ends_the_subscription_and_settling_is_nothing(local_vhost: Vhost) -> None:
    # given a subscription with deliveries
    make_queue(local_vhost)
    bodies = fill(local_vhost, "q", 3)
    async with connected(local_vhost) as connection:
        taken = await Taken.open(connection)
        await taken.subscription.consume(10)
        await taken.have(3)

        # when the connection is gone
        connection.abort("by the test")
        await asyncio.wait_for(asyncio.shield(taken.subscription.lost), 10.0)

        # then late settlements are discarded on our side
        assert not taken.subscription.consuming
        taken.subscription.ack([1])
        taken.subscription.give_back([2])

    # and the broker has all of them back
    await until("all are back", lambda: depth(local_vhost, "q") == 3)
    assert sorted(found.body for found in take_all(local_vhost, "q")) == bodies


@scenario
async def test_consuming_a_queue_that_does_not_exist_is_refused(local_vhost: Vhost) -> None:
    async with connected(local_vhost) as connection:
        taken = await Taken.open(connection, "no-such-queue")
        with pytest.raises(ChannelLost, match="no-such-queue") as lost:
            await taken.subscription.consume(1)
        assert lost.value.code == 404
        assert connection.is_open


@scenario
async def test_two_subscriptions_of_one_connection_do_not_touch_each_other(local_vhost: Vhost) -> None:
    # given two queues consumed on one connection
    make_queue(local_vhost, "a")
    make_queue(local_vhost, "b")
    fill(local_vhost, "a", 5)
    fill(local_vhost, "b", 5)
    async with connected(local_vhost) as connection:
        first = await Taken.open(connection, "a", "tag-a")
        second = await Taken.open(connection, "b", "tag-b")
        await first.subscription.consume(5)
        await second.subscription.consume(5)
        await first.have(5)
        await second.have(5)

        # when one is cancelled and everything of it returned, and the other acks
        first.subscription.give_back(first.deliveries)
        await first.subscription.cancel()
        second.subscription.ack(second.deliveries)

        # then the other consumes on
        fill(local_vhost, "b", 1)
        await second.have(6)
        second.subscription.ack([6])
        await second.subscription.cancel()
        await closed(second.subscription)
    assert depth(local_vhost, "a") == 5
    assert depth(local_vhost, "b") == 0
