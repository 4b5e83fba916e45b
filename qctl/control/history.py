"""Reading the control log for commands: what holds, and who did what when. They publish nothing to prove the end."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime

from qctl.broker import topology
from qctl.broker.session import Channel, ChannelLost, Connection
from qctl.control.desired import Folding
from qctl.control.event import Event, NotUnderstood, Record, instant
from qctl.control.following import NOTHING, Following, Known
from qctl.control.log import RESUME_S, assert_whole
from qctl.control.stream import PREFETCH, STALL_S, Elsewhere, Track, peek, unreadable
from qctl.errors import ControlLogError

log = logging.getLogger(__name__)

#: A log that has nothing new for this long is taken to be at its end, once its last known entry has come.
QUIET_S = 0.3
#: A log that delivers nothing within this is taken to be empty.
EMPTY_S = 3.0
#: A log that is written to all the time is read this long past its last known entry.
MOST_S = 3.0
#: Entries that were read and not yet asked for.
MAX_AHEAD = PREFETCH


@dataclass(frozen=True, slots=True)
class Pass:
    """Some entries of the log, in order, and what it says after them.

    at_end: all that the log had in the beginning is known. again: it is the first one from the beginning, though what
    was known stands elsewhere: it is another log.
    """

    entries: tuple[Entry, ...]
    known: Known
    at_end: bool
    again: bool


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of the log. event: None when it is none; refused: why it is not obeyed, or no event; "" if neither."""

    record: Record
    event: Event | None
    refused: str


class _Reading:
    """A pass over the log from its beginning, or from what is known; what was read waits in `ahead`."""

    def __init__(
        self,
        connection: Connection,
        channel: Channel,
        operators: frozenset[str] | None,
        *,
        after: Known = NOTHING,
        anywhere: bool = False,
    ) -> None:
        self.ahead: deque[Entry] = deque()
        self.changed = asyncio.Event()
        self.failed: ChannelLost | ControlLogError | Elsewhere | None = None
        self._connection = connection
        self._after = after
        self.following = Following(
            channel,
            Track(after if after.offset >= 0 else None, anywhere=anywhere),
            Folding(after.desired, operators),
            on_event=self._on_event,
            on_end=self._on_end,
        )

    def _on_event(self, record: Record, event: Event | None, refused: str) -> None:
        self.ahead.append(Entry(record, event, refused))
        if len(self.ahead) >= MAX_AHEAD:
            self.following.stream.hold()
        self.changed.set()

    def _on_end(self, why: ChannelLost | ControlLogError | Elsewhere) -> None:
        self.failed = why
        self.changed.set()

    async def begin(self) -> None:
        """Have it delivered. Raises ControlLogError, ChannelLost."""
        try:
            await self.following.stream.begin(self._after.offset if self._after.offset >= 0 else "first")
        except ChannelLost as error:
            if not self._connection.is_open:
                raise
            raise unreadable(error) from error

    async def step(self, quiet_s: float, *, at_end: bool) -> tuple[Entry | None, float]:
        """The next entry, or None and for how long none came: QUIET_S more than `quiet_s`, bounded but at the end.

        Raises ControlLogError, ChannelLost, and Elsewhere when the entry to go on from does not come.
        """
        entry = await self._next()
        if entry is not None:
            return entry, 0.0
        quiet_s += QUIET_S
        if not at_end and self._after.offset >= 0 and self.following.last is None and quiet_s >= RESUME_S:
            raise Elsewhere
        if not at_end and quiet_s >= STALL_S:
            raise unreadable(f"nothing came for {STALL_S:g} s, and the end is not reached")
        return None, quiet_s

    def take_ahead(self) -> tuple[Entry, ...]:
        """What has come and waits."""
        found = tuple(self.ahead)
        self.ahead.clear()
        return found

    async def _next(self) -> Entry | None:
        if not self.ahead and self.failed is None:
            self.following.stream.release()
        if not self.ahead and self.failed is None:
            self.changed.clear()
            try:
                await asyncio.wait_for(self.changed.wait(), QUIET_S)
            except TimeoutError:
                return None
        if self.ahead:
            return self.ahead.popleft()
        assert self.failed is not None
        if isinstance(self.failed, ChannelLost) and self._connection.is_open:
            raise unreadable(self.failed)
        raise self.failed


