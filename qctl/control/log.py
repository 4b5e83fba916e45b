"""Reading the control log up to a proof that it was read to its end.

The proof is an event of one's own: whatever was confirmed before it was published stands before it in the log. Nothing
else proves it: the broker's message count of a stream lags by seconds and by thousands. A log that cannot be read, or
whose beginning is gone, is an error and never taken for an empty one.

Where a segment of the stream begins the broker writes entries of its own, which have a place and are never delivered.
Retention cuts off whole segments, and only from the front: so a place that was passed over was the broker's if, once
the end is reached, the log still begins where the reading began.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from qctl.broker import topology
from qctl.broker.message import PERSISTENT, Outgoing, Properties, text
from qctl.broker.publisher import Published, Publisher
from qctl.broker.session import Channel, ChannelLost, Connection
from qctl.control.desired import Desired, fold
from qctl.control.event import Event, Hello, NotUnderstood, Record, read
from qctl.errors import ControlLogError

log = logging.getLogger(__name__)

#: Entries on their way to us, and how many of them are acknowledged at once; the stream goes on with each.
PREFETCH = 500
ACK_EVERY = 100
#: Without a new entry for this long reading is given up; while they come it goes on. 100,000 take 4 to 7 s.
STALL_S = 15.0
#: How often it is said that it is still being read.
SAY_S = 10.0
#: The entry to go on from is there already: when it does not come within this, the log is another, shorter one.
RESUME_S = 2.0
#: Hosts that ever said hello; what each costs is kept in memory by every process.
MAX_HOSTS = 100_000
#: Events are folded in so large portions: each copies all hosts.
FOLDED_AT_ONCE = 1_000
#: How often it is looked at whether the broker blocks what we publish.
LOOK_S = 0.5

BLOCKED = "the broker takes no events (memory or disk alarm), so it cannot be known what holds"


@dataclass(frozen=True, slots=True)
class Known:
    """What the log says up to and with the event `id` at `offset`."""

    offset: int
    id: str
    desired: Desired


class _Elsewhere(Exception):
    """The event to go on from is not where it was: another log, to be read from its beginning."""


class _Reading:
    """One pass over the log on a channel of its own; `end` is done when `hello` was met, or when that cannot be.

    hello None: it is done with the first entry, which is where it should be.
    """

    def __init__(self, channel: Channel, hello: Hello | None, after: Known | None) -> None:
        self.channel = channel
        self.count = 0
        self.ignored = 0
        self.passed_over = 0
        self.resumes = after is not None
        self.end: asyncio.Future[Known] = asyncio.get_running_loop().create_future()
        self._hello = hello
        self._after = after
        self._next = after.offset if after else 0
        self._begun = False
        self._desired = after.desired if after else Desired()
        self._unfolded: list[Event] = []
        channel.raw.add_on_cancel_callback(lambda _frame: self.fail("the broker ended the reading"))
        channel.closed.add_done_callback(lambda closed: self.fail(closed.result()))

    async def begin(self) -> None:
        """Have the log delivered from its first entry, or from the one to go on from. Raises ChannelLost."""
        await self.channel.call("basic_qos", prefetch_count=PREFETCH)
        await self.channel.call(
            "basic_consume",
            queue=topology.CONTROL_LOG,
            on_message_callback=self._deliver,
            arguments={"x-stream-offset": self._after.offset if self._after else "first"},
        )

    def fail(self, why: str | ChannelLost | Exception) -> None:
        """The end cannot be reached."""
        if not self.end.done():
            self.end.set_exception(_unreadable(why) if isinstance(why, str | ChannelLost) else why)
            self.end.exception()  # it is no news if nobody asks any more

    def _deliver(self, _channel: object, method: Any, properties: Properties, body: bytes) -> None:
        self.count += 1
        if self.count % ACK_EVERY == 0 and self.channel.is_open:
            self.channel.raw.basic_ack(method.delivery_tag, multiple=True)
        if self.end.done():
            return
        headers: Mapping[str, Any] = properties.headers or {}
        offset = headers.get("x-stream-offset")
        if not isinstance(offset, int):
            self.fail("an entry came without its place")
            return
        user = text(properties.user_id)
        self._take(Record(offset, text(method.exchange), text(properties.message_id), user, body))

    def _take(self, record: Record) -> None:
        if self._begun:
            if record.offset < self._next:
                self.fail(f"entry {record.offset} came after entry {self._next - 1}")
                return
        elif not self._begins_with(record):
            return
        is_known, self._begun = not self._begun and self._after is not None, True
        self.passed_over += record.offset - self._next
        self._next = record.offset + 1
        if self._hello is None:
            self.end.set_result(Known(record.offset, record.id, self._desired))
        elif not is_known:
            self._fold(record, self._hello)

    def _begins_with(self, record: Record) -> bool:
        """Whether a first entry is where the reading is to begin: at the log's beginning, or at what is known."""
        if self._after is None:
            if record.offset:
                self.fail(_cut_off(record.offset))
            return not record.offset
        if record.offset < self._next and not (self._hello and record.id == self._hello.nonce):
            return False  # the broker may begin a little earlier than asked
        is_same = (record.offset, record.id) == (self._after.offset, self._after.id)
        if not is_same:
            self.fail(_Elsewhere())
        return is_same

    def _fold(self, record: Record, hello: Hello) -> None:
        try:
            event = read(record)
        except NotUnderstood as why:
            if not self.ignored:
                log.warning("the control log has an entry that is ignored: offset=%d: %s", record.offset, why)
            self.ignored += 1
            return
        self._unfolded.append(event)
        is_end = event.nonce == hello.nonce
        if is_end or len(self._unfolded) >= FOLDED_AT_ONCE:
            self._desired = fold(self._desired, self._unfolded)
            self._unfolded.clear()
        if len(self._desired.reigns) > MAX_HOSTS:
            self.fail(f"it names more than {MAX_HOSTS} hosts")
        elif is_end:
            self.end.set_result(Known(record.offset, record.id, self._desired))


