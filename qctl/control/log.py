"""Following the control log from a proof that it was read to its end.

The proof is an event of one's own: whatever was confirmed before it was published stands before it in the log. Nothing
else proves it: the broker's message count of a stream lags by seconds and by thousands. A log that cannot be read, or
whose beginning is gone, is an error and never taken for an empty one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from qctl.broker import topology
from qctl.broker.message import PERSISTENT, Outgoing, Properties
from qctl.broker.publisher import Published, Publisher
from qctl.broker.session import Channel, ChannelLost, Connection
from qctl.control.desired import Desired, Folding, Own
from qctl.control.event import Command, Event, Hello, Record
from qctl.control.following import NOTHING, Following, Known
from qctl.control.stream import STALL_S, Elsewhere, Track, cut_off_behind, still_has, unreadable
from qctl.errors import ControlLogError

__all__ = ["Heard", "Known", "Live", "introduce"]

log = logging.getLogger(__name__)

#: How often it is said that it is still being read. Without a new entry for STALL_S it is given up; while they come it
#: goes on. 100,000 take 4 to 7 s.
SAY_S = 10.0
#: The entry to go on from is there already: when it does not come within this, the log is another, shorter one.
RESUME_S = 2.0
#: How often it is looked at whether the broker blocks what we publish.
LOOK_S = 0.5

BLOCKED = "the broker takes no events (memory or disk alarm), so it cannot be known what holds"


@dataclass(frozen=True, slots=True)
class Heard:
    """An entry that came after one's own hello.

    command: None for a hello, and for what is no event; refused: why it is not obeyed, "" if it is; desired: after it.
    """

    record: Record
    command: Command | None
    refused: str
    desired: Desired


class Live:
    """The control log, followed: first up to one's own hello, then from there on. For the loop's thread.

    known: what it says so far. lost: done, with the reason, once the log cannot be followed any more; what it says is
    not known then. `close` alone does not make it done.
    """

    def __init__(
        self,
        connection: Connection,
        channel: Channel,
        own: str,
        after: Known,
        folding: Folding,
    ) -> None:
        """own: the id of the hello; after: the entry to go on from; folding: of what holds at the beginning."""
        self.known = after
        self.lost: asyncio.Future[ChannelLost | ControlLogError] = asyncio.get_running_loop().create_future()
        #: Done when the hello has come, or when it cannot come.
        self.met: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._connection = connection
        self._own = own
        self._on_heard: Callable[[Heard], None] | None = None
        self._checking: asyncio.Task[None] | None = None
        self.following = Following(
            channel,
            Track(after if after.offset >= 0 else None, own=own),
            folding,
            on_event=self._on_event,
            on_end=self._on_end,
        )

    @property
    def count(self) -> int:
        """Entries that came so far."""
        return self.following.stream.count

    def drop_ended(self) -> Desired:
        """What holds now, after something may have ended by itself. `known` has it too."""
        self.known = replace(self.known, desired=self.following.desired())
        return self.known.desired

    async def close(self) -> None:
        """Follow it no more. Never raises."""
        if self._checking is not None:
            self._checking.cancel()
        await self.following.close()

    async def begin(self) -> None:
        """Have the log delivered. Raises ChannelLost."""
        await self.following.stream.begin(self.known.offset if self.known.offset >= 0 else "first")

    def go_on(self, on_heard: Callable[[Heard], None]) -> None:
        """From now on, tell of every entry behind the hello; not before the next turn of the loop."""
        self._on_heard = on_heard
        self.following.on_gap = self._on_gap
        asyncio.get_running_loop().call_soon(self.following.stream.release)

    def fail(self, why: str | ChannelLost) -> None:
        """It cannot be followed."""
        self.following.fail(why)

    def _on_end(self, why: ChannelLost | ControlLogError | Elsewhere) -> None:
        if not self.met.done():
            self.met.set_exception(unreadable(why) if isinstance(why, ChannelLost) else why)
            self.met.exception()  # it is no news if nobody asks any more
        elif not self.lost.done() and not isinstance(why, Elsewhere):
            self.lost.set_result(why)

    def _on_event(self, record: Record, event: Event | None, refused: str) -> None:
        if self._on_heard is not None:
            if self._advance(record):
                command = event if isinstance(event, Command) else None
                self._on_heard(Heard(record, command, refused, self.known.desired))
        elif isinstance(event, Hello) and event.nonce == self._own and self._advance(record):
            # What comes behind it waits until somebody listens.
            self.following.stream.hold()
            self.met.set_result(None)

    def _advance(self, record: Record) -> bool:
        desired, before = self.following.desired(), self.known.desired
        same = desired.pauses is before.pauses and desired.overrides is before.overrides
        if not same and (excess := desired.excess()):
            hint = "`qctl resume` and `qctl quota clear` what need not hold any more."
            self.following.fail(ControlLogError(f"the control log cannot be obeyed: {excess}", hint=hint))
            return False
        # An entry without an id is no place to find this log again by.
        place = record if record.id else self.known
        self.known = Known(place.offset, place.id, desired)
        return True

    def _on_gap(self, record: Record) -> bool:
        """Go on behind a gap only when it is known that nothing was cut off there."""
        self.following.stream.hold()
        self._checking = asyncio.get_running_loop().create_task(self._check(record))
        return True

    async def _check(self, record: Record) -> None:
        try:
            await assert_whole(self._connection, self.following)
        except (ControlLogError, ChannelLost) as error:
            self.following.fail(error if isinstance(error, ControlLogError) else unreadable(error))
            return
        self.following.take(record)
        if not self.lost.done():
            self.following.stream.release()


async def assert_whole(connection: Connection, following: Following) -> None:
    """Return if nothing was cut off where places were passed over. Raises ControlLogError, ChannelLost."""
    if following.gap is None:
        return
    if not await still_has(connection, following.gap):
        raise cut_off_behind(following.gap)
    following.gap = None


async def introduce(
    connection: Connection,
    publisher: Publisher,
    hello: Hello,
    *,
    username: str,
    operators: frozenset[str] | None = None,
    known: Known | None = None,
    on_delay: Callable[[str], None] = lambda _why: None,
    on_heard: Callable[[Heard], None] = lambda _heard: None,
) -> Live:
    """Publish `hello` and read the log until it comes by, then follow it: nothing is missed between.

    publisher: on another connection than the one that reads, which is then never blocked as a publisher. username: who
    publishes; the broker verifies it. operators: who is obeyed, None for whoever may publish. known: go on from there,
    if the log still has it; if it is another log, what was paused and set stays so. on_delay(why) is called when an
    alarm of the broker or the length of the log delays it, for as long as it takes. on_heard is called for every entry
    behind the hello, in order, from the loop, not before this has returned. Raises ControlLogError, ChannelLost, and as
    topology.ensure does.
    """
    await topology.ensure(connection, topology.control_log())
    started_s = time.monotonic()
    fate: asyncio.Future[Published] = asyncio.get_running_loop().create_future()
    sent = False
    after = known or NOTHING
    start = after.desired
    while True:
        folding = Folding(start, operators, Own(hello.host, username))
        live = Live(connection, await connection.channel(), hello.nonce, after, folding)
        try:
            await live.begin()
            if not sent:
                sent = True
                publisher.send(_outgoing(hello, username), fate.set_result)
            await _meet(live, fate, publisher, on_delay)
            await assert_whole(connection, live.following)
        except Elsewhere:
            log.warning("the control log is another one than before; reading it from its beginning")
            await live.close()
            # Who commanded what is in the log that is gone; that it holds is not to be forgotten with it.
            start = after.desired.carried_over()
            after = NOTHING
            continue
        except BaseException as error:
            await live.close()
            if isinstance(error, ChannelLost) and connection.is_open:
                raise unreadable(error) from error
            raise
        refused = f", ignored {live.following.refused}" if live.following.refused else ""
        log.debug("control log: read %d entries in %.3f s%s", live.count, time.monotonic() - started_s, refused)
        live.go_on(on_heard)
        return live


def _outgoing(hello: Hello, username: str) -> Outgoing:
    properties = Properties(
        message_id=hello.nonce,
        user_id=username,
        type="hello",
        content_type="application/json",
        delivery_mode=PERSISTENT,
        timestamp=int(time.time()),
    )
    return Outgoing(topology.HELLO, "", hello.body(), properties)


async def _meet(
    live: Live, fate: asyncio.Future[Published], publisher: Publisher, on_delay: Callable[[str], None]
) -> None:
    """Wait for the hello to come by; silence is bounded, except while the broker is blocked."""
    quiet_s, count, since_said_s = 0.0, 0, 0.0
    while not live.met.done():
        waiting: set[asyncio.Future[Any]] = {live.met} if fate.done() else {live.met, fate}
        await asyncio.wait(waiting, timeout=LOOK_S, return_when=asyncio.FIRST_COMPLETED)
        if fate.done() and fate.result() is not Published.CONFIRMED:
            live.fail(publisher.why_lost or _not_taken(fate.result()))
        if publisher.channel.connection.blocked:
            on_delay(BLOCKED)
            quiet_s = 0.0
            continue
        quiet_s = quiet_s + LOOK_S if count == live.count else 0.0
        count, since_said_s = live.count, since_said_s + LOOK_S
        if since_said_s >= SAY_S:
            since_said_s = 0.0
            on_delay(f"reading the control log, {count} entries so far")
        if live.known.offset >= 0 and count == 0 and quiet_s >= RESUME_S:
            raise Elsewhere
        if quiet_s >= STALL_S:
            live.fail(f"nothing came for {STALL_S:g} s, after {count} entries, and the end is not reached")
    return live.met.result()


def _not_taken(fate: Published) -> str:
    if fate is Published.UNROUTABLE:
        return f"the hello reached no queue: exchange {topology.HELLO} is not bound to {topology.CONTROL_LOG}"
    return f"the hello was not taken: {fate.value}"
