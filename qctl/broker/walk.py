"""One pass over what waits in a queue, in order, each message once; all but what is taken goes back where it was.

A message that is returned is served before those behind it, so whoever wants to see them all has to hold them all. The
broker keeps what is held; here only the bodies are that nobody has decided on yet.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from qctl.broker.message import Properties
from qctl.broker.session import REPLY_TIMEOUT_S, SETTLED_BEFORE_CLOSE_S, Channel, ChannelLost, Connection, moved_or
from qctl.broker.subscription import Subscription
from qctl.errors import QctlError

#: The consumer tag, by which whoever lists consumers knows it.
TAG = "qctl.look"
#: Messages that one subscription may hold: the next one goes on behind them.
WINDOW = 500
#: Messages that are held in all.
MAX_HELD = 100_000
#: Subscriptions that hold some, each on a channel; a broker gives a connection 2,047.
MAX_STRETCHES = 1_000
#: However large the bodies are: fewer at once, and MAX_HELD of them would take more channels than there are.
LEAST_WINDOW = MAX_HELD // MAX_STRETCHES
#: Bytes of bodies that nobody has decided on yet; the bodies of further ones come again later.
MAX_WAITING_BYTES = 16 << 20
#: Returned so many at once: what a quorum queue's client keeps back beyond 32 it returns in any order.
MAX_RETURNS = 30
BACK_WITHIN_S = 0.2
#: A queue of which not a byte comes for so long has nothing left for us: others hold it, or have taken it.
PATIENCE_S = 2.0
#: What is known of messages that did not come.
NOT_COME = f"did not come within {PATIENCE_S:g} s: others have them in hand, or the line is slow"


async def waiting(connection: Connection, queue: str) -> int:
    """How many messages nobody has, said by the queue itself. Raises ChannelLost, 404 when there is no such queue."""
    channel = await connection.channel()
    frame = await channel.call("queue_declare", queue=queue, passive=True)
    await channel.close()
    return int(frame.method.message_count)


@dataclass(slots=True, eq=False)
class Met:
    """A message on the way. It is held until it is taken, or given back at the end."""

    stretch: _Stretch = field(repr=False)
    tag: int
    redelivered: bool
    properties: Properties = field(repr=False)
    body: bytes = field(repr=False)


@dataclass(slots=True, eq=False)
class _Stretch:
    """What one subscription has delivered. held: not taken. undecided: of these, on which nobody has decided."""

    subscription: Subscription
    held: set[int] = field(default_factory=set)
    undecided: int = 0
    late: list[int] = field(default_factory=list)


class Walk:
    """Walks once. Use from the loop's thread; `close` it whatever happens.

    `next` gives a message; the caller says `take` (it is acknowledged) or `keep` of each, at any time.
    """

    def __init__(self, connection: Connection, queue: str, *, expected: int, window: int = WINDOW) -> None:
        """expected: how many to meet; messages that come into the queue meanwhile stand behind them."""
        self._connection = connection
        self._queue = queue
        self._expected = expected
        self._window = max(1, min(window, expected))
        self._stretches: list[_Stretch] = []
        self._arrived: deque[Met] = deque()
        self._waiting_bytes = 0
        self._held = 0
        self._asking: Channel | None = None
        self._took = False
        self._unproven: list[Channel] = []
        self._seen_back = True
        self._moved = asyncio.Event()
        self._moved_s = time.monotonic()
        self.met = 0

    async def next(self) -> Met | None:
        """The next message; None when so many were met as expected, or nothing more comes.

        Raises ChannelLost, and QctlError when what is held takes up too many channels.
        """
        while True:
            if self._arrived:
                met = self._arrived.popleft()
                self._waiting_bytes -= len(met.body)
                self.met += 1
                return met
            if self.met >= self._expected or self._held >= MAX_HELD:
                return None
            if not self._stretches or self._is_full() or self._stretches[-1].subscription.cancelling:
                await self._go_on()
                continue
            # A large body comes in many pieces, and counts as a message with the last of them.
            silent_s = min(time.monotonic() - self._moved_s, self._connection.silent_s())
            left_s = PATIENCE_S - silent_s
            if self._stretches[-1].undecided:
                left_s = PATIENCE_S  # what is decided on next makes room
            elif left_s <= 0:
                return None
            await self._wait(left_s)

    def take(self, met: Met) -> None:
        """Acknowledge it: it leaves the queue. Too late once the walk is closed."""
        self._decide(met)
        if self._forget(met.stretch, [met.tag]):
            self._took = True
            channel = met.stretch.subscription.channel
            if not self._unproven or self._unproven[-1] is not channel:
                self._unproven = [*(each for each in self._unproven if each is not channel), channel]
            met.stretch.subscription.ack([met.tag])

    def keep(self, met: Met) -> None:
        """Leave it in the queue; it is held until the end, so that it does not come again."""
        self._decide(met)

    async def prove(self) -> None:
        """Wait until the broker has all that was taken. Raises ChannelLost: then it may have a part."""
        await asyncio.gather(*(self._prove(channel) for channel in self._unproven))
        self._unproven = []

    async def _prove(self, channel: Channel) -> None:
        """An answer on the same channel comes after the acknowledgements; a quorum queue then needs a moment more."""
        try:
            await channel.call("queue_declare", queue=self._queue, passive=True)
            await asyncio.wait({channel.closed}, timeout=SETTLED_BEFORE_CLOSE_S)
            await channel.call("queue_declare", queue=self._queue, passive=True)
        except ChannelLost as error:
            if error.code:
                raise
            # A subscription that was cancelled closes its channel with its last message.
            await asyncio.wait({channel.closed}, timeout=REPLY_TIMEOUT_S)
            if not self._connection.is_open or not channel.closed.done():
                raise

    async def close(self) -> None:
        """Give back what was not taken, in order, and end. Never raises."""
        try:
            if self._stretches:
                await self._stretches[-1].subscription.cancel()
        except ChannelLost:
            pass  # the broker has it all back
        for stretch in self._stretches:
            await self._give_back(stretch)
        channels = [stretch.subscription.channel for stretch in self._stretches]
        if self._asking is not None:
            channels.append(self._asking)
        if self._seen_back and not self._took:
            # The queue itself has said that it has it all: nothing is on its way, and a close need not wait for it.
            self._connection.settled_s = -math.inf
            for channel in channels:
                channel.settled_s = -math.inf
        await asyncio.gather(*(channel.close() for channel in channels))

    def _decide(self, met: Met) -> None:
        met.stretch.undecided -= 1
        self._note_moved()

    def _is_full(self) -> bool:
        """Whether the newest subscription gives no more: it has all that it may have, or bodies have to come again."""
        newest = self._stretches[-1]
        return not newest.undecided and (len(newest.held) >= newest.subscription.prefetch or bool(newest.late))

    async def _go_on(self) -> None:
        """Subscribe behind what is held."""
        if self._stretches:
            newest = self._stretches[-1]
            await newest.subscription.cancel()
            if newest.late:
                self._window = max(LEAST_WINDOW, self._window // 8)  # large bodies: so many at once are too many
                newest.subscription.give_back(self._forget(newest, newest.late))
                newest.late = []
            if self._arrived:
                return  # they came before cancel-ok
        self._stretches = [each for each in self._stretches if each.held]
        if len(self._stretches) >= MAX_STRETCHES:
            raise QctlError(
                f"{self._queue} was walked as far as {MAX_STRETCHES} channels go, with {self._held} messages held",
                hint="Take those at its head first: with `--all`, or with a filter that fits more of them.",
            )
        subscription = await Subscription.open(self._connection, self._queue, TAG, self._on_delivery)
        self._stretches.append(_Stretch(subscription))
        self._note_moved()
        await subscription.consume(self._window)

    async def _give_back(self, stretch: _Stretch) -> None:
        tags = self._forget(stretch, sorted(stretch.held))
        try:
            back = await self._ready()
            while tags:
                some, tags = tags[:MAX_RETURNS], tags[MAX_RETURNS:]
                stretch.subscription.give_back(some)
                back = await self._until_back(back + len(some))
        except ChannelLost:
            stretch.subscription.give_back(tags)  # does nothing where the broker has them back

    async def _until_back(self, count: int) -> int:
        """Wait until so many messages wait in the queue; not for long, since others may take them. How many do."""
        deadline_s = time.monotonic() + BACK_WITHIN_S
        while (ready := await self._ready()) < count:
            if time.monotonic() >= deadline_s:
                self._seen_back = False
                break
        return min(ready, count)

    async def _ready(self) -> int:
        if self._asking is None:
            self._asking = await self._connection.channel()
        frame = await self._asking.call("queue_declare", queue=self._queue, passive=True)
        return int(frame.method.message_count)

    def _forget(self, stretch: _Stretch, tags: Iterable[int]) -> list[int]:
        found = [tag for tag in tags if tag in stretch.held]
        stretch.held.difference_update(found)
        self._held -= len(found)
        return found

    def _on_delivery(
        self, subscription: Subscription, tag: int, redelivered: bool, properties: Properties, body: bytes
    ) -> None:
        stretch = self._stretches[-1]
        assert stretch.subscription is subscription
        stretch.held.add(tag)
        self._held += 1
        self._note_moved()
        if self._arrived and self._waiting_bytes + len(body) > MAX_WAITING_BYTES:
            stretch.late.append(tag)
            return
        stretch.undecided += 1
        self._waiting_bytes += len(body)
        self._arrived.append(Met(stretch, tag, redelivered, properties, body))

    def _note_moved(self) -> None:
        self._moved_s = time.monotonic()
        self._moved.set()

    async def _wait(self, timeout_s: float) -> None:
        self._moved.clear()
        lost = self._stretches[-1].subscription.lost
        await moved_or(self._moved, lost, timeout_s=timeout_s)
        if lost.done():
            raise lost.result()
