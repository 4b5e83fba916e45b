"""Reading the end of the telemetry log: what each host said of itself, every half minute, in the last minutes.

The proof that the end was reached is an entry of one's own, a mark: what was confirmed before stands before it. Where
none can be written (no permission, an alarm of the broker) the reading ends when nothing came for a moment, and the
result says so. What is said here is history; it proves nothing about pauses.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, TypeAlias

from qctl.broker import topology
from qctl.broker.message import PERSISTENT, Outgoing, Properties, text
from qctl.broker.publisher import Published, Publisher
from qctl.broker.session import Channel, ChannelLost, Connection
from qctl.control.event import NotUnderstood
from qctl.control.reading import Goodbye, HostReading, Mark
from qctl.control.reading_parse import parse_entry

log = logging.getLogger(__name__)

#: Bounds on one reading: entries and bytes that are kept (the newest), and the time it takes.
MAX_ENTRIES = 20_000
MAX_BYTES = 128 << 20
MOST_S = 10.0
#: Without a proof, the end is where nothing came for so long.
QUIET_S = 0.5
CLOSE_S = 1.0
#: The stream is asked for by the broker's clock: so much earlier than wanted, should it be behind ours.
SKEW_S = 60.0
#: Entries on their way to us. Many: while the broker blocks what we publish it reads no acknowledgement either.
PREFETCH = 10_000
ACK_EVERY = 2_500

Entry: TypeAlias = HostReading | Goodbye


@dataclass(frozen=True, slots=True)
class Tail:
    """The last entries of the telemetry log, oldest first.

    proven: nothing that was confirmed before was missed at the end; why: what keeps it from being proven, or from being
    read at all, "" when nothing does. omitted: older entries that were over the bounds. ignored: entries that were
    unsigned or could not be read.
    """

    entries: tuple[Entry, ...] = ()
    proven: bool = False
    why: str = ""
    omitted: int = 0
    ignored: int = 0

    def last(self) -> dict[str, Entry]:
        """The last entry of each host."""
        return {entry.host: entry for entry in self.entries}

    def before(self) -> dict[str, HostReading]:
        """The last readings of each host, whatever it said after them."""
        return {entry.host: entry for entry in self.entries if isinstance(entry, HostReading)}


class _Reading:
    """One pass over the end of the log; `end` is done when the mark has come, or when nothing more will."""

    def __init__(self, channel: Channel, nonce: str) -> None:
        self.end: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.count = 0
        self.omitted = 0
        self.ignored = 0
        self._signed: deque[tuple[str, bytes]] = deque()
        self._bytes = 0
        self._channel = channel
        self._mark = Mark(nonce).body()
        channel.closed.add_done_callback(lambda closed: self.finish(str(closed.result())))
        channel.raw.add_on_cancel_callback(lambda _frame: self.finish("the broker ended the reading"))

    def finish(self, why: str) -> None:
        """why: what keeps the end from being proven, "" when it is."""
        if not self.end.done():
            self.end.set_result(why)

    def deliver(self, _channel: object, method: Any, properties: Properties, body: bytes) -> None:
        """An entry of the log."""
        self.count += 1
        if self.count % ACK_EVERY == 0 and self._channel.is_open:
            self._channel.raw.basic_ack(method.delivery_tag, multiple=True)
        if self.end.done():
            return
        if body == self._mark:
            self.finish("")
        elif not (user := text(properties.user_id)):
            self.ignored += 1
        else:
            self._signed.append((user, body))
            self._bytes += len(body)
            while len(self._signed) > MAX_ENTRIES or self._bytes > MAX_BYTES:
                self._bytes -= len(self._signed.popleft()[1])
                self.omitted += 1

    def entries(self) -> Iterable[Entry]:
        """What was read and can be understood."""
        for user, body in self._signed:
            try:
                entry = parse_entry(body)
            except NotUnderstood as why:
                if not self.ignored:
                    log.debug("the telemetry log has an entry that is ignored: %s", why)
                self.ignored += 1
                continue
            if not isinstance(entry, Mark):
                yield replace(entry, user=user)


async def last_minutes(connection: Connection, seconds: float) -> Tail:
    """What the hosts have written to the telemetry log in the last `seconds`, and up to two minutes before.

    Declares nothing: without a log the result is empty and says why. Takes at most MOST_S. Raises ChannelLost when the
    connection is gone.
    """
    nonce = secrets.token_hex(16)
    channel = await connection.channel()
    reading = _Reading(channel, nonce)
    begin = datetime.fromtimestamp(time.time() - seconds - SKEW_S, UTC)
    try:
        await channel.call("basic_qos", prefetch_count=PREFETCH)
        await channel.call(
            "basic_consume",
            queue=topology.TELEMETRY_LOG,
            on_message_callback=reading.deliver,
            arguments={"x-stream-offset": begin},
        )
    except ChannelLost as error:
        if not connection.is_open:
            raise
        return Tail(why=_unreadable(error))
    marking = asyncio.ensure_future(_mark(connection, nonce))
    try:
        why = await _end(reading, marking)
    finally:
        marking.cancel()
        with suppress(TimeoutError):  # while the broker blocks the connection, it does not read this either
            await asyncio.wait_for(channel.close(), CLOSE_S)
    if not connection.is_open:
        raise connection.closed.result()
    entries = tuple(reading.entries())
    return Tail(entries, proven=not why, why=why, omitted=reading.omitted, ignored=reading.ignored)


async def _mark(connection: Connection, nonce: str) -> str:
    """Write the mark; why it could not be, "" when the broker has it."""
    if connection.blocked:
        return "the broker takes nothing at present (memory or disk alarm)"
    properties = Properties(
        user_id=connection.username, type="mark", content_type="application/json", delivery_mode=PERSISTENT
    )
    try:
        publisher = await Publisher.open(connection)
        fate = await publisher.publish(Outgoing("", topology.TELEMETRY_LOG, Mark(nonce).body(), properties))
        why = str(publisher.why_lost or fate.value)
        await publisher.channel.close()
    except ChannelLost as error:
        return str(error)
    return "" if fate is Published.CONFIRMED else f"no mark could be written to it: {why}"


async def _end(reading: _Reading, marking: asyncio.Future[str]) -> str:
    """Wait for the mark, or for a moment in which nothing comes; why the end is not proven, "" when it is."""
    deadline_s = time.monotonic() + MOST_S
    while not reading.end.done():
        count = reading.count
        await asyncio.wait({reading.end}, timeout=QUIET_S)
        if reading.end.done():
            break
        if time.monotonic() >= deadline_s:
            return f"its end was not reached within {MOST_S:g} s"
        confirmed = marking.done() and not marking.result()
        if count == reading.count and not confirmed:
            return marking.result() if marking.done() else "no mark could be written to it in time"
    return reading.end.result()


def _unreadable(error: ChannelLost) -> str:
    if error.code == topology.NOT_FOUND:
        return f"there is no stream {topology.TELEMETRY_LOG}; workers make it"
    if error.code == topology.ACCESS_REFUSED:
        return f"stream {topology.TELEMETRY_LOG} may not be read: {error.text}"
    return f"stream {topology.TELEMETRY_LOG} cannot be read: {error}"
