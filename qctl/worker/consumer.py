"""One consumer in one process: subscribed exactly while it should be, and every delivery settled on its own channel.

The consumer *should* be subscribed when nothing holds it, nobody paused it and the process is not draining. A keeper a
queue makes it so: whatever changes only changes what should be, and wakes the keepers.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any

from qctl.broker import topology
from qctl.broker.message import Properties
from qctl.broker.publisher import Publisher
from qctl.broker.session import ChannelLost, Connection, backoff
from qctl.broker.subscription import Subscription
from qctl.errors import QctlError
from qctl.worker.execute import Delivery, Executor, Settled
from qctl.worker.forward import Forwarder
from qctl.worker.outcome import Ending

log = logging.getLogger(__name__)

#: A prefetch holds about this much work, at least one task a slot and at most MAX_PREFETCH.
PREFETCH_S = 0.1
MAX_PREFETCH = 500
#: Bodies larger than this are not prefetched beyond the slots.
LARGE_BODY_BYTES = 64 << 10
#: A running subscription is renewed for a new prefetch when that is off by this factor, and at most this often.
PREFETCH_FACTOR = 2.0
PREFETCH_EVERY_S = 5.0
#: Weight of the newest sample in the mean duration and body size.
SMOOTHING = 0.3
#: After something was given back by a consumer that is wanted all the same: it must not come straight back.
RETURN_PAUSE_S = 0.25


class State(StrEnum):
    """The states of a consumer; where several hold, the first one shows."""

    DOWN = "down"
    DRAINING = "draining"
    PAUSED = "paused"
    HELD = "held"
    CONSUMING = "consuming"


@dataclass(slots=True)
class Pace:
    """How long tasks take and how large they are, as moving means; and how many were done."""

    run_s: float = 0.0
    body_bytes: float = 0.0
    done: int = 0

    def add(self, runs: int, run_s: float, body_bytes: int) -> None:
        """Take in a batch: its number of runs, their summed duration and size."""
        if not runs:
            return
        first = self.done == 0
        weight = 1.0 if first else 1 - (1 - SMOOTHING) ** min(runs, 20)
        self.run_s += weight * (run_s / runs - self.run_s)
        self.body_bytes += weight * (body_bytes / runs - self.body_bytes)
        self.done += runs

    def prefetch(self, concurrency: int, oldest_s: float) -> int:
        """Deliveries that make PREFETCH_S of work for `concurrency` slots. oldest_s: how long a task runs by now."""
        if not self.done or self.body_bytes > LARGE_BODY_BYTES:
            return concurrency
        run_s = max(self.run_s, oldest_s, 1e-6)
        return max(concurrency, min(MAX_PREFETCH, round(concurrency * PREFETCH_S / run_s)))


class LiveConsumer:
    """A consumer of this process. Everything but `on_settled` and `may_start` runs on the loop's thread."""

    def __init__(
        self,
        *,
        address: str,
        host: str,
        queues: dict[str, str],
        work_queue: str,
        declarations: Sequence[topology.Declaration],
        persistent: bool,
        concurrency: int,
        flush_soon: Callable[[], None],
        publisher: Callable[[], Publisher | None],
    ) -> None:
        """queues: queue -> consumer tag. declarations: all it needs on the broker. flush_soon: asks, from any thread,
        for `flush` on the loop."""
        self.address = address
        self.pace = Pace()
        self.executor: Executor | None = None
        self.why_down = "not connected yet"
        self._queues = queues
        self._declarations = declarations
        self._forwarder = Forwarder(
            host=host,
            work_queue=work_queue,
            persistent=persistent,
            declarations=declarations,
            publisher=publisher,
            hold=self.hold,
            release=self.release,
        )
        self._concurrency = concurrency
        self._prefetch = concurrency
        self._prefetch_changed_s = 0.0
        self._flush_soon = flush_soon
        self._holds: dict[str, str] = {}
        self._draining = False
        self._served: set[str] = set()
        self._subscribed: set[str] = set()
        self._keepers: set[asyncio.Event] = set()
        self._settled: deque[Settled] = deque()
        self._shown = f"{State.DOWN}: {self.why_down}"  # no news

    # What should be

    @property
    def wanted(self) -> bool:
        """True when this consumer should be subscribed."""
        return not self._holds and not self._draining

    @property
    def state(self) -> State:
        """What it is now."""
        if not self._served:
            return State.DOWN
        if self._draining:
            return State.DRAINING
        if self._holds:
            return State.HELD
        return State.CONSUMING

    @property
    def busy(self) -> int:
        """Tasks that run, deliveries on their way out, and tags that are still subscribed."""
        running = self.executor.active if self.executor else 0
        return running + len(self._settled) + self._forwarder.pending + len(self._subscribed)

    @property
    def lost_half(self) -> bool:
        """True when half of the slots are lost to tasks that are over time."""
        return self.executor is not None and 2 * self.executor.lost_slots >= self._concurrency

    def backlog(self, cost: Mapping[str, int]) -> dict[str, int]:
        """Units that everything handed in and not admitted yet will need. Any thread."""
        waiting = self.executor.waiting if self.executor else 0
        return {quota: units * waiting for quota, units in cost.items()}

    def hold(self, cause: str, words: str) -> None:
        """Stop consuming for this cause, until `release` of the same."""
        if self._holds.get(cause) != words:
            new = cause not in self._holds
            self._holds[cause] = words
            if new:
                self._wake()

    def release(self, cause: str) -> None:
        """This cause is over; others may remain."""
        if self._holds.pop(cause, None) is not None:
            self._wake()

    def drain(self) -> None:
        """Stop consuming for good; what runs is let finish."""
        self._draining = True
        self._wake()

    def tick(self) -> None:
        """Look after the prefetch and overdue tasks; called about twice a second."""
        oldest_s = self.executor.expire() if self.executor else 0.0
        target, now_s = self.pace.prefetch(self._concurrency, oldest_s), time.monotonic()
        factor = target / self._prefetch
        due = now_s - self._prefetch_changed_s >= PREFETCH_EVERY_S
        if due and (factor >= PREFETCH_FACTOR or factor <= 1 / PREFETCH_FACTOR) and self.wanted:
            self._prefetch, self._prefetch_changed_s = target, now_s
            if factor < 1:
                self._take_back()  # the tasks turned out longer: what waits here could run elsewhere
            self._wake()

    def _wake(self) -> None:
        if not self.wanted:
            self._take_back()
        self._show()
        for keeper in self._keepers:
            keeper.set()

    def _take_back(self) -> None:
        """Give back what no slot has taken; it goes out with the cancel-ok that the keeper then waits for."""
        for delivery in self.executor.take_back() if self.executor else ():
            delivery.subscription.give_back([delivery.tag])

    def _show(self) -> None:
        """One log line a state change."""
        state, why = self.state, ""
        if state is State.HELD:
            why = ": " + "; ".join(self._holds.values())
        elif state is State.DOWN:
            why = f": {self.why_down}"
        # A hold's words count down and would be news every time; what is wrong with a queue is news when it changes.
        shown = f"{state}{why}" if state is State.DOWN else str(state)
        if shown == self._shown:
            return
        self._shown = shown
        log.log(logging.WARNING if state is State.DOWN else logging.INFO, "%s %s%s", self.address, state, why)

    # Keeping it so

    async def serve(self, connection: Connection) -> None:
        """Keep every queue subscribed as wanted, while the connection lasts.

        What is wrong with one consumer's queue (deleted, other arguments, no permission) stays with that consumer.
        """
        await asyncio.gather(*(self._keep(connection, queue, tag) for queue, tag in self._queues.items()))

    async def _keep(self, connection: Connection, queue: str, tag: str) -> None:
        pauses, changed = backoff(), asyncio.Event()
        self._keepers.add(changed)
        while connection.is_open:
            try:
                await topology.ensure(connection, self._declarations)
                self._served.add(queue)
                await self._follow(connection, queue, tag, changed)
            except (ChannelLost, QctlError) as error:
                self.why_down = str(error)
            self._served.discard(queue)
            self._show()
            if connection.is_open:
                await asyncio.wait({connection.closed}, timeout=next(pauses))
        self._keepers.discard(changed)

    async def _follow(self, connection: Connection, queue: str, tag: str, changed: asyncio.Event) -> None:
        """Subscribe and cancel as wanted until a channel or the connection is lost, which is raised."""
        while True:
            self._show()
            await _either(changed, connection.closed, until=lambda: self.wanted)
            subscription = await Subscription.open(connection, queue, tag, self._deliver)
            self._subscribed.add(tag)
            try:
                await subscription.consume(self._prefetch)
                self._show()
                await _either(changed, subscription.lost, until=partial(self._should_cancel, subscription))
                await subscription.cancel()
            finally:
                self._subscribed.discard(tag)
            log.debug("%s cancel-ok tag=%s", self.address, subscription.tag)
            if self.wanted and subscription.gave_back:
                await asyncio.sleep(RETURN_PAUSE_S)

    def _should_cancel(self, subscription: Subscription) -> bool:
        """Whatever was given back goes out with a cancel, also when the consumer is wanted again by now."""
        return not self.wanted or subscription.gave_back or subscription.prefetch != self._prefetch

    # Deliveries in, settlements out

    def _deliver(
        self, subscription: Subscription, tag: int, redelivered: bool, properties: Properties, body: bytes
    ) -> None:
        delivery = Delivery(subscription, tag, redelivered, properties, body, time.time())
        if self.wanted and self.executor:
            self.executor.put(delivery)
        else:
            subscription.give_back([tag])

    def may_start(self, delivery: Delivery) -> bool | None:
        """Asked by the executor right before a start. None: ask again, the broker has been silent for too long."""
        if not self.wanted or not delivery.subscription.is_open:
            return False
        connection = delivery.subscription.channel.connection
        return True if connection.silent_s() < 2 * connection.heartbeat_s else None

    def on_settled(self, settled: Settled) -> None:
        """A delivery has left the executor. Any thread."""
        self._settled.append(settled)
        self._flush_soon()

    def flush(self) -> None:
        """Send what the executor has settled."""
        acks: dict[Subscription, list[int]] = {}
        runs, run_s, body_bytes = 0, 0.0, 0
        for _ in range(len(self._settled)):
            settled = self._settled.popleft()
            delivery = settled.delivery
            if settled.run_s is not None:
                runs += 1
                run_s += settled.run_s
                body_bytes += len(delivery.body)
            ending = settled.outcome.ending
            if not delivery.subscription.is_open:
                continue  # settled too late: the broker has given it to somebody else
            if ending is Ending.ACK and (settled.answer is None or not delivery.properties.reply_to):
                acks.setdefault(delivery.subscription, []).append(delivery.tag)
            elif ending is Ending.GIVE_BACK:
                delivery.subscription.give_back([delivery.tag])
                self._wake()
            else:
                self._forwarder.start(settled)
        for subscription, tags in acks.items():
            subscription.ack(tags)
        first = self.pace.done == 0
        self.pace.add(runs, run_s, body_bytes)
        if first and runs:
            self.tick()


async def _either(changed: asyncio.Event, lost: asyncio.Future[ChannelLost], *, until: Callable[[], bool]) -> None:
    """Wait until `until` is true, looking again whenever `changed` is set. Raises what `lost` holds once it is done."""
    while not lost.done():
        changed.clear()
        if until():
            return
        waiting: asyncio.Future[Any] = asyncio.ensure_future(changed.wait())
        await asyncio.wait([waiting, lost], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
    raise lost.result()
