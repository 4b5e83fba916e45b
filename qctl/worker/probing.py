"""A consumer that is held for its upstream, and the single tasks that find out whether it serves again.

While it is held, one task a pause is taken from the queue and run: the consumer subscribes with a prefetch of one until
a delivery comes, and cancels again. Use from the loop's thread.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from qctl.broker.message import text
from qctl.worker.delivery import Delivery, Settled
from qctl.worker.judge import tell
from qctl.worker.outcome import Ending, spared
from qctl.worker.upstream import SERVED, Health, Sight, Trouble

#: The causes that a probe may pass; any other hold keeps it back too.
_PASSABLE = frozenset(trouble.value for trouble in Trouble)


class Probing:
    """What one consumer's tasks see of the upstream, and what follows.

    seeking: the next delivery is to be the probe. probe: the one that is out.
    """

    def __init__(
        self,
        *,
        ladder_s: Sequence[float],
        hold: Callable[[str, str], None],
        release: Callable[[str], None],
    ) -> None:
        """hold(cause, words) and release(cause): of the consumer."""
        self.seeking = False
        self.probe: Delivery | None = None
        self._health = Health(random.random)
        self._held: Trouble | None = None
        self._ladder_s = ladder_s
        self._hold = hold
        self._release = release

    def may_seek(self, holds: Collection[str]) -> bool:
        """Whether a consumer with these holds should be subscribed for a probe."""
        return self.seeking and _PASSABLE.issuperset(holds)

    def may_run(self, delivery: Delivery, holds: Collection[str]) -> bool:
        """Whether this delivery may start in spite of these holds."""
        return delivery is self.probe and _PASSABLE.issuperset(holds)

    def due(self) -> bool:
        """Whether to seek a probe from now on."""
        return not self.seeking and self.probe is None and self._health.probe_due(time.monotonic())

    def take(self, delivery: Delivery) -> None:
        """This delivery is the probe."""
        self.seeking, self.probe = False, delivery

    def missed(self, delivery: Delivery) -> None:
        """If this was the probe: it was given back without having run."""
        if delivery is self.probe:
            self.probe = None
            self._health.missed(time.monotonic())

    def weigh(self, settled: Settled) -> Settled:
        """Take in what a task saw; the same with another outcome when the upstream was the cause."""
        delivery, seen, now_s = settled.delivery, settled.seen, time.monotonic()
        is_probe = delivery is self.probe
        if seen is None and is_probe and settled.run_s is not None and settled.outcome.ending is Ending.ACK:
            seen = SERVED  # it did what it is for, whatever it met on the way; if that is wrong, the next tasks tell
        if seen is None:
            self.missed(delivery)
            return settled
        if is_probe:
            self.probe = None
        spare = self._health.weigh(seen, task=text(delivery.properties.message_id), probe=is_probe, now_s=now_s)
        if spare:
            outcome = spared(settled.outcome.error, self._health.pause_s, self._ladder_s)
            settled = replace(settled, outcome=outcome)
        if seen.sight is not Sight.SERVED:
            tell(settled.outcome, delivery.properties)
        self._show()
        return settled

    def _show(self) -> None:
        trouble = self._health.trouble
        if self._held is not None and trouble is not self._held:
            self.seeking = False
            self._release(self._held.value)
        self._held = trouble
        if trouble is not None:
            self._hold(trouble.value, f"{trouble}: {self._health.words}, tried every {self._health.pause_s:g} s")
