"""How long one consumer's tasks take, and how many deliveries to hold ready for them."""

from __future__ import annotations

from dataclasses import dataclass

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
