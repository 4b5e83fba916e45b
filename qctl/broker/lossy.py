"""Publishing what may be lost: it is sent now or not at all, and nothing ever waits for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pika.exceptions

from qctl.broker import topology
from qctl.broker.message import Outgoing
from qctl.broker.session import Channel, Connection

#: Sent and not yet confirmed; a broker that takes no more of them would get what is old by then.
MAX_UNCONFIRMED = 3


class LossyPublisher:
    """Publishes on a channel of its own, so that what goes wrong with it harms nobody else. Use from the loop's thread.

    The confirms tell whether the broker reads at all: without them, what it does not read would pile up here.
    """

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self._sent = 0
        self._confirmed = 0

    @classmethod
    async def open(cls, connection: Connection, declarations: Sequence[topology.Declaration]) -> LossyPublisher:
        """A publisher for which all this exists. Raises as topology.ensure does."""
        await topology.ensure(connection, declarations)
        publisher = cls(await connection.channel())
        await publisher.channel.call("confirm_delivery", ack_nack_callback=publisher._on_confirm)
        return publisher

    @property
    def ready(self) -> bool:
        """True while something may be sent: the channel is there, and the broker takes what is published."""
        unconfirmed = self._sent - self._confirmed
        return self.channel.is_open and not self.channel.connection.blocked and unconfirmed < MAX_UNCONFIRMED

    def send(self, outgoing: Outgoing) -> bool:
        """Publish it, or drop it when not `ready`; whether it went out. Nobody need want it."""
        if not self.ready:
            return False
        try:
            self.channel.raw.basic_publish(
                outgoing.exchange, outgoing.routing_key, outgoing.body, outgoing.properties, mandatory=False
            )
        except (pika.exceptions.AMQPError, AssertionError, OSError):
            return False  # the channel was lost at this moment, of which `closed` tells
        self._sent += 1
        return True

    def _on_confirm(self, frame: Any) -> None:
        self._confirmed = max(self._confirmed, frame.method.delivery_tag)
