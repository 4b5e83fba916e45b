"""What is done with, on its way from one consumer's slots to the broker; and runs whose delivery was lost meanwhile."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable

from qctl.broker.subscription import Subscription
from qctl.worker.counts import Counts
from qctl.worker.delivery import Delivery, Settled
from qctl.worker.forward import Forwarder
from qctl.worker.orphans import Orphans
from qctl.worker.outcome import GIVE_BACK, Ending
from qctl.worker.pace import Pace
from qctl.worker.probing import Probing

log = logging.getLogger(__name__)

#: Settled in one turn of the loop: what operators command must not wait behind a flood of short tasks.
MAX_FLUSHED = 250


class Settling:
    """Of one consumer. Everything but `add` and what is done with `started` runs on the loop's thread.

    started: deliveries that may run by now, each from before it is looked whether it may.
    """

    def __init__(
        self,
        address: str,
        *,
        counts: Counts,
        pace: Pace,
        probing: Probing,
        forwarder: Forwarder,
        came_back: Callable[[Delivery], None],
        scattered: Callable[[], None],
        flush_soon: Callable[[], None],
    ) -> None:
        """came_back(delivery): it has not run, give it back. scattered: a subscription cannot send its settlements as
        few frames any more. flush_soon: asks, from any thread, for `flush` on the loop."""
        self.started: set[Delivery] = set()
        self._address = address
        self._counts = counts
        self._pace = pace
        self._probing = probing
        self._forwarder = forwarder
        self._came_back = came_back
        self._scattered = scattered
        self._flush_soon = flush_soon
        self._settled: deque[Settled] = deque()
        self._orphans = Orphans()

    @property
    def pending(self) -> int:
        """Settled, and not sent yet."""
        return len(self._settled) + self._forwarder.pending

    def add(self, settled: Settled) -> None:
        """A delivery has left the executor. Any thread."""
        self._settled.append(settled)
        self._flush_soon()

    def adopt(self, delivery: Delivery) -> bool:
        """Whether this redelivery is of a run whose own delivery was lost, and will be settled with that."""
        found = self._orphans.adopt(delivery)
        if isinstance(found, Settled):
            self.add(found)
        return bool(found)

    def note_lost(self) -> None:
        """Channels are gone: what runs of them is an orphan from now on."""
        self._orphans.add(list(self.started))

    def unstarted(self, delivery: Delivery) -> Delivery:
        """This one will not run; where its channel is gone, what was redelivered of it meanwhile if that is here."""
        lost_run = delivery in self.started and not delivery.subscription.is_open  # it began in the ward, which died
        self.started.discard(delivery)
        waiting = self._orphans.ended(Settled(delivery, GIVE_BACK)) if lost_run else None
        return delivery if waiting is None else waiting.delivery

    def flush(self) -> bool:
        """Send as much as is good to do at one go; whether there is more."""
        acks: dict[Subscription, list[int]] = {}
        runs, run_s, body_bytes, late = 0, 0.0, 0, 0
        for _ in range(min(len(self._settled), MAX_FLUSHED)):
            settled = self._settled.popleft()
            delivery = settled.delivery
            if settled.seen is not None or self._probing.probe is not None:
                settled = self._probing.weigh(settled)
            if settled.run_s is not None:
                runs += 1
                run_s += settled.run_s
                body_bytes += len(delivery.body)
            began = delivery in self.started
            self.started.discard(delivery)
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
                self._came_back(delivery)
            else:
                self._counts.add(settled.outcome)
                self._forwarder.start(settled)
        for subscription, tags in acks.items():
            self._counts.acked += len(tags)
            subscription.ack(tags)
            if subscription.scattered:
                self._scattered()
        if late:
            log.warning("%s %d task(s) ended after the broker had taken them back", self._address, late)
        self._pace.add(runs, run_s, body_bytes)
        return bool(self._settled)
