"""One queue consumed on one channel: subscribe with a fixed prefetch, cancel with proof, settle in batches."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import pika

from qctl.broker.session import Channel, ChannelLost, Connection

#: on_delivery(subscription, delivery tag, redelivered, properties, body); called on the loop's thread.
OnDelivery = Callable[["Subscription", int, bool, pika.BasicProperties, bytes], None]


class Subscription:
    """A consumer tag's life on one channel. Use from the loop's thread.

    What is given back before cancel-ok waits for it: a message returned earlier would come straight back.
    """

    def __init__(self, channel: Channel, queue: str, tag: str, on_delivery: OnDelivery) -> None:
        self.channel = channel
        self.queue = queue
        self.tag = tag
        self.prefetch = 0
        self.consuming = False
        self.unsettled = 0
        self._on_delivery = on_delivery
        self._frontier = 1  # every delivery tag below is settled
        self._settled_beyond: set[int] = set()
        self._to_return: list[int] = []
        channel.raw.add_on_cancel_callback(self._on_server_cancel)

    @classmethod
    async def open(cls, connection: Connection, queue: str, tag: str, on_delivery: OnDelivery) -> Subscription:
        """A subscription on a channel of its own, not consuming yet. Raises ChannelLost."""
        return cls(await connection.channel(), queue, tag, on_delivery)

    @property
    def is_open(self) -> bool:
        """False once the deliveries of this subscription can no longer be settled; the broker has them back."""
        return self.channel.is_open

    async def consume(self, prefetch: int) -> None:
        """Subscribe. The prefetch holds until the next call: the broker does not change it for a running consumer."""
        assert not self.consuming
        assert prefetch > 0
        await self.channel.call("basic_qos", prefetch_count=prefetch)
        self.prefetch = prefetch
        self.consuming = True
        await self.channel.call(
            "basic_consume", queue=self.queue, on_message_callback=self._deliver, consumer_tag=self.tag
        )

    async def cancel(self) -> None:
        """Cancel the tag and wait for cancel-ok; then nothing more arrives, and what was given back is returned."""
        assert self.consuming
        await self.channel.call("basic_cancel", consumer_tag=self.tag)
        self.consuming = False
        self.return_now()

    async def close(self) -> None:
        """Close the channel; the broker takes back what is unsettled."""
        await self.channel.close()

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

    def give_back(self, tags: Iterable[int]) -> None:
        """Return unharmed; goes out at once when cancelled, else with the next cancel-ok."""
        self._to_return.extend(tags)
        if not self.consuming:
            self.return_now()

        self.return_now()

    def return_now(self) -> None:
        """Return what was given back without waiting for a cancel."""
        tags, self._to_return = self._to_return, []
        if not self.is_open:
            return
        self._settle(tags)
        for tag in tags:
            self.channel.raw.basic_nack(tag, requeue=True)

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
        # The queue was deleted or its leader moved: a channel without a consumer would idle for ever.
        self.consuming = False
        if not self.channel.closed.done():
            self.channel.closed.set_result(ChannelLost(0, f"the broker cancelled the consumer of {self.queue}"))
            asyncio.get_running_loop().create_task(self._close_raw())

    async def _close_raw(self) -> None:
        if self.channel.raw.is_open:
            self.channel.raw.close()
