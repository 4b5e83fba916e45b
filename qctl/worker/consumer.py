"""One consumer in one process: subscribed exactly while it should be, and every delivery settled on its own channel.

A queue of it *should* be subscribed when nothing holds the consumer, nobody paused that queue, the process hears what
operators command and is not draining. A keeper a queue makes it so: whatever changes only changes what should be, and
wakes the keepers.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from qctl.broker import topology
from qctl.broker.message import Properties
from qctl.broker.publisher import Publisher
from qctl.broker.session import Connection
from qctl.broker.subscription import Subscription
from qctl.control.desired import Pause
from qctl.worker.counts import Counts
from qctl.worker.delivery import Delivery
from qctl.worker.execute import Executor
from qctl.worker.forward import Forwarder, was_returned
from qctl.worker.in_line import InLine
from qctl.worker.keeper import Keeper
from qctl.worker.pace import Allowance, Pace, Prefetch
from qctl.worker.pauses import Pauses, in_words
from qctl.worker.probing import Probing
from qctl.worker.settle import Settling
from qctl.worker.state import State, Tag

log = logging.getLogger(__name__)

#: How often it is looked whether a pause is complete, at first and at last.
LOOK_FIRST_S = 0.001
LOOK_LAST_S = 0.05


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
        allowance: Callable[[], Allowance] = Allowance,
    ) -> None:
        """queues: queue -> consumer tag. declarations: all it needs on the broker. flush_soon: asks, from any thread,
        for `flush` on the loop. allowance: what its paced quotas pay for now."""
        self.address = address
        self.name = address.rpartition("/")[2]
        self.work_queue = work_queue
        self.concurrency = concurrency
        self.declarations = declarations
        self.pace = Pace()
        self.counts = Counts()
        self.executor: Executor | None = None
        self.in_line: InLine | None = None
        self.why_down = "not connected yet"
        self.since_s = time.time()
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
        self._allowance = allowance
        self._prefetch = Prefetch(self.pace.prefetch(concurrency, 0.0, allowance()))
        self._holds: dict[str, str] = {}
        self._for_now = ""
        self._pauses = Pauses(())
        self._deaf = True
        self._draining = self._ended = False
        self._opened: set[Subscription] = set()  # all that were not seen to be lost
        self._keepers = {queue: Keeper(self, queue, tag) for queue, tag in queues.items()}
        self._settling = Settling(
            address,
            counts=self.counts,
            pace=self.pace,
            probing=self._probing,
            forwarder=self._forwarder,
            came_back=self._came_back,
            scattered=self._look_again,
            flush_soon=flush_soon,
        )
        #: on_settled(settled): a delivery has left the executor; any thread.
        self.on_settled = self._settling.add
        self._foreign = {one.name for one in declarations if isinstance(one, topology.Existing)}
        self._shown = f"{State.DOWN}: {self.why_down}"  # no news

    # What should be

    def wants(self, queue: str) -> bool:
        """True when this queue should be subscribed."""
        return self._admits(queue) and (not self._holds or self._probing.may_seek(self._holds))

    def _admits(self, queue: str) -> bool:
        """Whether nobody forbids its tasks; all of it may be changed at any moment, and counts from then on."""
        return not (self._draining or self._deaf or queue in self._pauses.queues)

    @property
    def state(self) -> State:
        """What it is now; a queue that is not consumed must not hide behind the other."""
        return min((self.state_of(queue) for queue in self._keepers), key=list(State).index)

    def state_of(self, queue: str) -> State:
        """What one of its queues is now."""
        if (self._deaf or not self._keepers[queue].served) and not self._ended:
            return State.DOWN
        if self._draining:
            return State.DRAINING
        if queue in self._pauses.queues:
            return State.PAUSED
        return State.HELD if self._holds else State.CONSUMING

    @property
    def why(self) -> str:
        """Why it is not consuming, in words; "" when it is."""
        match self.state:
            case State.DOWN:
                return self.why_down
            case State.PAUSED:
                return in_words(self.pauses)
            case State.HELD:
                return "; ".join(self._holds.values())
        return ""

    @property
    def pauses(self) -> tuple[Pause, ...]:
        """The pauses that hold for any of its queues, each once."""
        return self._pauses.all

    def pauses_of(self, queue: str) -> tuple[Pause, ...]:
        """The pauses that hold for one of its queues."""
        return self._pauses.of(queue)

    @property
    def holds(self) -> Mapping[str, str]:
        """Why it is held, in words by cause, whether it is paused as well or not."""
        return self._holds

    def subscriptions(self) -> Iterator[tuple[str, str, State]]:
        """Tag, queue and state of each of its subscriptions."""
        for queue, keeper in self._keepers.items():
            yield keeper.tag, queue, self.state_of(queue)

    def rows(self) -> list[Tag]:
        """Each of its consumer tags as it is now."""
        while self.flush():
            pass
        begun = [one.subscription.queue for one in list(self._settling.started)]
        return [
            Tag(queue, it.tag, self.state_of(queue), it.cancelled_at_s, begun.count(queue), it.given_back)
            for queue, it in self._keepers.items()
        ]

    @property
    def prefetch(self) -> int:
        """Deliveries that a subscription may have here at once."""
        return self._prefetch.now

    @property
    def waiting(self) -> int:
        """Deliveries here that no slot has taken yet."""
        return self.executor.waiting if self.executor else 0

    @property
    def busy(self) -> int:
        """Tasks that run, deliveries on their way out, and tags that are still subscribed."""
        running = self.executor.active if self.executor else 0
        subscribed = sum(keeper.subscribed for keeper in self._keepers.values())
        return running + self._settling.pending + subscribed

    def pause(self, pauses: Mapping[str, tuple[Pause, ...]]) -> None:
        """From now on exactly these hold, by queue. Nothing of such a queue starts any more; `paused` says when that is
        complete."""
        before, now = self._pauses, Pauses(self._keepers, pauses)
        if now == before:
            return
        in_line = None if self._draining else self.in_line
        if before.whole and not now.whole and in_line is not None:
            in_line.come_back()  # before anything is wanted again: it may be held
        self._pauses = now  # every slot looks at it right before a start
        self._wake()
        if now.whole and not before.whole and in_line is not None:
            in_line.leave()

    async def paused(self, queues: Iterable[str]) -> None:
        """Return when these queues are cancelled for certain (or resumed), and nothing of them can start any more."""
        wanted, pause_s = set(queues), LOOK_FIRST_S
        while self._is_closing(wanted & self._pauses.queues):
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LOOK_LAST_S)

    def _is_closing(self, queues: set[str]) -> bool:
        if any(self._keepers[queue].subscribed for queue in queues):
            return True
        if self.executor is not None and self._pauses.whole and self.executor.paying:
            return True  # they were told, and are on their way back
        return self.executor is not None and self.executor.is_starting(lambda one: one.subscription.queue in queues)

    def hold(self, cause: str, words: str, for_now: str = "") -> None:
        """Stop consuming for this cause, until `release` of the same. for_now: more words, for the log alone."""
        if self._holds.get(cause) != words:
            new = cause not in self._holds
            self._holds[cause] = words
            self._for_now = for_now
            if new:
                self._wake()
            self._for_now = ""

    def release(self, cause: str) -> None:
        """This cause is over; others may remain."""
        if self._holds.pop(cause, None) is not None:
            if not self._holds:
                self._prefetch.now = self.pace.prefetch(self.concurrency, 0.0, self._allowance())
            self._wake()

    def drain(self) -> None:
        """Stop consuming for good; what runs is let finish."""
        self._draining = True
        self._wake()
        if self.in_line is not None:
            self.in_line.leave()

    def end(self) -> None:
        """It has drained: that its connection is closed now is nobody's loss, and no news."""
        self._ended = True

    def tick(self) -> None:
        """Look after the prefetch and overdue tasks; called about twice a second."""
        self.counts.tick(time.monotonic())
        oldest_s = self.executor.expire() if self.executor else 0.0
        if self._holds and self._probing.due():
            self._probing.seeking, self._prefetch.now = True, 1
            self._wake()
        target = self.pace.prefetch(self.concurrency, oldest_s, self._allowance())
        before = self.prefetch
        if self._all_wanted and not self._holds and self._prefetch.adjust(target, time.monotonic()):
            if target < before:
                self._take_back()  # the tasks turned out longer: what waits here could run elsewhere
            self._wake()

    @property
    def _all_wanted(self) -> bool:
        return all(map(self.wants, self._keepers))

    def say_down(self, why: str) -> None:
        """Why there is nothing to subscribe on at present."""
        self.why_down = why
        self.changed()

    def lost(self, why: str) -> None:
        """A keeper has lost its queue; why is no news where nobody hears any more what is commanded."""
        if not self._deaf:
            self.say_down(why)

    def _wake(self) -> None:
        if not self._all_wanted:
            self._take_back(lambda one: not self.wants(one.subscription.queue))
        self.changed()
        self._look_again()

    def _look_again(self) -> None:
        for keeper in self._keepers.values():
            keeper.look_again()

    def _take_back(self, which: Callable[[Delivery], bool] = lambda _: True) -> None:
        """Give back what no slot has taken; it goes out with the cancel-ok that the keeper then waits for."""
        for delivery in self.executor.take_back(which) if self.executor else ():
            self._return(delivery)

    def _return(self, delivery: Delivery) -> None:
        """Give back one that will not run; where its channel is gone, what was redelivered of it meanwhile."""
        self._probing.missed(delivery)
        self._give_back(self._settling.unstarted(delivery))

    def note_lost(self) -> None:
        """Look for channels that are gone, also of subscriptions cancelled long ago: what runs is an orphan from now
        on, what waits here is dropped."""
        if all(one.is_open for one in self._opened):
            return
        self._opened = {one for one in self._opened if one.is_open}
        self._settling.note_lost()
        for delivery in self.executor.take_back(_is_lost) if self.executor else ():
            self._return(delivery)

    def opened(self, subscription: Subscription) -> None:
        """A keeper has opened this one."""
        self._opened.add(subscription)

    def changed(self) -> None:
        """One log line a state change."""
        state = self.state
        why = self.why + (self._for_now if state is State.HELD else "")
        # A hold's words count down and would be news every time; what is wrong with a queue is news when it changes.
        shown = f"{state}: {why}" if state in (State.DOWN, State.PAUSED) else str(state)
        if shown == self._shown:
            return
        if not self._shown.startswith(state):
            self.since_s = time.time()
        self._shown = shown
        level = logging.WARNING if state is State.DOWN else logging.INFO
        log.log(level, "%s %s%s", self.address, state, why and f": {why}")

    async def serve(self, connection: Connection) -> None:
        """Keep every queue subscribed as wanted, while the connection lasts; to be called when it is known what holds.

        What is wrong with one consumer's queue (deleted, other arguments, no permission) stays with that consumer.
        """
        self._deaf = False
        try:
            await asyncio.gather(*(keeper.keep(connection) for keeper in self._keepers.values()))
        finally:
            self.stop_hearing(self.why_down)

    def stop_hearing(self, why: str) -> None:
        """It is not known any more what operators command: nothing is consumed, nothing starts, until `serve`."""
        self.why_down = why
        if not self._deaf:
            self._deaf = True
            self._wake()

    # Deliveries in, settlements out

    def deliver(
        self, subscription: Subscription, tag: int, redelivered: bool, properties: Properties, body: bytes
    ) -> None:
        """A delivery has come in."""
        delivery = Delivery(subscription, tag, redelivered, properties, body, time.time())
        if redelivered:
            self.note_lost()
        if redelivered and self._settling.adopt(delivery):
            return
        if self.executor and self.wants(subscription.queue):
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
        self._keepers[delivery.subscription.queue].given_back += 1
        self.counts.given_back += 1
        if delivery.subscription.queue in self._foreign and was_returned(delivery):
            self._forwarder.renew(delivery)
        else:
            delivery.subscription.give_back([delivery.tag])

    def may_start(self, delivery: Delivery) -> bool | None:
        """Asked by the executor right before a start. None: ask again, the broker has been silent for too long."""
        # Before looking: who notes the runs of a lost channel must not overlook this one.
        self._settling.started.add(delivery)
        allowed: bool | None = False
        queue = delivery.subscription.queue
        wanted = self.wants(queue) or (self._admits(queue) and self._probing.may_run(delivery, self._holds))
        if wanted and delivery.subscription.is_open:
            connection = delivery.subscription.channel.connection
            allowed = True if connection.silent_s() < connection.patience_s else None
        if not allowed:
            self._settling.started.discard(delivery)
        return allowed

    def flush(self) -> bool:
        """Send of what the executor has settled as much as is good to do at one go; whether there is more."""
        first = self.pace.done == 0
        more = self._settling.flush()
        if first and self.pace.done:
            self.tick()
        return more

    def _came_back(self, delivery: Delivery) -> None:
        self._give_back(delivery)
        self._wake()


def _is_lost(delivery: Delivery) -> bool:
    return not delivery.subscription.is_open
