"""Publishing: each message's fate is told once, and it is the truth."""

from __future__ import annotations

import asyncio
from functools import partial
from itertools import chain

import pytest

from qctl.broker import publisher as publishing
from qctl.broker.publisher import Published, Publisher
from qctl.broker.session import ChannelLost
from tests.brokers import Vhost
from tests.wire import connected, depth, message, scenario, stranger, take_all, until

QUORUM = {"x-queue-type": "quorum"}


def make_queue(vhost: Vhost, name: str = "q", **arguments: object) -> None:
    with stranger(vhost) as channel:
        channel.queue_declare(name, durable=True, arguments={**QUORUM, **arguments})


class Fates:
    """Who got which fate, each in the order told."""

    def __init__(self) -> None:
        self.told: dict[object, list[Published]] = {}

    def of(self, who: object) -> publishing.OnResult:
        self.told[who] = []
        return partial(self._note, who)

    def _note(self, who: object, fate: Published) -> None:
        self.told[who].append(fate)

    @property
    def complete(self) -> bool:
        return all(self.told.values())


@scenario
async def test_a_confirmed_message_is_in_the_queue(vhost: Vhost) -> None:
    # given a queue
    make_queue(vhost)

    async with connected(vhost) as connection:
        publisher = await Publisher.open(connection)

        # when a message is published
        fate = await publisher.publish(message("q", b"payload", message_id="id-1"))

    # then it is confirmed, and it is there
    assert fate is Published.CONFIRMED
    assert [(found.body, found.properties.message_id) for found in take_all(vhost, "q")] == [(b"payload", "id-1")]


@scenario
async def test_a_message_that_no_queue_takes_is_unroutable(vhost: Vhost) -> None:
    async with connected(vhost) as connection:
        publisher = await Publisher.open(connection)

        # when messages go where nothing is, with any id or none
        fates = [
            await publisher.publish(message("nowhere", message_id=message_id))
            for message_id in ("id-1", None, "ü", b"\xff\xfe")
        ]

        # then the broker's confirm is not taken for the truth
        assert fates == [Published.UNROUTABLE] * 4
        # and the next good one is confirmed
        make_queue(vhost)
        assert await publisher.publish(message("q", message_id="id-1")) is Published.CONFIRMED


@scenario
async def test_many_at_once_are_each_told_their_fate_once(vhost: Vhost) -> None:
    # given a queue, and messages for it among some for nobody, all under way at once
    make_queue(vhost)
    fates = Fates()
    async with connected(vhost) as connection:
        publisher = await Publisher.open(connection)
        for number in range(1000):
            queue = "nowhere" if number % 100 == 7 else "q"
            publisher.send(message(queue, b"%d" % number, message_id=str(number)), fates.of(number))

        # when all are settled
        await until("all settled", lambda: fates.complete)

    # then each has its own fate, and what is confirmed is what is there
    assert publisher.unconfirmed == 0
    for number, told in fates.told.items():
        assert told == [Published.UNROUTABLE if number % 100 == 7 else Published.CONFIRMED], number
    confirmed = {b"%d" % number for number, told in fates.told.items() if told == [Published.CONFIRMED]}
    assert sorted(found.body for found in take_all(vhost, "q")) == sorted(confirmed)


@scenario
async def test_a_full_queue_refuses(vhost: Vhost) -> None:
    # given a queue for five messages
    make_queue(vhost, **{"x-max-length": 5, "x-overflow": "reject-publish"})
    fates = Fates()

    # when more and more come
    async with connected(vhost) as connection:
        publisher = await Publisher.open(connection)
        while not any(told == [Published.REFUSED] for told in fates.told.values()):
            assert len(fates.told) < 10_000, "it takes any number"
            for number in range(len(fates.told), len(fates.told) + 50):
                publisher.send(message("q", message_id=str(number)), fates.of(number))
            await until("all settled", lambda: fates.complete)

    # then what does not fit is told to be refused, and all the rest is there
    told = list(chain.from_iterable(fates.told.values()))
    assert set(told) == {Published.CONFIRMED, Published.REFUSED}
    assert len(told) == len(fates.told)
    assert depth(vhost, "q") == told.count(Published.CONFIRMED)


@scenario
async def test_of_two_with_one_id_the_unroutable_one_is_not_called_confirmed(local_vhost: Vhost) -> None:
    # given a queue, and two messages with the same id, one of them for nobody, in both orders
    make_queue(local_vhost)
    async with connected(local_vhost) as connection:
        publisher = await Publisher.open(connection)
        for order in (("q", "nowhere"), ("nowhere", "q")):
            fates = Fates()
            for queue in order:
                publisher.send(message(queue, message_id="same"), fates.of(queue))

            # when both are settled
            await until("both settled", lambda fates=fates: fates.complete)

            # then each has its own fate
            assert fates.told == {"q": [Published.CONFIRMED], "nowhere": [Published.UNROUTABLE]}


