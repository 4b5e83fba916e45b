"""Take chosen dead letters out of their queue: replay them, each published and confirmed before it is acknowledged, or
drop them. True to the last about how many that were."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from qctl.broker import topology
from qctl.broker.connect import backoff, connect_within
from qctl.broker.login import login_for
from qctl.broker.message import Outgoing, revive, utc
from qctl.broker.publisher import Published, Publisher
from qctl.broker.session import ChannelLost, Connection, moved_or
from qctl.broker.walk import WINDOW, Met, Walk, waiting
from qctl.errors import BrokerUnreachable, QctlError
from qctl.inventory.model import Inventory
from qctl.ops.afterlife import Act, Order, Report, chosen
from qctl.ops.dead import consumer_of, declarations, lost, work_queue_of
from qctl.ops.doubt import Doubt
from qctl.ops.enqueue import LAST_CONFIRMS_S, LOOK_EVERY_S, PROGRESS_EVERY_S, REFUSED_PAUSE_S, STALL_S, gone, stalled
from qctl.ops.letters import key_of

__all__ = ["Act", "Order", "Report", "Triage", "chosen"]

#: With a rate, so much is taken out of the queue ahead: what waits longer unacknowledged is taken back by the broker.
AHEAD_S = 60.0
#: A connection that was lost is noticed by the broker within so long; until then it has what it had in hand.
TAKEN_BACK_S = 30.0
AGAIN_S = 1.0
#: No sleep is shorter: a letter may go so much too early, and the next ones make up for it.
PACE_GRAIN_S = 0.01


@dataclass(frozen=True, slots=True)
class _Sent:
    """A letter that was published. name: its id, if it has none of its own."""

    met: Met
    key: str
    name: str


class Triage:
    """Carries out one order. `report` is true at any moment, also after an error or an interrupt."""

    def __init__(
        self, inventory: Inventory, order: Order, *, on_progress: Callable[[Report, str], None] = lambda *_: None
    ) -> None:
        """on_progress(report, state): about every PROGRESS_EVERY_S; state is "" or what is being waited for."""
        self._inventory = inventory
        self._order = order
        self._on_progress = on_progress
        self._work = work_queue_of(order.queue)
        consumer = consumer_of(inventory, order.queue)
        self._persistent = consumer is None or consumer.persistent
        self._declarations = declarations(consumer) if consumer else topology.exchanges()
        self._reading: Connection | None = None
        self._writing: Connection | None = None
        self._publisher: Publisher | None = None
        self._walk: Walk | None = None
        self._sent: dict[int, _Sent] = {}
        self._orders = 0
        self._refused: list[int] = []
        self._failure: QctlError | None = None
        self._doubt = Doubt()
        self._done = 0
        self._maybe_twice = 0
        self._stays = 0
        #: letters that were done when the connection was lost, and may lie there still
        self._doubtful = 0
        self._lost_before = False
        #: all was done when the connection was lost, and nothing of it has come back yet
        self._lost_at_end = False
        self._started_s = time.monotonic()
        self._moved = asyncio.Event()
        self._moved_s = self._started_s
        self._lost_s: float | None = None
        self._back_s = self._started_s
        self._why_lost = ""
        self._next_send_s = 0.0
        self._pauses = backoff()

    @property
    def report(self) -> Report:
        """What is true now."""
        return Report(
            self._order.act,
            self._order.queue,
            self._done,
            self._order.total,
            self._maybe_twice + self._in_the_air + self._doubtful,
            self._stays,
            time.monotonic() - self._started_s,
        )

    async def run(self, *, connect_timeout_s: float) -> Report:
        """Do it. A broker that is lost is tried again for STALL_S.

        Raises BrokerUnreachable, BrokerRefused, BrokerBlocked, SecretError, and QctlError when no queue takes what is
        replayed; whatever was not done then stays in the queue.
        """
        progress = asyncio.create_task(self._show_progress())
        try:
            await self._connect(connect_timeout_s)
            while True:
                try:
                    await self._pass()
                except ChannelLost as error:
                    await self._reconnect(error)
                    continue
                if not self._awaits_more():
                    self._doubtful = 0
                    return self.report
                await self._end_walk()
                await asyncio.sleep(AGAIN_S)
        finally:
            progress.cancel()
            await asyncio.shield(self._leave())

    def _awaits_more(self) -> bool:
        """Whether what a lost connection had in hand may still come back: the broker may not know that it is gone."""
        is_due = self._left > 0 or (self._lost_at_end and self._doubt.count > 0)
        return self._lost_before and is_due and time.monotonic() < self._back_s + TAKEN_BACK_S

    async def _pass(self) -> None:
        """Walk the queue once, from its head. Raises ChannelLost."""
        assert self._reading is not None
        expected = self._order.total
        if self._order.keys is not None or self._lost_before:
            # What was done may be there again, in front of what is not.
            expected = await waiting(self._reading, self._order.queue)
        walk = self._walk = Walk(self._reading, self._order.queue, expected=expected, window=self._window())
        while (self._lost_before or self._left > len(self._sent)) and (met := await self._next(walk)) is not None:
            key = key_of(met.properties, met.body)
            if met.redelivered and self._doubt.take_back(key):
                self._again(walk, met, key)
            elif (self._order.keys is None or key in self._order.keys) and self._left > len(self._sent):
                await self._begin(walk, met, key)
            else:
                walk.keep(met)
        while self._sent:
            await self._tend()
        if self._failure is not None:
            raise self._failure
        await walk.prove()
        self._doubt.note_proven()

    @property
    def _left(self) -> int:
        return self._order.total - self._done - self._stays

    @property
    def _in_the_air(self) -> int:
        """Published, and nobody knows whether the broker has it."""
        return len(self._sent) - len(self._refused)

    def _window(self) -> int:
        gap_s = self._order.gap_s
        # What is not chosen is held, a window on each channel.
        return WINDOW if self._order.keys is not None or not gap_s else max(1, min(WINDOW, int(AHEAD_S / gap_s)))

    async def _next(self, walk: Walk) -> Met | None:
        """The next letter, while what was sent is looked after."""
        coming = asyncio.ensure_future(walk.next())
        try:
            while not coming.done():
                await self._tend(coming)
        finally:
            coming.cancel()
        return coming.result()

    def _again(self, walk: Walk, met: Met, key: str) -> None:
        """A letter that was done with, and whose acknowledgement did not arrive."""
        self._lost_at_end = False
        if not met.properties.message_id or self._doubt.is_alike(key):
            # It may be another one that says the same; rather twice, or not dropped, than lost.
            self._maybe_twice += 1
            walk.keep(met)
            return
        self._finish(walk, met, key)

    async def _begin(self, walk: Walk, met: Met, key: str) -> None:
        """Drop it, or publish it once there is room, and it is time."""
        if self._order.act is Act.DROP:
            self._done += 1
            self._finish(walk, met, key)
            return
        await self._pace()
        assert self._publisher is not None
        while not self._publisher.room or self._refused:
            await self._tend()
        if not self._sent:
            self._moved_s = time.monotonic()  # a slow rate is not a slow broker
        self._orders += 1
        self._sent[self._orders] = _Sent(met, key, self._doubt.name_of(key) or str(uuid.uuid4()))
        self._publish(self._orders)

    def _finish(self, walk: Walk, met: Met, key: str) -> None:
        walk.take(met)
        self._lost_s = None
        self._doubt.note_done(key)

    async def _pace(self) -> None:
        if not self._order.gap_s:
            return
        now_s = time.monotonic()
        self._next_send_s = max(self._next_send_s, now_s)
        while (left_s := self._next_send_s - time.monotonic()) > PACE_GRAIN_S:
            await self._tend(timeout_s=left_s)
        self._next_send_s += self._order.gap_s

    def _publish(self, number: int) -> None:
        """Send, or send once more. Raises ChannelLost."""
        sent = self._sent[number]
        met = sent.met
        assert self._publisher is not None
        properties = revive(
            met.properties, message_id=sent.name, first_seen=utc(time.time()), persistent=self._persistent
        )
        try:
            outgoing = Outgoing(topology.TASKS, self._work, met.body, properties)
            self._publisher.send(outgoing, partial(self._on_result, number))
        except ValueError:
            del self._sent[number]
            self._stay(met)

    def _stay(self, met: Met) -> None:
        assert self._walk is not None
        self._stays += 1
        self._walk.keep(met)

    def _on_result(self, number: int, fate: Published) -> None:
        if fate is Published.LOST or number not in self._sent or self._walk is None:
            return  # the connection's end is noticed elsewhere; what was given back by now may be there twice
        if fate is Published.REFUSED:
            self._refused.append(number)
        else:
            sent = self._sent.pop(number)
            self._moved_s = time.monotonic()
            if fate is Published.CONFIRMED:
                self._done += 1
                self._finish(self._walk, sent.met, sent.key)
            else:
                self._stay(sent.met)
                self._failure = QctlError(
                    f"no queue took the letter: {self._work} is not bound to {topology.TASKS}",
                    hint="Is its consumer in the inventory? `qctl worker start` and `qctl enqueue` bind its queue.",
                )
        self._moved.set()

    async def _tend(self, *others: asyncio.Future[Met | None], timeout_s: float = LOOK_EVERY_S) -> None:
        """Wait until something moved, or one of `others` is done; offer again what was refused. Raises ChannelLost."""
        if self._failure is not None:
            raise self._failure
        if self._refused:
            self._check_stall()
            await asyncio.sleep(REFUSED_PAUSE_S)
            refused, self._refused = self._refused, []
            for number in refused:
                self._publish(number)
            return
        assert self._reading is not None
        ends: list[asyncio.Future[ChannelLost]] = [self._reading.closed]
        if self._publisher is not None:
            ends.append(self._publisher.channel.closed)
        self._moved.clear()
        await moved_or(self._moved, *ends, *others, timeout_s=min(timeout_s, LOOK_EVERY_S))
        for end in ends:
            if end.done():
                raise end.result()
        if self._sent:
            self._check_stall()

    def _check_stall(self) -> None:
        if time.monotonic() - self._moved_s >= STALL_S:
            blocked = self._writing is not None and self._writing.blocked
            raise stalled(self._work, blocked=blocked, refusing=bool(self._refused))

    # The broker, and the loss of it

    async def _connect(self, timeout_s: float) -> None:
        """Two connections: an alarm stops one that publishes, acknowledgements and all. Raises ChannelLost also."""
        login = await asyncio.to_thread(
            login_for, self._inventory.broker, self._inventory.path, prefer_environment=True
        )
        name = f"qctl dead {self._order.act}"
        self._reading = await connect_within(login, name=name, timeout_s=timeout_s)
        if self._order.act is Act.REPLAY:
            self._writing = await connect_within(login, name=f"{name} publishing", timeout_s=timeout_s)
            await topology.ensure(self._reading, self._declarations)
            self._publisher = await Publisher.open(self._writing)
        self._moved_s = self._back_s = time.monotonic()

    async def _reconnect(self, error: ChannelLost) -> None:
        """Until it is connected again; for STALL_S from the loss on, or since something was done last."""
        assert self._reading is not None
        while True:
            self._lose(error)
            await self._end_walk()
            await self._disconnect()
            await asyncio.sleep(next(self._pauses))
            assert self._lost_s is not None
            left_s = self._lost_s + STALL_S - time.monotonic()
            if left_s <= 0:
                raise gone(self._why_lost)
            try:
                await self._connect(left_s)
                return
            except BrokerUnreachable as unreachable:
                self._why_lost = unreachable.message
            except ChannelLost as again:
                error = again

    def _lose(self, error: ChannelLost) -> None:
        """The connection is gone: for good when the broker said that it will not have this."""
        assert self._reading is not None
        is_new = not self._lost_before and error.code in (topology.NOT_FOUND, topology.RESOURCE_LOCKED)
        if error.code == topology.ACCESS_REFUSED or is_new:
            raise lost(self._reading, error)
        self._why_lost = str(error)
        if self._lost_s is None:
            self._lost_s = time.monotonic()
            self._pauses = backoff()
        self._lost_before = True
        # The broker that says good-bye has taken all back; of another nobody knows when it notices.
        self._lost_at_end = self._left <= 0 and not error.code
        self._maybe_twice += self._in_the_air
        for sent in self._sent.values():
            if not sent.met.properties.message_id:
                self._doubt.note_sent(sent.key, sent.name)
        self._sent.clear()
        self._refused.clear()
        self._doubt.note_lost()
        self._doubtful = self._doubt.count

    async def _end_walk(self) -> None:
        walk, self._walk = self._walk, None
        if walk is not None:
            await walk.close()

    async def _disconnect(self) -> None:
        self._publisher = None
        for connection in (self._writing, self._reading):
            if connection is not None:
                if connection.blocked:
                    connection.abort("the broker reads nothing at present")
                await connection.close()

    async def _leave(self) -> None:
        """Wait for the confirms on their way, and give back what is not done."""
        until_s = time.monotonic() + LAST_CONFIRMS_S
        while (
            self._in_the_air
            and self._publisher is not None
            and self._publisher.channel.is_open
            and not self._publisher.channel.connection.blocked
            and (left_s := until_s - time.monotonic()) > 0
        ):
            self._moved.clear()
            try:
                await asyncio.wait_for(self._moved.wait(), left_s)
            except TimeoutError:
                break
        if self._walk is not None:
            try:
                await self._walk.prove()
            except ChannelLost:
                self._doubtful = self._doubt.count
        await self._end_walk()
        await self._disconnect()

    async def _show_progress(self) -> None:
        while True:
            await asyncio.sleep(PROGRESS_EVERY_S)
            state = ""
            if self._lost_s is not None:
                is_back = self._reading is not None and self._reading.is_open
                state = "waiting for what was in hand" if is_back else "broker lost, trying again"
            elif self._writing is not None and self._writing.blocked:
                state = "broker blocked"
            elif self._refused:
                state = "queue full, trying again"
            self._on_progress(self.report, state)
