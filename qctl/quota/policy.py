"""What an upstream allows, as plain values, and the constants of the laws that keep to it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction

NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000

#: Every window is kept longer by this much: no two machines' clocks run equally fast, and quartz is good for 100 ppm.
STRETCH_PPM = 200
#: How long after its last sign of life a call may still be counted upstream (queues, retransmissions, slow back ends).
LINGER_NS = 60 * NS_PER_S
#: A window is kept in this many buckets, so that its history is small and the loss by rounding below a thousandth.
BUCKETS = 1024
#: No bucket is shorter: settlements are not known more precisely than this.
BUCKET_MIN_NS = NS_PER_MS
#: A claim for the whole of a limit is met a window after it was made, at the earliest, and by a consumer that is held.
CLAIM_GRACE_NS = NS_PER_S
#: The part of a limit that one process may hold in memory: what a crash can waste.
LEASE_PER_MILLE = 20


class Window(StrEnum):
    """How a limit is counted. Of a policy: as the inventory states it; see `enforced` for what stands for it."""

    SLIDING = "sliding"
    FIXED = "fixed"
    PACED = "paced"


@dataclass(frozen=True, slots=True)
class Limit:
    """At most `units` in any window of `period_ns`.

    `FIXED`: the same, but what was counted before a reset of the upstream that was announced is forgotten when it has
    passed. `PACED`: a leaky bucket that holds `units` and runs empty in `period_ns`.
    """

    units: int
    period_ns: int
    window: Window = Window.SLIDING

    def __post_init__(self) -> None:
        least_ns = 1 if self.window is Window.PACED else BUCKET_MIN_NS
        if self.units < 0 or self.period_ns < least_ns:
            raise ValueError(
                f"a limit needs units >= 0 and a period >= 1 ms, found {self.units} in {self.period_ns} ns"
            )

    @property
    def bucket_ns(self) -> int:
        """The grain in which this limit's history is kept."""
        return max(BUCKET_MIN_NS, -(-self.period_ns // BUCKETS))

    @property
    def kept_ns(self) -> int:
        """How long a unit counts after the last instant at which it can have been counted: the period, stretched."""
        return self.period_ns + -(-self.period_ns * STRETCH_PPM // 1_000_000)

    @property
    def interval_ns(self) -> int:
        """`PACED`: how long a unit takes to run out of the bucket, stretched."""
        return -(-self.kept_ns // max(1, self.units))

    @property
    def linger_ns(self) -> int:
        """How much later than we know an unanswered call may be counted."""
        return min(LINGER_NS, self.period_ns)

    @property
    def claim_ns(self) -> int:
        """How long a claim stands: until all that was spent before is free again, and a little to come for it."""
        return self.kept_ns + self.bucket_ns + min(CLAIM_GRACE_NS, self.period_ns)

    @property
    def lease_units(self) -> int:
        """The most that one process leases ahead of need; of a small bucket nothing, as what is leased stays in it."""
        least = 0 if self.window is Window.PACED else 1
        return max(least, self.units * LEASE_PER_MILLE // 1000)


@dataclass(frozen=True, slots=True)
class Policy:
    """A quota as the inventory states it: all `limits` must admit a unit. `burst_units` matters for `PACED` alone."""

    name: str
    limits: tuple[Limit, ...]
    window: Window = Window.SLIDING
    burst_units: int = 1

    def __post_init__(self) -> None:
        if not self.limits:
            raise ValueError(f"quota {self.name} needs at least one limit")


def enforced(policy: Policy) -> tuple[Limit, ...]:
    """The limits that keep to `policy`, sorted by period: one for each period, and of a paced policy one bucket more.

    The bucket is that of the slowest rate, since all hold the same `burst_units`: what it admits the others admit. It
    is left out where the limit itself admits no more than a burst.
    """
    tightest: dict[int, int] = {}
    for limit in policy.limits:
        tightest[limit.period_ns] = min(limit.units, tightest.get(limit.period_ns, limit.units))
    window = Window.FIXED if policy.window is Window.FIXED else Window.SLIDING
    limits = [Limit(units, period_ns, window) for period_ns, units in tightest.items()]
    if policy.window is Window.PACED and all(tightest.values()):
        slowest = max(limits, key=lambda limit: Fraction(limit.period_ns, limit.units))
        if policy.burst_units < slowest.units:
            whole_ns = -(-policy.burst_units * slowest.period_ns // slowest.units)
            limits.append(Limit(policy.burst_units, whole_ns, Window.PACED))
    return tuple(sorted(limits, key=lambda limit: (limit.period_ns, limit.window)))