async def read_to_end(
    connection: Connection, *, operators: frozenset[str] | None, until: str | None = None, known: Known | None = None
) -> Known:
    """What the log says. Declares it where it is missing.

    until: the id of an event that was published before: all up to it is known then. None: all that the broker delivers
    without a pause of QUIET_S, at least up to the first entry of the last chunk that it had in the beginning (a chunk
    goes out as a whole); an empty log is NOTHING. known: go on from there, if the log still has it; else what the log
    says counts, and nothing else. Raises ControlLogError, ChannelLost, and as topology.ensure does.
    """
    await topology.ensure(connection, topology.control_log())
    last = None if until else await peek(connection, "last", timeout_s=EMPTY_S)
    if last is None and until is None:
        return NOTHING
    for after in (known, NOTHING) if known and known.offset >= 0 else (NOTHING,):
        reading = _Reading(connection, await connection.channel(), operators, after=after)
        try:
            await reading.begin()
            await _read(reading, until, last)
            await assert_whole(connection, reading.following)
        except Elsewhere:
            log.info("the control log is another one than before; reading it from its beginning")
            continue
        finally:
            await reading.following.close()
        place = reading.following.last or NOTHING  # what was read ahead counts as well
        return Known(place.offset, place.id, reading.following.desired())
    raise AssertionError("a reading from the beginning cannot be elsewhere")


async def _read(reading: _Reading, until: str | None, last: Record | None) -> None:
    """Return when `until` has come, or `last` and what is close behind it."""
    quiet_s, most_s = 0.0, math.inf
    while time.monotonic() < most_s:
        place = reading.following.last
        is_end = last is not None and place is not None and place.offset >= last.offset
        if is_end and most_s == math.inf:
            most_s = time.monotonic() + MOST_S
        entry, quiet_s = await reading.step(quiet_s, at_end=is_end)
        if (entry is None and is_end) or (entry is not None and entry.record.id == until):
            return


async def follow(
    connection: Connection, *, operators: frozenset[str] | None, known: Known = NOTHING, anywhere: bool = False
) -> AsyncIterator[Pass]:
    """What the log says behind `known`, and what comes to it, for ever.

    anywhere: a log whose beginning was cut off is read from where it begins, and what it says is a part of what holds.
    Raises as read_to_end does.
    """
    await topology.ensure(connection, topology.control_log())
    last = await peek(connection, "last", timeout_s=EMPTY_S)
    places = (known, NOTHING) if known.offset >= 0 else (NOTHING,)
    for after in places:
        reading = _Reading(connection, await connection.channel(), operators, after=after, anywhere=anywhere)
        place: Record | Known = after
        is_end, told, quiet_s = last is None and after is NOTHING, False, 0.0
        again = after is not places[0]
        try:
            await reading.begin()
            while True:
                entry, quiet_s = await reading.step(quiet_s, at_end=is_end)
                found = () if entry is None else (entry, *reading.take_ahead())
                if found:  # an entry without an id is no place to find this log again by
                    place = next((one.record for one in reversed(found) if one.record.id), place)
                read = reading.following.last
                is_end = is_end or (last is not None and read is not None and read.offset >= last.offset)
                if is_end:
                    await assert_whole(connection, reading.following)
                if found or (is_end and not told):
                    told = is_end
                    desired = reading.following.desired()
                    yield Pass(found, Known(place.offset, place.id, desired), is_end, again)
                    again = False
        except Elsewhere:
            log.info("the control log is another one than before; reading it from its beginning")
        finally:
            await reading.following.close()


async def entries(
    connection: Connection, *, operators: frozenset[str] | None, since_s: float | None = None, follow: bool = False
) -> AsyncIterator[Entry]:
    """Every entry in order; those that came to the log since the wall-clock second `since_s`, with one.

    It is read from its beginning all the same: who is obeyed depends on what was before. A log whose beginning was cut
    off is read from where it begins, and the first entry's offset tells. follow: never ends. Takes no more from the
    broker than is asked for. Raises as read_to_end does.
    """
    await topology.ensure(connection, topology.control_log())
    last = await peek(connection, "last", timeout_s=EMPTY_S)
    if last is None and not follow:
        return
    first = None if since_s is None else await peek(connection, datetime.fromtimestamp(since_s, UTC), timeout_s=QUIET_S)
    reading = _Reading(connection, await connection.channel(), operators, anywhere=True)
    is_end, quiet_s = last is None, 0.0
    try:
        await reading.begin()
        while True:
            entry, quiet_s = await reading.step(quiet_s, at_end=is_end)
            if entry is None and is_end and not follow:
                return
            if entry is None:
                continue
            is_end = is_end or (last is not None and entry.record.offset >= last.offset)
            if since_s is None or (entry.record.offset >= first.offset if first else _claims(entry, since_s)):
                yield entry
    finally:
        await reading.following.close()


def _claims(entry: Entry, since_s: float) -> bool:
    """Whether an event says that it is not older; the broker, when asked, had none of that age."""
    at = entry.event.at if entry.event is not None else None
    try:
        return at is not None and instant(at, "at") >= since_s
    except NotUnderstood:
        return False
