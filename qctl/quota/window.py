"""Arithmetic of sliding windows: what is used, and when there is more. Pure, in whole nanoseconds.

A unit counts from its reservation on (as leased), and from its settlement on (as spent) until one stretched period
after the last instant at which the upstream can have counted it. That instant is rounded up to the end of its bucket,
never down, so that every error of this module is on the side of fewer calls.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from qctl.quota.policy import Limit


def bucket_end(instant_ns: int, limit: Limit) -> int:
    """The end of the bucket that `instant_ns` lies in; an instant on the edge is its own end."""
    return -(-instant_ns // limit.bucket_ns) * limit.bucket_ns


def expiry(instant_ns: int, limit: Limit) -> int:
    """When a unit that was counted at `instant_ns` at the latest is free again. It counts while now < expiry."""
    return bucket_end(instant_ns, limit) + limit.kept_ns


@dataclass(frozen=True, slots=True)
class Spent:
    """The settled units of one limit: `through[i]` units in all are free again at `expiries[i]`; both ascend."""

    expiries: tuple[int, ...] = ()
    through: tuple[int, ...] = ()

    @staticmethod
    def of(rows: Iterable[tuple[int, int]]) -> Spent:
        """From rows (expires_ns, units) in ascending order of expiry."""
        expiries, through, total = [], [], 0
        for expires_ns, units in rows:
            total += units
            expiries.append(expires_ns)
            through.append(total)
        return Spent(tuple(expiries), tuple(through))

    def used(self, now_ns: int) -> int:
        """Units that count at `now_ns`."""
        gone = bisect_right(self.expiries, now_ns)
        return (self.through[-1] if self.through else 0) - (self.through[gone - 1] if gone else 0)

    def falls_to(self, units: int, now_ns: int) -> int:
        """The earliest instant, not before `now_ns`, at which at most `units` (>= 0) count, if nothing is added."""
        total = self.through[-1] if self.through else 0
        if self.used(now_ns) <= units:
            return now_ns
        # The first index whose expiry leaves at most `units`: through[i] >= total - units.
        low, high = 0, len(self.through) - 1
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self.through[middle] >= total - units else (middle + 1, high)
        return max(now_ns, self.expiries[low])


@dataclass(frozen=True, slots=True)
class LimitReading:
    """One limit of a quota and what of it is spent."""

    limit: Limit
    spent: Spent


@dataclass(frozen=True, slots=True)
class Claim:
    """Units that a consumer of some process waits for. Lower `seq` was first."""

    seq: int
    process: str
    consumer: str
    units: int
    expires_ns: int


@dataclass(frozen=True, slots=True)
class Reading:
    """All that the ledger says about one quota. Stays true with the passing of time until someone else writes."""

    quota: str
    limits: tuple[LimitReading, ...]
    leased: Mapping[str, int] = field(default_factory=dict)
    claims: tuple[Claim, ...] = ()
    epoch: int = 0
    blocked_until_ns: int = 0

    @property
    def leased_units(self) -> int:
        """Units in the hands of all processes: in memory, or with running tasks."""
        return sum(self.leased.values())

    def used(self, now_ns: int) -> tuple[int, ...]:
        """Units that count at `now_ns`, for each limit: spent and leased."""
        return tuple(part.spent.used(now_ns) + self.leased_units for part in self.limits)

    def ahead(self, process: str, consumer: str, now_ns: int) -> int:
        """Units claimed by others before `consumer` of `process`."""
        return claimed_ahead(self.claims, process, consumer, now_ns)


def claimed_ahead(claims: Iterable[Claim], process: str, consumer: str, now_ns: int) -> int:
    """Units of `claims` that go before `consumer` of `process`: the older ones; all, if it has no claim itself."""
    live = [claim for claim in claims if claim.expires_ns > now_ns]
    own = min((c.seq for c in live if c.process == process and c.consumer == consumer), default=None)
    return sum(
        c.units for c in live if (c.process != process or c.consumer != consumer) and (own is None or c.seq < own)
    )


def free_units(reading: Reading, now_ns: int) -> int:
    """Units that may be leased at `now_ns`, claims aside; negative after a limit was lowered."""
    if now_ns < reading.blocked_until_ns:
        return 0
    leased = reading.leased_units
    return min(part.limit.units - leased - part.spent.used(now_ns) for part in reading.limits)


def free_at(reading: Reading, units: int, now_ns: int) -> int | None:
    """The earliest instant, not before `now_ns`, at which `units` may be leased if nobody else takes any.

    None when that depends on leases that are out now, or when it can never be.
    """
    at_ns = max(now_ns, reading.blocked_until_ns)
    for part in reading.limits:
        room = part.limit.units - reading.leased_units - units
        if room < 0:
            return None
        at_ns = max(at_ns, part.spent.falls_to(room, now_ns))
    return at_ns
