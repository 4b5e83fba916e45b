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
        self._waiting: dict[int, tuple[str, int, OnResult]] = {}
        self._returned: set[str] = set()
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
        """Publish, mandatory; `on_result` is called once, later, from the loop. Raises ChannelLost, nothing sent."""
        if not self.channel.is_open:
            raise self.why_lost or ChannelLost(0, "the channel is closed")
        try:
            self.channel.raw.basic_publish(
                outgoing.exchange, outgoing.routing_key, outgoing.body, outgoing.properties, mandatory=True
            )
        except (pika.exceptions.AMQPError, AssertionError, OSError) as error:
            raise ChannelLost(*describe(error)) from error
        self._last_tag += 1
        size_bytes = len(outgoing.body)
        self._bytes += size_bytes
        self._waiting[self._last_tag] = (outgoing.properties.message_id, size_bytes, on_result)

    async def publish(self, outgoing: Outgoing, timeout_s: float) -> Published:
        """Publish one message and wait for its fate; LOST also when no confirm comes in time."""
        result: asyncio.Future[Published] = asyncio.get_running_loop().create_future()
        try:
            self.send(outgoing, lambda fate: None if result.done() else result.set_result(fate))
        except ChannelLost:
            return Published.LOST
        try:
            return await asyncio.wait_for(result, timeout_s)
        except TimeoutError:
            return Published.LOST

    def _on_return(self, _channel: object, _method: object, properties: spec.BasicProperties, _body: bytes) -> None:
        # The broker returns a message before it confirms it; every message of ours has an id to tell it by.
        self._returned.add(text(properties.message_id))

    def _on_confirm(self, frame: Any) -> None:
        outcome = Published.CONFIRMED if isinstance(frame.method, spec.Basic.Ack) else Published.REFUSED
        last = frame.method.delivery_tag
        first = self._first_unconfirmed if frame.method.multiple else last
        for tag in range(first, last + 1):
            waiting = self._waiting.pop(tag, None)
            if waiting is not None:
                self._settle(waiting, outcome)
        if frame.method.multiple:
            self._first_unconfirmed = last + 1

    def _settle(self, waiting: tuple[str, int, OnResult], outcome: Published) -> None:
        message_id, size_bytes, on_result = waiting
        self._bytes -= size_bytes
        if self._returned and outcome is Published.CONFIRMED and message_id in self._returned:
            self._returned.discard(message_id)
            outcome = Published.UNROUTABLE
        on_result(outcome)

    def _on_closed(self, closed: asyncio.Future[ChannelLost]) -> None:
        self.why_lost = closed.result()
        lost, self._waiting = self._waiting, {}
        for waiting in lost.values():
            self._settle(waiting, Published.LOST)
