"""Confirmed, mandatory, pipelined publishing.

A message counts as published when the broker has confirmed it and has not returned it as unroutable. What was
unconfirmed when the connection went is reported as LOST: it may have arrived.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import Enum
from typing import Any

import pika.exceptions
from pika import spec

from qctl.broker.message import Outgoing, text
from qctl.broker.session import Channel, ChannelLost, Connection, describe

#: Most messages, and most bytes of bodies, sent and not yet confirmed; more would sit in this process's memory.
MAX_UNCONFIRMED = 1_000
MAX_UNCONFIRMED_BYTES = 16 << 20


class Published(Enum):
    """What became of a publish."""

    CONFIRMED = "confirmed"
    UNROUTABLE = "unroutable"  # confirmed, but no queue took it
    REFUSED = "refused by the queue"  # nacked: full, or its node is in trouble
    LOST = "connection lost before the confirm"


OnResult = Callable[[Published], None]


class Publisher:
    """Publishes on one confirm-mode channel. Use from the loop's thread.

    `room` tells whether another message may be sent now; whoever pipelines asks it before each `send`.
    """

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self._last_tag = 0
        self._first_unconfirmed = 1
        self._waiting: dict[int, tuple[Outgoing, OnResult]] = {}
        self._returned: set[int] = set()
        self._bytes = 0
        self.why_lost: ChannelLost | None = None

    @classmethod
    async def open(cls, connection: Connection) -> Publisher:
        """A publisher on a channel of its own. Raises ChannelLost."""
        channel = await connection.channel()
        publisher = cls(channel)
        channel.raw.add_on_return_callback(publisher._on_return)
        await channel.call("confirm_delivery", ack_nack_callback=publisher._on_confirm)
        channel.closed.add_done_callback(publisher._on_closed)
        return publisher

    @property
    def unconfirmed(self) -> int:
        """Messages sent and not yet confirmed."""
        return len(self._waiting)

    @property
    def room(self) -> bool:
        """True while another message may be sent without going past the bounds."""
        return len(self._waiting) < MAX_UNCONFIRMED and self._bytes < MAX_UNCONFIRMED_BYTES

    def send(self, outgoing: Outgoing, on_result: OnResult) -> None:
        """Publish, mandatory; `on_result` is called once, later, from the loop.

        Raises ChannelLost, or ValueError when the properties cannot be written in AMQP; nothing is sent then.
        """
        if not self.channel.is_open:
            raise self.why_lost or ChannelLost(0, "the channel is closed")
        try:
            self.channel.raw.basic_publish(
                outgoing.exchange, outgoing.routing_key, outgoing.body, outgoing.properties, mandatory=True
            )
        except (pika.exceptions.ShortStringTooLong, pika.exceptions.UnsupportedAMQPFieldException) as error:
            raise ValueError(f"not a message that AMQP can carry: {type(error).__name__}") from error
        except (pika.exceptions.AMQPError, AssertionError, OSError) as error:
            raise ChannelLost(*describe(error)) from error
        self._last_tag += 1
        self._bytes += len(outgoing.body)
        self._waiting[self._last_tag] = (outgoing, on_result)

    async def publish(self, outgoing: Outgoing) -> Published:
        """Publish one message and wait for its fate; the caller bounds the wait. LOST when the channel is gone."""
        result: asyncio.Future[Published] = asyncio.get_running_loop().create_future()
        try:
            self.send(outgoing, lambda fate: None if result.done() else result.set_result(fate))
        except ChannelLost:
            return Published.LOST
        return await result

    def _on_return(self, _channel: object, method: Any, properties: spec.BasicProperties, _body: bytes) -> None:
        # The broker returns a message before it confirms it, and does not say which publish it was. Where several that
        # wait have its id and its destination, all count as returned: rather one too many than one lost.
        returned = (text(properties.message_id), text(method.exchange), text(method.routing_key))
        for tag, (outgoing, _) in self._waiting.items():
            if returned == (text(outgoing.properties.message_id), outgoing.exchange, outgoing.routing_key):
                self._returned.add(tag)

    def _on_confirm(self, frame: Any) -> None:
        outcome = Published.CONFIRMED if isinstance(frame.method, spec.Basic.Ack) else Published.REFUSED
        last = frame.method.delivery_tag
        first = self._first_unconfirmed if frame.method.multiple else last
        for tag in range(first, last + 1):
            self._settle(tag, outcome)
        if frame.method.multiple:
            self._first_unconfirmed = last + 1

    def _settle(self, tag: int, outcome: Published) -> None:
        waiting = self._waiting.pop(tag, None)
        if waiting is None:
            return
        outgoing, on_result = waiting
        self._bytes -= len(outgoing.body)
        if self._returned and tag in self._returned:
            self._returned.remove(tag)
            outcome = Published.UNROUTABLE if outcome is Published.CONFIRMED else outcome
        on_result(outcome)

    def _on_closed(self, closed: asyncio.Future[ChannelLost]) -> None:
        self.why_lost = closed.result()
        for tag in list(self._waiting):
            self._settle(tag, Published.LOST)
