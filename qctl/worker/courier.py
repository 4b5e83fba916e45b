"""The answers of a worker process: on a channel of their own, so that what goes wrong with them costs no task anything.

What cannot be sent at once is dropped: an answer that comes later is of no use to anybody.
"""

from __future__ import annotations

import asyncio
import logging

from qctl.broker import topology
from qctl.broker.message import Outgoing
from qctl.broker.publisher import Published, Publisher
from qctl.broker.session import ChannelLost, Connection
from qctl.errors import QctlError

log = logging.getLogger(__name__)

#: The channel was lost alone, or could not be had: try again so much later.
REOPEN_S = 5.0


class Courier:
    """Use from the loop's thread."""

    def __init__(self) -> None:
        self._publisher: Publisher | None = None
        self._told = ""

    @property
    def username(self) -> str:
        """Who it answers as; "" while it cannot."""
        return self._publisher.channel.connection.username if self._publisher else ""

    async def open(self, connection: Connection) -> None:
        """Answer on this connection from now on, if the broker lets us. Raises ChannelLost when it is gone."""
        self._publisher = None
        try:
            await topology.ensure(connection, topology.replies())
            self._publisher = await Publisher.open(connection)
        except (ChannelLost, QctlError) as error:
            if not connection.is_open:
                raise
            self._tell(str(error))

    async def keep_open(self, connection: Connection) -> None:
        """Open it again when it is lost alone, while the connection lasts."""
        while True:
            if self._publisher is not None:
                await asyncio.wait({self._publisher.channel.closed})
                self._tell(str(self._publisher.channel.closed.result()))
                self._publisher = None
            done, _ = await asyncio.wait({connection.closed}, timeout=REOPEN_S)
            if done:
                return
            if not connection.blocked:  # a broker in alarm opens no channel
                await self.open(connection)

    def close(self) -> None:
        """The connection is gone."""
        self._publisher = None

    def send(self, outgoing: Outgoing) -> str:
        """Send it, or say why it was dropped; "" when it is on its way."""
        publisher = self._publisher
        if publisher is None:
            return "there is no channel to send it on"
        if publisher.channel.connection.blocked:
            return "the broker is blocked (memory or disk alarm)"
        if not publisher.room:
            return "the broker is slow to take them"
        try:
            publisher.send(outgoing, _note)
        except (ChannelLost, ValueError) as error:
            return str(error)
        return ""

    def _tell(self, why: str) -> None:
        if why != self._told:
            self._told = why
            log.warning("control events are obeyed but not answered: %s", why)


def _note(fate: Published) -> None:
    if fate is not Published.CONFIRMED:
        log.debug("an answer was dropped: %s", fate.value)  # who asked has gone
