"""How many tasks of one consumer ended in which way, and how fast they are done."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from qctl.broker.message import DEFERRALS
from qctl.worker.outcome import Ending, Outcome

#: The rate is measured over this long.
RATE_S = 10.0
#: Samples kept for it: one is taken about twice a second.
MAX_SAMPLES = 64


@dataclass(slots=True)
class Counts:
    """Since the process started. given_back: deliveries returned unharmed, by a pause, a hold or for want of quota."""

    acked: int = 0
    retried: int = 0
    deferred: int = 0
    dead: int = 0
    given_back: int = 0
    _samples: deque[tuple[float, int, int]] = field(default_factory=lambda: deque(maxlen=MAX_SAMPLES))

    def add(self, outcome: Outcome) -> None:
        """Take in one that was not simply acknowledged."""
        if outcome.ending is Ending.ACK:
            self.acked += 1
        elif outcome.ending is Ending.DEAD:
            self.dead += 1
        elif DEFERRALS in outcome.headers:
            self.deferred += 1
        else:
            self.retried += 1

    def tick(self, now_s: float) -> None:
        """Take a sample; now_s: of a clock that only goes forward."""
        self._samples.append((now_s, self.acked, self.retried + self.deferred))
        while now_s - self._samples[0][0] > RATE_S:
            self._samples.popleft()

    @property
    def rate_per_s(self) -> float:
        """Tasks acknowledged a second, over about RATE_S."""
        return self._per_s(1)

    @property
    def put_off_per_s(self) -> float:
        """Tasks a second that went to come back later, over about RATE_S: they leave a queue and are not done."""
        return self._per_s(2)

    def _per_s(self, place: int) -> float:
        if len(self._samples) < 2:
            return 0.0
        first, last = self._samples[0], self._samples[-1]
        return (last[place] - first[place]) / (last[0] - first[0]) if last[0] > first[0] else 0.0
