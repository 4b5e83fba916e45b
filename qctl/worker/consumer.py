"""One consumer in one process: subscribed exactly while it should be, and every delivery settled on its own channel.

The consumer *should* be subscribed when nothing holds it, nobody paused it and the process is not draining. A keeper a
queue makes it so: whatever changes only changes what should be, and wakes the keepers.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from functools import partial
from typing import Any

from qctl.broker import topology
from qctl.broker.connect import backoff
from qctl.broker.message import Properties
from qctl.broker.publisher import Publisher
from qctl.broker.session import ChannelLost, Connection
from qctl.broker.subscription import Subscription, in_words
from qctl.errors import QctlError
from qctl.worker.execute import Delivery, Executor, Settled
from qctl.worker.forward import Forwarder, was_returned
from qctl.worker.orphans import Orphans
from qctl.worker.outcome import GIVE_BACK, Ending
from qctl.worker.pace import Pace
from qctl.worker.probing import Probing

log = logging.getLogger(__name__)

#: A running subscription is renewed for a new prefetch when that is off by this factor, and at most this often.
PREFETCH_FACTOR = 2.0
PREFETCH_EVERY_S = 5.0
#: A queue that was followed for this long is tried again at once when it is lost, one that was not after longer pauses.
STEADY_S = 1.0
#: After something was given back by a consumer that is wanted all the same: it must not come straight back.
RETURN_PAUSE_S = 0.25


class State(StrEnum):
    """The states of a consumer; where several hold, the first one shows."""

    DOWN = "down"
    DRAINING = "draining"
    PAUSED = "paused"
    HELD = "held"
    CONSUMING = "consuming"


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
        ladder_s: Sequence[float],
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
        self._probing = Probing(ladder_s=ladder_s, hold=self.hold, release=self.release)
        self._concurrency = concurrency
        self._prefetch = concurrency
        self._prefetch_changed_s = 0.0
        self._flush_soon = flush_soon
        self._holds: dict[str, str] = {}
        self._draining = False
        self._served: set[str] = set()
        self._subscribed: set[str] = set()
        self._opened: set[Subscription] = set()  # all that were not seen to be lost
        self._keepers: set[asyncio.Event] = set()
        self._settled: deque[Settled] = deque()
        self._started: set[Delivery] = set()
        self._orphans = Orphans()
        self._foreign = {one.name for one in declarations if isinstance(one, topology.Existing)}
        self._shown = f"{State.DOWN}: {self.why_down}"  # no news

    # What should be

    @property
    def wanted(self) -> bool:
        """True when this consumer should be subscribed."""
        return not self._draining and (not self._holds or self._probing.may_seek(self._holds))

    @property
    def state(self) -> State:
        """What it is now."""
        if len(self._served) < len(self._queues):  # a queue that is not consumed must not hide behind the other
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
    def stuck(self) -> str:
        """Why tasks that are over time make this process not worth keeping, "" while they do not."""
        if self.executor is None:
            return ""
        if 2 * self.executor.lost_slots >= self._concurrency:
            return "half of its slots run tasks that are over time"
        return "a task is over its time and does not end" if self.executor.hopeless else ""

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
            if not self._holds:
                self._prefetch = self.pace.prefetch(self._concurrency, 0.0)
            self._wake()

    def drain(self) -> None:
        """Stop consuming for good; what runs is let finish."""
        self._draining = True
        self._wake()

    def tick(self) -> None:
        """Look after the prefetch and overdue tasks; called about twice a second."""
        oldest_s = self.executor.expire() if self.executor else 0.0
        if self._holds and self._probing.due():
            self._probing.seeking, self._prefetch = True, 1
            self._wake()
        target, now_s = self.pace.prefetch(self._concurrency, oldest_s), time.monotonic()
        factor = target / self._prefetch
        due = now_s - self._prefetch_changed_s >= PREFETCH_EVERY_S
        if due and (factor >= PREFETCH_FACTOR or factor <= 1 / PREFETCH_FACTOR) and self.wanted and not self._holds:
            self._prefetch, self._prefetch_changed_s = target, now_s
            if factor < 1:
                self._take_back()  # the tasks turned out longer: what waits here could run elsewhere
            self._wake()

    def say_down(self, why: str) -> None:
        """Why there is nothing to subscribe on at present."""
        self.why_down = why
        self._show()

    def _wake(self) -> None:
        if not self.wanted:
            self._take_back()
        self._show()
        self._look_again()

    def _look_again(self) -> None:
        for keeper in self._keepers:
            keeper.set()

    def _take_back(self) -> None:
        """Give back what no slot has taken; it goes out with the cancel-ok that the keeper then waits for."""
        for delivery in self.executor.take_back() if self.executor else ():
            self._return(delivery)

    def _return(self, delivery: Delivery) -> None:
        """Give back one that will not run; where its channel is gone, what was redelivered of it meanwhile."""
        self._probing.missed(delivery)
        lost_run = delivery in self._started and _is_lost(delivery)  # it began in the ward, which died
        self._started.discard(delivery)
        if lost_run and (waiting := self._orphans.ended(Settled(delivery, GIVE_BACK))) is not None:
            delivery = waiting.delivery
        self._give_back(delivery)

    def _note_lost(self) -> None:
        """Look for channels that are gone, also of subscriptions cancelled long ago: what runs is an orphan from now
        on, what waits here is dropped."""
        if all(one.is_open for one in self._opened):
            return
        self._opened = {one for one in self._opened if one.is_open}
        self._orphans.add(list(self._started))
        for delivery in self.executor.take_back(_is_lost) if self.executor else ():
            self._return(delivery)

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
            followed_s = math.inf
            try:
                await topology.ensure(connection, self._declarations)
                followed_s = time.monotonic()
                await self._follow(connection, queue, tag, changed)
            except (ChannelLost, QctlError) as error:
                self._served.discard(queue)
                self._note_lost()
                self.why_down = await in_words(connection, queue, error)
            self._show()
            if time.monotonic() - followed_s > STEADY_S:
                pauses = backoff()
            if connection.is_open:
                await asyncio.wait({connection.closed}, timeout=next(pauses))
        self._keepers.discard(changed)

    async def _follow(self, connection: Connection, queue: str, tag: str, changed: asyncio.Event) -> None:
        """Subscribe and cancel as wanted until a channel or the connection is lost, which is raised."""
        while True:
            if not self.wanted:
                self._served.add(queue)  # nothing is wrong with it as far as anybody can tell
                self._show()
            await _either(changed, connection.closed, until=lambda: self.wanted)
            self._note_lost()
            subscription = await Subscription.open(connection, queue, tag, self._deliver)
            self._opened.add(subscription)
            self._subscribed.add(tag)
            try:
                await subscription.consume(self._prefetch)
                self._served.add(queue)
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
        stays = self.wanted and not subscription.gave_back and not subscription.scattered
        return not stays or subscription.prefetch != self._prefetch

    # Deliveries in, settlements out

    def _deliver(
        self, subscription: Subscription, tag: int, redelivered: bool, properties: Properties, body: bytes
    ) -> None:
        delivery = Delivery(subscription, tag, redelivered, properties, body, time.time())
        if redelivered:
            self._note_lost()
        if redelivered and (found := self._orphans.adopt(delivery)):
            if isinstance(found, Settled):
                self.on_settled(found)
        elif self.wanted and self.executor:
            if self._holds:
                self._take_probe(delivery)
            self.executor.put(delivery)
        else:
            self._give_back(delivery)

    def _take_probe(self, delivery: Delivery) -> None:
        """Held, and subscribed all the same: for this one delivery, and no other."""
        self._probing.take(delivery)
        self._look_again()

    def _give_back(self, delivery: Delivery) -> None:
        """Return it unharmed; as a new message where the queue's limit may be near, since that is not ours to know."""
        if not delivery.subscription.is_open:
            return  # the broker has it back already
        if delivery.subscription.queue in self._foreign and was_returned(delivery):
            self._forwarder.renew(delivery)
        else:
            delivery.subscription.give_back([delivery.tag])

    def may_start(self, delivery: Delivery) -> bool | None:
        """Asked by the executor right before a start. None: ask again, the broker has been silent for too long."""
        self._started.add(delivery)  # before looking: who notes the runs of a lost channel must not overlook this one
        allowed: bool | None = False
        wanted = self.wanted or (not self._draining and self._probing.may_run(delivery, self._holds))
        if wanted and delivery.subscription.is_open:
            connection = delivery.subscription.channel.connection
            allowed = True if connection.silent_s() < 2 * connection.heartbeat_s else None
        if not allowed:
            self._started.discard(delivery)
        return allowed

    def on_settled(self, settled: Settled) -> None:
        """A delivery has left the executor. Any thread."""
        self._settled.append(settled)
        self._flush_soon()

    def flush(self) -> None:
        """Send what the executor has settled."""
        acks: dict[Subscription, list[int]] = {}
        runs, run_s, body_bytes, late = 0, 0.0, 0, 0
        for _ in range(len(self._settled)):
            settled = self._settled.popleft()
            delivery = settled.delivery
            if settled.seen is not None or self._probing.probe is not None:
                settled = self._probing.weigh(settled)
            if settled.run_s is not None:
                runs += 1
                run_s += settled.run_s
                body_bytes += len(delivery.body)
            began = delivery in self._started
            self._started.discard(delivery)
            if not delivery.subscription.is_open:
                late += settled.run_s is not None
                adopted = self._orphans.ended(settled, new=began)
                if adopted is None:
                    continue  # settled too late: the broker has given it to somebody else, or will
                settled, delivery = adopted, adopted.delivery
            ending = settled.outcome.ending
            if ending is Ending.ACK and not settled.forwards:
                acks.setdefault(delivery.subscription, []).append(delivery.tag)
            elif ending is Ending.GIVE_BACK:
                self._give_back(delivery)
                self._wake()
            else:
                self._forwarder.start(settled)
        for subscription, tags in acks.items():
            subscription.ack(tags)
            if subscription.scattered:
                self._look_again()
        if late:
            log.warning("%s %d task(s) ended after the broker had taken them back", self.address, late)
        first = self.pace.done == 0
        self.pace.add(runs, run_s, body_bytes)
        if first and runs:
            self.tick()


def _is_lost(delivery: Delivery) -> bool:
    return not delivery.subscription.is_open


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
