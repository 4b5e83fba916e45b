"""How long one consumer's tasks take, and how many deliveries to hold ready for them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qctl.quota import Reading, Window
from qctl.units import NS_PER_S

#: A prefetch holds about this much work, at least one task a slot and at most MAX_PREFETCH.
PREFETCH_S = 0.1
MAX_PREFETCH = 500
#: Bodies larger than this are not prefetched beyond the slots.
LARGE_BODY_BYTES = 64 << 10
#: A running subscription is renewed for a new prefetch when that is off by this factor, and at most this often.
PREFETCH_FACTOR = 2.0
PREFETCH_EVERY_S = 5.0
#: Of the time that a task may wait to be paid, this part is filled with tasks of a paced quota: a prefetch may be off
#: by PREFETCH_FACTOR before it is put right.
PAID_PART = 0.5
#: Weight of the newest sample in the mean duration and body size.
SMOOTHING = 0.3


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a paced quota pays for of one consumer in this process, one of `sharers`: a task each `interval_s`, while no
    more than `burst` of all of them can run or lie in the bucket at once; and how long a task may wait for that."""

    interval_s: float = 0.0
    burst: float = math.inf
    patience_s: float = 0.0
    sharers: float = 1.0

    def bound(self, prefetch: int, run_s: float) -> int:
        """The prefetch that is paid for in time, beside those that run, at most the one that would be good otherwise.

        With more, what cannot be paid in time would be given back and fetched again, many times a second.
        """
        if not self.interval_s:
            return prefetch
        rate_per_s = min(1 / self.interval_s, self.burst / (self.interval_s + self.sharers * run_s))
        return min(prefetch, max(1, int(rate_per_s * (PAID_PART * self.patience_s + run_s))))


#: Where no quota is paced.
UNBOUNDED = Allowance()


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

    def prefetch(self, concurrency: int, oldest_s: float, allowance: Allowance = UNBOUNDED) -> int:
        """Deliveries that make PREFETCH_S of work for `concurrency` slots. oldest_s: how long a task runs by now.

        allowance: of what is paid for in time.
        """
        run_s = max(self.run_s, oldest_s, 1e-6)
        usual = concurrency
        if self.done and self.body_bytes <= LARGE_BODY_BYTES:
            usual = max(concurrency, min(MAX_PREFETCH, round(concurrency * PREFETCH_S / run_s)))
        return allowance.bound(usual, run_s)


@dataclass(slots=True)
class Prefetch:
    """Of the running subscriptions. changed_s: when it was last changed, of a clock that only goes forward."""

    now: int
    changed_s: float = 0.0

    def adjust(self, target: int, now_s: float) -> bool:
        """Whether to renew them for `target`, which is the prefetch then."""
        factor = target / self.now
        if now_s - self.changed_s < PREFETCH_EVERY_S or 1 / PREFETCH_FACTOR < factor < PREFETCH_FACTOR:
            return False
        self.now, self.changed_s = target, now_s
        return True


def allowance(
    readings: Mapping[str, Reading],
    cost: Mapping[str, int],
    patience_s: float,
    beside: Sequence[Mapping[str, int]] = (),
) -> Allowance:
    """What the slowest paced quota of a task that costs this pays for.

    The processes of a host share it evenly, and in each its consumers, as many tasks each. beside: what a task of each
    other consumer costs that has work in this process.
    """
    found = [
        Allowance(
            interval_s=part.limit.interval_ns * units * sharers / NS_PER_S,
            burst=part.limit.units / units,
            patience_s=patience_s,
            sharers=sharers,
        )
        for quota, units in cost.items()
        if units and (reading := readings.get(quota)) is not None
        for sharers in [reading.processes * (units + sum(other.get(quota, 0) for other in beside)) / units]
        for part in reading.limits
        if part.limit.window is Window.PACED
    ]
    return max(found, key=lambda it: it.interval_s, default=UNBOUNDED)
