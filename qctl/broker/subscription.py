"""One queue consumed on one channel: subscribe with a fixed prefetch, cancel with proof, settle in batches."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import pika

from qctl.broker import topology
from qctl.broker.session import Channel, ChannelLost, Connection
from qctl.errors import QctlError

#: The broker cancels the consumers of a queue a moment before a queue that is deleted is gone.
DELETED_AFTER_S = 0.25

#: Tags settled beyond one that is not, that a subscription keeps in mind; then a new one is due.
MAX_SCATTERED = 10_000

#: on_delivery(subscription, delivery tag, redelivered, properties, body); called on the loop's thread.
OnDelivery = Callable[["Subscription", int, bool, pika.BasicProperties, bytes], None]


class ConsumerCancelled(ChannelLost):
    """The broker cancelled a consumer of its own accord."""


class Subscription:
    """A consumer tag's life on a channel of its own: consume once, cancel once, settle the rest.

    It is not for consuming again: RabbitMQ 3.10's channel process crashes (541) when a tag comes back on a channel that
    has unsettled deliveries of it. After cancel-ok the channel closes itself with its last settlement. What is given
    back before cancel-ok waits for it: a message returned earlier would come straight back. Use from the loop's thread.
    """

    def __init__(self, channel: Channel, queue: str, tag: str, on_delivery: OnDelivery) -> None:
        self.channel = channel
        self.queue = queue
        self.tag = tag
        self.prefetch = 0
        self.consuming = False
        self.unsettled = 0
        self._cancel_ok: asyncio.Future[Any] | None = None
        self._cancelled = False
        self._taken_from_us = False
        self._closing: asyncio.Task[None] | None = None
        self._on_delivery = on_delivery
        self._frontier = 1  # every delivery tag below is settled
        self._settled_beyond: set[int] = set()
        self._to_return: list[int] = []
        self._gave_back = False
        #: done, with the reason, when nothing will be delivered any more without our having cancelled
        self.lost: asyncio.Future[ChannelLost] = asyncio.get_running_loop().create_future()
        channel.raw.add_on_cancel_callback(self._on_server_cancel)
        channel.closed.add_done_callback(lambda closed: self._end(closed.result()))

    @classmethod
    async def open(cls, connection: Connection, queue: str, tag: str, on_delivery: OnDelivery) -> Subscription:
        """A subscription on a channel of its own, not consuming yet. Raises ChannelLost."""
        return cls(await connection.channel(), queue, tag, on_delivery)

    @property
    def is_open(self) -> bool:
        """False once the deliveries of this subscription can no longer be settled; the broker has them back."""
        return self.channel.is_open and not self._taken_from_us

    async def consume(self, prefetch: int) -> None:
        """Subscribe. The prefetch is fixed: the broker does not change it for a running consumer."""
        assert not self.consuming
        assert prefetch > 0
        await self.channel.call("basic_qos", prefetch_count=prefetch)
        self.prefetch = prefetch
        self.consuming = True
        await self.channel.call(
            "basic_consume", queue=self.queue, on_message_callback=self._deliver, consumer_tag=self.tag
        )
        self.channel.consumes = True

    def ask_cancel(self) -> None:
        """Send the cancel now, at most once; `cancel` waits for its cancel-ok. Raises ChannelLost."""
        if self._cancel_ok is None:
            if self.lost.done():
                raise self.lost.result()
            self._cancel_ok = self.channel.ask("basic_cancel", consumer_tag=self.tag)

    @property
    def cancelling(self) -> bool:
        """True from when the cancel was sent."""
        return self._cancel_ok is not None

    async def cancel(self) -> None:
        """Cancel the tag and wait for cancel-ok; then nothing more arrives, and what was given back is returned.

        Raises ChannelLost, also when the broker has cancelled the tag already.
        """
        self.ask_cancel()
        assert self._cancel_ok is not None
        await self.channel.reply_to(self._cancel_ok, "basic_cancel")
        self.consuming = False
        self._cancelled = True
        self._return_now()
        self._close_when_settled()

    def ack(self, tags: Iterable[int]) -> None:
        """Acknowledge; a run without gaps goes out as one frame. Does nothing when the channel is gone."""
        if not self.is_open:
            return
        batch = sorted(tags)
        frontier = self._settle(batch)
        below = [tag for tag in batch if tag < frontier]
        if below:
            self.channel.raw.basic_ack(below[-1], multiple=len(below) > 1)
        for tag in batch[len(below) :]:
            self.channel.raw.basic_ack(tag)
        self.channel.note_settled()
        self._close_when_settled()

    @property
    def scattered(self) -> bool:
        """True when it should be cancelled and a new one take over: a delivery that stays for long makes it grow."""
        return len(self._settled_beyond) > MAX_SCATTERED and not self._cancelled

    def give_back(self, tags: Iterable[int]) -> None:
        """Return unharmed; goes out at once when cancelled, else with the next cancel-ok."""
        self._to_return.extend(tags)
        self._gave_back = True
        if not self.consuming:
            self._return_now()

    @property
    def gave_back(self) -> bool:
        """True once anything was given back: only a cancel sends it."""
        return self._gave_back

    def _return_now(self) -> None:
        tags, self._to_return = self._to_return, []
        if not self.channel.is_open:
            return
        self._settle(tags)
        for tag in tags:
            self.channel.raw.basic_nack(tag, requeue=True)
            self.channel.note_settled()
        self._close_when_settled()

    def _close_when_settled(self) -> None:
        if self._cancelled and not self.unsettled and self.channel.is_open:
            self._close()

    def _close(self) -> None:
        self._cancelled = False
        self._closing = asyncio.get_running_loop().create_task(self.channel.close())

    def _settle(self, tags: Iterable[int]) -> int:
        """Note that these are settled; returns the frontier."""
        before = len(self._settled_beyond)
        self._settled_beyond.update(tags)
        self.unsettled -= len(self._settled_beyond) - before
        while self._frontier in self._settled_beyond:
            self._settled_beyond.remove(self._frontier)
            self._frontier += 1
        return self._frontier

    def _deliver(self, _channel: object, method: Any, properties: pika.BasicProperties, body: bytes) -> None:
        self.unsettled += 1
        self._on_delivery(self, method.delivery_tag, method.redelivered, properties, body)

    def _on_server_cancel(self, _frame: Any) -> None:
        # The queue was deleted, or a delivery was older than the broker's consumer_timeout: such ones go to others by
        # now, and an acknowledgement of theirs would be ignored without a word. Nobody says which, so all goes back, as
        # older brokers do by closing the channel; what has not started goes back unharmed before that.
        self._taken_from_us = True
        self._end(ConsumerCancelled(0, f"the broker cancelled the consumer of {self.queue}"))
        self.channel.note_settled()
        self._close()
        self._return_now()

    def _end(self, why: ChannelLost) -> None:
        self.consuming = False
        self._cancelled = True
        if not self.lost.done():
            self.lost.set_result(why)


async def in_words(connection: Connection, queue: str, error: Exception) -> str:
    """Why a queue is not consumed any more, and what to do about it."""
    if isinstance(error, QctlError):
        return f"{error.message}. {error.hint}" if error.hint else error.message
    if not isinstance(error, ChannelLost) or not connection.is_open:
        return str(error)
    if error.code == topology.ACCESS_REFUSED:
        return f"queue {queue} may not be consumed: {error.text}"
    if error.code == topology.PRECONDITION_FAILED and "timed out" in error.text:
        return f"the broker took the deliveries of queue {queue} back: {_OVER_TIME} ({error.text})"
    if isinstance(error, ConsumerCancelled):
        await asyncio.wait({connection.closed}, timeout=DELETED_AFTER_S)
        try:
            there = await topology.exists(connection, topology.Existing(queue))
        except ChannelLost:
            return str(error)
        return f"{error}: {_OVER_TIME}, or the queue's node went away" if there else f"queue {queue} was deleted"
    return str(error)


_OVER_TIME = (
    "a task ran longer than its consumer_timeout and is delivered again; raise consumer_timeout on the broker above "
    "the consumer's `timeout`, or shorten that"
)
