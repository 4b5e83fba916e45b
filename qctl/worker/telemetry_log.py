"""A host's entries in the telemetry log: that it lives, and how it is, every half minute; and its goodbye.

What lies there is history and never a reason to wait: while the broker takes nothing, entries are left out.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import replace

from qctl.broker import topology
from qctl.broker.message import TRANSIENT, Outgoing, Properties
from qctl.broker.publisher import Published, Publisher
from qctl.broker.session import ChannelLost, Connection
from qctl.control.reading import Goodbye, HostReading, Reading
from qctl.control.reading_parse import MAX_ENTRY_BYTES
from qctl.errors import QctlError

log = logging.getLogger(__name__)

#: From one entry to the next at most; a little less each time, so that the hosts of a fleet do not keep step.
PERIOD_S = 30.0
JITTER = 0.1
#: The first entry after a connect.
FIRST_S = (0.5, 2.0)
#: What is lost without its goodbye is a little precision of `qctl status`.
GOODBYE_S = 1.0


class TelemetryLog:
    """The entries of one host, on whichever connection there is. For the loop's thread."""

    def __init__(self, host: str, reading: Callable[[], HostReading]) -> None:
        """reading: of the host as it is now."""
        self._host = host
        self._reading = reading
        self._publisher: Publisher | None = None
        self._told = False

    async def keep(self, connection: Connection) -> None:
        """Write an entry now and then, until cancelled or until the connection is lost."""
        try:
            try:
                await topology.ensure(connection, topology.telemetry())
            except QctlError as error:
                self._tell_once(f"{error.message}. {error.hint}")  # it may be there all the same, made by somebody else
            while connection.is_open:
                self._publisher = await Publisher.open(connection)
                await self._write(self._publisher)
        except ChannelLost as error:
            log.debug("no entries in the telemetry log for now: %s", error)
        finally:
            self._publisher = None

    async def _write(self, publisher: Publisher) -> None:
        """Until the channel is lost: an exchange deleted, a permission taken."""
        pause_s = random.uniform(*FIRST_S)  # noqa: S311  (jitter is no secret)
        while True:
            await asyncio.wait({publisher.channel.closed}, timeout=pause_s)
            if publisher.channel.closed.done():
                lost = publisher.channel.closed.result()
                if publisher.channel.connection.is_open:
                    self._tell_once(str(lost))
                    await asyncio.sleep(PERIOD_S)
                return
            pause_s = PERIOD_S * random.uniform(1 - JITTER, 1)  # noqa: S311
            # One that waits for its confirm, or for the end of an alarm, says as much as two.
            if not publisher.channel.connection.blocked and not publisher.unconfirmed:
                publisher.send(
                    self._outgoing("", topology.TELEMETRY_LOG, fitting(self._reading()).body()), self._told_of
                )

    async def say_goodbye(self) -> None:
        """All processes have ended in order: say so, if that takes no longer than GOODBYE_S."""
        publisher = self._publisher
        if publisher is None or not publisher.channel.is_open or publisher.channel.connection.blocked:
            return
        body = Goodbye(time.time(), self._host).body()
        try:
            async with asyncio.timeout(GOODBYE_S):
                # The log first: the exchange may be missing, which ends the channel.
                await publisher.publish(self._outgoing("", topology.TELEMETRY_LOG, body))
                await publisher.publish(self._outgoing(topology.TELEMETRY, f"host.{self._host}", body))
        except TimeoutError:
            log.debug("no goodbye: the broker does not answer in time")

    def _outgoing(self, exchange: str, routing_key: str, body: bytes) -> Outgoing:
        assert self._publisher is not None
        properties = Properties(
            message_id=secrets.token_hex(16),
            user_id=self._publisher.channel.connection.username,
            type="host",
            content_type="application/json",
            delivery_mode=TRANSIENT,
        )
        return Outgoing(exchange, routing_key, body, properties)

    def _told_of(self, fate: Published) -> None:
        if fate in (Published.UNROUTABLE, Published.REFUSED):
            why = "there is no such queue" if fate is Published.UNROUTABLE else fate.value
            self._tell_once(f"queue {topology.TELEMETRY_LOG}: {why}")

    def _tell_once(self, why: str) -> None:
        if not self._told:
            self._told = True
            log.warning("this host's readings are not kept in the telemetry log: %s", why)


def fitting(entry: HostReading) -> HostReading:
    """The entry, without the last processes when all together are too large for the log."""
    room = MAX_ENTRY_BYTES - len(replace(entry, processes=()).body())
    return replace(entry, processes=tuple(_within(entry.processes, room)))


def _within(readings: Iterable[Reading], room_bytes: int) -> Iterable[Reading]:
    for reading in readings:
        room_bytes -= len(reading.body()) + 1
        if room_bytes < 0:
            return
        yield reading