@scenario
async def test_of_two_that_cannot_be_told_apart_none_is_called_confirmed_wrongly(local_vhost: Vhost) -> None:
    # given a binding that goes away between two messages with one id and one destination
    make_queue(local_vhost)
    async with connected(local_vhost) as connection:
        control = await connection.channel()
        publisher = await Publisher.open(connection)
        for _ in range(20):
            await control.call("queue_bind", queue="q", exchange="amq.direct", routing_key="key")
            fates = Fates()
            publisher.send(message("key", exchange="amq.direct", message_id="same"), fates.of("bound"))
            await control.call("queue_unbind", queue="q", exchange="amq.direct", routing_key="key")
            publisher.send(message("key", exchange="amq.direct", message_id="same"), fates.of("unbound"))

            # when both are settled
            await until("both settled", lambda fates=fates: fates.complete)

            # then the one that is nowhere is told so, whichever confirm came first
            assert fates.told["unbound"] == [Published.UNROUTABLE]


@scenario
async def test_a_lost_connection_is_told_to_each_that_waits(vhost: Vhost) -> None:
    # given messages under way
    make_queue(vhost)
    fates = Fates()
    async with connected(vhost) as connection:
        publisher = await Publisher.open(connection)
        await publisher.publish(message("q"))
        for number in range(50):
            publisher.send(message("q"), fates.of(number))

        # when the connection is gone before a confirm can be read
        connection.abort("by the test")
        await until("all told", lambda: fates.complete)

        # then each is told that nobody knows, once
        assert list(fates.told.values()) == [[Published.LOST]] * 50
        assert publisher.unconfirmed == 0
        assert publisher.room

        # and what comes later is not sent at all
        with pytest.raises(ChannelLost, match="by the test"):
            publisher.send(message("q"), fates.of("late"))
        assert await publisher.publish(message("q")) is Published.LOST
        assert fates.told["late"] == []


@scenario
async def test_a_channel_that_the_broker_closes_says_why(local_vhost: Vhost) -> None:
    async with connected(local_vhost) as connection:
        publisher = await Publisher.open(connection)

        # when something is published to an exchange that does not exist
        fate = await publisher.publish(message("key", exchange="no-such-exchange"))

        # then its fate is unknown to the publisher, and the broker's word is kept
        assert fate is Published.LOST
        assert publisher.why_lost is not None
        assert publisher.why_lost.code == 404
        assert "no-such-exchange" in publisher.why_lost.text
        # and the connection serves on
        assert await (await Publisher.open(connection)).publish(message("nowhere")) is Published.UNROUTABLE


@scenario
async def test_the_wait_for_a_confirm_is_the_callers_to_bound_and_the_message_goes_out_once(local_vhost: Vhost) -> None:
    # given a broker that takes no publishes
    make_queue(local_vhost)
    local_vhost.broker.ctl("set_vm_memory_high_watermark", "absolute", "1")
    try:
        async with connected(local_vhost) as connection:
            publisher = await Publisher.open(connection)

            # when one is published and not waited for any longer
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(publisher.publish(message("q")), 0.5)

            # then the reason can be seen, and it counts as unconfirmed
            await until("blocked", lambda: connection.blocked)
            assert publisher.unconfirmed == 1
    finally:
        local_vhost.broker.ctl("set_vm_memory_high_watermark", "0.4")


@scenario
async def test_there_is_room_for_a_bounded_number_and_size(local_vhost: Vhost, monkeypatch: pytest.MonkeyPatch) -> None:
    # given bounds of ten messages and of a kilobyte
    make_queue(local_vhost)
    monkeypatch.setattr(publishing, "MAX_UNCONFIRMED", 10)
    monkeypatch.setattr(publishing, "MAX_UNCONFIRMED_BYTES", 1000)
    async with connected(local_vhost) as connection:
        publisher = await Publisher.open(connection)

        for size_bytes, fit in ((1, 10), (250, 4), (5000, 1)):
            fates = Fates()
            # when as many are sent as there is room for
            sent = 0
            while publisher.room:
                publisher.send(message("q", b"x" * size_bytes), fates.of(sent))
                sent += 1

            # then that is the smaller of both bounds
            assert sent == fit
            # and confirms make room again
            await until("all settled", lambda fates=fates: fates.complete)
            assert publisher.room
    assert depth(local_vhost, "q") == 15


@pytest.mark.parametrize(
    "properties",
    [{"message_id": "x" * 256}, {"type": "x" * 256}, {"headers": {"n": 1.5}}, {"headers": {"o": object()}}],
)
@scenario
async def test_what_amqp_cannot_carry_harms_nothing_else(local_vhost: Vhost, properties: dict[str, object]) -> None:
    make_queue(local_vhost)
    fates = Fates()
    async with connected(local_vhost) as connection:
        publisher = await Publisher.open(connection)

        # when a message is to be sent that cannot be written
        with pytest.raises(ValueError, match="AMQP"):
            publisher.send(message("q", **properties), fates.of("impossible"))

        # then nothing was sent, and the tags of what follows are right
        assert publisher.unconfirmed == 0
        assert await publisher.publish(message("q")) is Published.CONFIRMED
    assert fates.told == {"impossible": []}
    assert depth(local_vhost, "q") == 1


@scenario
async def test_a_body_of_many_frames_arrives_whole(vhost: Vhost) -> None:
    # given a body larger than one frame of AMQP, and an empty one
    make_queue(vhost)
    bodies = [bytes(range(256)) * 4096, b""]
    async with connected(vhost) as connection:
        publisher = await Publisher.open(connection)
        for body in bodies:
            assert await publisher.publish(message("q", body)) is Published.CONFIRMED

    # then both are there byte for byte
    assert [found.body for found in take_all(vhost, "q")] == bodies
