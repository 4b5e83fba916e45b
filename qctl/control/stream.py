"""The control log as the broker delivers it: its entries in order, from a place that is known to be the right one.

Where a segment of the stream begins the broker writes entries of its own, which have a place and are never delivered.
Retention cuts off whole segments, and only from the front: so a place that was passed over was the broker's if the log
still has the entry right before it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from datetime import datetime
from enum import Enum
from typing import Any, Protocol

from qctl.broker import topology
from qctl.broker.message import Properties, text
from qctl.broker.session import Channel, ChannelLost, Connection
from qctl.control.event import MAX_EVENT_BYTES, Record
from qctl.errors import ControlLogError

#: Entries on their way to us, and how many of them are acknowledged at once; the stream goes on with each.
PREFETCH = 500
ACK_EVERY = 100
#: None waits longer for its acknowledgement: the broker ends a channel that keeps one for its consumer_timeout.
ACK_WITHIN_S = 1.0
#: A log that has an entry delivers it within this.
STALL_S = 15.0


class Place(Protocol):
    """An entry that is known: where it stands, and the id it has there."""

    @property
    def offset(self) -> int: ...
    @property
    def id(self) -> str: ...


class Elsewhere(Exception):
    """The entry to go on from is not where it was: another log, to be read from its beginning."""


class BeginningLost(ControlLogError):
    """The log begins later than it should, and nothing is known of what stood there."""


class Step(Enum):
    """What an entry is to the reading."""

    BEFORE = "before the place to go on from"
    NEXT = "the next one"
    BEHIND_A_GAP = "the next one, and places between were passed over"


class Track:
    """Whether the entries of one reading are the right ones: they begin where they should and come in order."""

    def __init__(self, after: Place | None, *, own: str = "", anywhere: bool = False) -> None:
        """after: the entry to go on from; None: from the log's beginning, which must be there unless `anywhere` does.

        own: the id of an entry that was published since, which may be all that another, shorter log has.
        """
        self._after = after
        self._own = own
        self._anywhere = anywhere
        self.last: Place | None = None

    def take(self, record: Record) -> Step:
        """Raises ControlLogError, Elsewhere."""
        if self.last is None:
            return self._first(record)
        if record.offset <= self.last.offset:
            raise unreadable(f"entry {record.offset} came after entry {self.last.offset}")
        is_next = record.offset == self.last.offset + 1
        self.last = record
        return Step.NEXT if is_next else Step.BEHIND_A_GAP

    def _first(self, record: Record) -> Step:
        if self._after is None:
            if record.offset and not self._anywhere:
                raise cut_off(record.offset)
            self.last = record
            return Step.NEXT
        if record.offset < self._after.offset and not (self._own and record.id == self._own):
            return Step.BEFORE  # the broker may begin a little earlier than asked
        if (record.offset, record.id) != (self._after.offset, self._after.id):
            raise Elsewhere
        self.last = record
        return Step.BEFORE


class Stream:
    """The log's entries on a channel of its own, handed on one after the other, unless it is held.

    What is held was not acknowledged: the broker sends no more than PREFETCH ahead.
    """

    def __init__(
        self, channel: Channel, on_record: Callable[[Record], None], on_lost: Callable[[str | ChannelLost], None]
    ) -> None:
        self.count = 0
        self._channel = channel
        self._on_record = on_record
        self._on_lost = on_lost
        self._held = False
        self._waiting: deque[Record] = deque()
        self._last_tag = 0
        self._unacknowledged = 0
        self._later: asyncio.TimerHandle | None = None
        channel.raw.add_on_cancel_callback(lambda _frame: on_lost("the broker ended the reading"))
        channel.closed.add_done_callback(lambda closed: on_lost(closed.result()))

    async def begin(self, at: int | str | datetime) -> None:
        """Have it delivered from an offset, from an instant, or from "first" or "last". Raises ChannelLost."""
        await self._channel.call("basic_qos", prefetch_count=PREFETCH)
        await self._channel.call(
            "basic_consume",
            queue=topology.CONTROL_LOG,
            on_message_callback=self._deliver,
            arguments={"x-stream-offset": at},
        )

    def hold(self) -> None:
        """Hand on nothing more until `release`."""
        self._held = True

    def release(self) -> None:
        """Hand on what was held, and go on."""
        self._held = False
        self._hand_on()

    async def close(self) -> None:
        """End it. Never raises."""
        self._held = True
        await self._channel.close()

    def _deliver(self, _channel: object, method: Any, properties: Properties, body: bytes) -> None:
        self.count += 1
        self._last_tag = method.delivery_tag
        self._unacknowledged += 1
        headers: Mapping[str, Any] = properties.headers or {}
        offset = headers.get("x-stream-offset")
        if not isinstance(offset, int):
            self._on_lost("an entry came without its place")
            return
        # What is too large to be an event need not be kept while it waits.
        record = Record(
            offset,
            text(method.exchange),
            text(properties.message_id),
            text(properties.user_id),
            body[: MAX_EVENT_BYTES + 1],
            text(properties.reply_to),
        )
        self._waiting.append(record)
        if not self._held:
            self._hand_on()

    def _hand_on(self) -> None:
        while self._waiting and not self._held:
            self._on_record(self._waiting.popleft())
        if self._unacknowledged >= ACK_EVERY:
            self._acknowledge()
        elif self._unacknowledged and self._later is None:
            self._later = asyncio.get_running_loop().call_later(ACK_WITHIN_S, self._acknowledge)

    def _acknowledge(self) -> None:
        if self._later is not None:
            self._later.cancel()
            self._later = None
        if self._unacknowledged and not self._held and self._channel.is_open:
            self._unacknowledged = 0
            self._channel.raw.basic_ack(self._last_tag, multiple=True)


async def peek(
    connection: Connection, at: int | str | datetime, *, least: int = 0, timeout_s: float = STALL_S
) -> Record | None:
    """The first entry from a place on, and not before offset `least`; None when none comes within the time.

    Raises ControlLogError when the log cannot be read, ChannelLost when the connection is gone.
    """
    found: asyncio.Future[Record] = asyncio.get_running_loop().create_future()

    def take(record: Record) -> None:
        if not found.done() and record.offset >= least:
            found.set_result(record)

    def fail(why: str | ChannelLost) -> None:
        if not found.done():
            found.set_exception(unreadable(why))
            found.exception()  # it is no news if nobody asks any more

    channel = await connection.channel()
    try:
        await Stream(channel, take, fail).begin(at)
        done, _ = await asyncio.wait({found}, timeout=timeout_s)
        return found.result() if done else None
    except ChannelLost as error:
        if not connection.is_open:
            raise
        raise unreadable(error) from error
    finally:
        await channel.close()


async def still_has(connection: Connection, place: Place) -> bool:
    """Whether an entry that was read is still there: then nothing was cut off behind it.

    Raises ControlLogError, ChannelLost.
    """
    found = await peek(connection, place.offset, least=place.offset)
    return found is not None and (found.offset, found.id) == (place.offset, place.id)


def cut_off(first: int) -> BeginningLost:
    """The log has no beginning, and nothing is known of what stood there."""
    return BeginningLost(
        f"the control log begins at entry {first}: what came before was cut off, so it cannot be known what holds",
        hint=f"Clear the policy that limits {topology.CONTROL_LOG}, then delete that stream: it is declared anew. "
        "Hosts that know from before what was commanded keep to it; all else must be commanded again.",
    )


def cut_off_behind(place: Place) -> ControlLogError:
    """The log was cut off faster than it was read."""
    return ControlLogError(
        f"the control log was cut off behind entry {place.offset} while it was read, so it cannot be known what holds",
        hint=f"Clear the policy that limits {topology.CONTROL_LOG}.",
    )


def unreadable(why: str | ChannelLost) -> ControlLogError:
    """It cannot be read at present."""
    hint = "Nothing is consumed until it can be read."
    if isinstance(why, ChannelLost):
        if why.code == topology.ACCESS_REFUSED:
            hint = f"Its user needs to write {topology.HELLO} and to read {topology.CONTROL_LOG}."
        elif why.code == topology.PRECONDITION_FAILED:
            hint = "The node may have no replica of it; another node of `broker.amqp` is tried."
    return ControlLogError(f"the control log cannot be read: {why}", hint=hint)