def _cut_off(first: int) -> ControlLogError:
    return ControlLogError(
        f"the control log begins at entry {first}: what came before was cut off, so it cannot be known what holds",
        hint=f"Clear the policy that limits {topology.CONTROL_LOG}, then delete that stream: it is declared anew, and "
        "what was commanded before must be commanded again.",
    )


def _unreadable(why: str | ChannelLost) -> ControlLogError:
    hint = "Nothing is consumed until it can be read."
    if isinstance(why, ChannelLost):
        if why.code == topology.ACCESS_REFUSED:
            hint = f"Its user needs to write {topology.HELLO} and to read {topology.CONTROL_LOG}."
        elif why.code == topology.PRECONDITION_FAILED:
            hint = "The node may have no replica of it; another node of `broker.amqp` is tried."
    return ControlLogError(f"the control log cannot be read: {why}", hint=hint)


async def introduce(
    connection: Connection,
    publisher: Publisher,
    hello: Hello,
    *,
    username: str,
    known: Known | None = None,
    on_delay: Callable[[str], None] = lambda _why: None,
) -> Known:
    """Publish `hello` and read the log until it comes by; what the log says until then.

    publisher: on another connection than the one that reads, which is then never blocked as a publisher. username: who
    publishes; the broker verifies it. known: go on from there, if the log still has it. on_delay(why) is called when
    an alarm of the broker or the length of the log delays it, for as long as it takes. Raises ControlLogError,
    ChannelLost, and as topology.ensure does.
    """
    await topology.ensure(connection, topology.control_log())
    started_s = time.monotonic()
    fate: asyncio.Future[Published] = asyncio.get_running_loop().create_future()
    sent = False
    for after in (known, None) if known else (None,):
        reading = _Reading(await connection.channel(), hello, after)
        try:
            await reading.begin()
            if not sent:
                sent = True
                publisher.send(_outgoing(hello, username), fate.set_result)
            found = await _end(reading, fate, publisher, on_delay)
            if reading.passed_over:
                await _still_begins(connection, after)
        except ChannelLost as error:
            if not connection.is_open:
                raise
            raise _unreadable(error) from error
        except _Elsewhere:
            log.warning("the control log is another one than before; reading it from its beginning")
            continue
        finally:
            await reading.channel.close()
        ignored = f", ignored {reading.ignored}" if reading.ignored else ""
        log.debug("control log: read %d entries in %.3f s%s", reading.count, time.monotonic() - started_s, ignored)
        return found
    raise AssertionError("a reading from the beginning cannot be elsewhere")


async def _still_begins(connection: Connection, after: Known | None) -> None:
    """Return if the log has the entry with which a reading began: nothing was cut off behind it.

    Raises ControlLogError, ChannelLost, _Elsewhere.
    """
    first = _Reading(await connection.channel(), None, after)
    try:
        await first.begin()
        await asyncio.wait_for(asyncio.shield(first.end), STALL_S)
    except TimeoutError:
        raise _unreadable(f"its beginning did not come within {STALL_S:g} s") from None
    finally:
        await first.channel.close()


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


async def _end(
    reading: _Reading, fate: asyncio.Future[Published], publisher: Publisher, on_delay: Callable[[str], None]
) -> Known:
    """Wait for the end of a reading; silence is bounded, except while the broker is blocked."""
    quiet_s, count, since_said_s = 0.0, 0, 0.0
    while not reading.end.done():
        waiting: set[asyncio.Future[Any]] = {reading.end} if fate.done() else {reading.end, fate}
        await asyncio.wait(waiting, timeout=LOOK_S, return_when=asyncio.FIRST_COMPLETED)
        if fate.done() and fate.result() is not Published.CONFIRMED:
            reading.fail(publisher.why_lost or _not_taken(fate.result()))
        if publisher.channel.connection.blocked:
            on_delay(BLOCKED)
            quiet_s = 0.0
            continue
        quiet_s = quiet_s + LOOK_S if count == reading.count else 0.0
        count, since_said_s = reading.count, since_said_s + LOOK_S
        if since_said_s >= SAY_S:
            since_said_s = 0.0
            on_delay(f"reading the control log, {count} entries so far")
        if reading.resumes and count == 0 and quiet_s >= RESUME_S:
            reading.fail(_Elsewhere())
        elif quiet_s >= STALL_S:
            reading.fail(f"nothing came for {STALL_S:g} s, after {count} entries, and the end is not reached")
    return reading.end.result()


def _not_taken(fate: Published) -> str:
    if fate is Published.UNROUTABLE:
        return f"the hello reached no queue: exchange {topology.HELLO} is not bound to {topology.CONTROL_LOG}"
    return f"the hello was not taken: {fate.value}"
