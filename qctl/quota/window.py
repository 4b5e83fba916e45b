"""Arithmetic of windows: what is used, and when there is more. Pure, in whole nanoseconds.

A unit counts from its reservation on (as leased), and from its settlement on (as spent) until one stretched period
after the last instant at which the upstream can have counted it. That instant is rounded up to the end of its bucket,
never down, so that every error of this module is on the side of fewer calls.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from qctl.quota import bucket
from qctl.quota.foreign import Foreign
from qctl.quota.policy import Limit, Window
from qctl.quota.reset import Reset

#: Returns of one limit that are listed one by one: as many as a history has rows.
_RETURNS_MAX = 1_200


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


_NOTHING_SPENT = Spent()
_NO_RESET = Reset()


@dataclass(frozen=True, slots=True)
class LimitReading:
    """One limit of a quota and what of it is spent.

    spent: of a sliding or fixed limit; reset: of a fixed one; empty_ns: when a paced one has run empty. foreign: what
    others have spent of it, as the upstream says.
    """

    limit: Limit
    spent: Spent = _NOTHING_SPENT
    reset: Reset = _NO_RESET
    empty_ns: int = 0
    foreign: Foreign | None = None

    def used(self, now_ns: int) -> int:
        """Settled units that count at `now_ns`."""
        if self.limit.window is Window.PACED:
            return bucket.level(self.empty_ns, self.limit, now_ns)
        return self.spent.used(self.floor_ns(now_ns))

    def kept_off(self, now_ns: int, *, idle: bool) -> int:
        """Units of the limit that are not ours at `now_ns`. idle: nothing of the quota is leased by anybody."""
        return self._beside(self.foreign.kept_off(now_ns, idle=idle)) if self.foreign else 0

    def falls_to(self, units: int, now_ns: int) -> int:
        """The earliest instant, not before `now_ns`, at which at most `units` (>= 0) count, if nothing is added."""
        if self.limit.window is Window.PACED:
            return bucket.falls_to(units, self.empty_ns, self.limit, now_ns)
        if self.used(now_ns) <= units:
            return now_ns
        slides_ns = self.spent.falls_to(units, self.floor_ns(now_ns))
        opens_ns = self._opens_ns(now_ns)
        return min(slides_ns, opens_ns) if opens_ns and self.used(opens_ns) <= units else slides_ns

    def admits_at(self, units: int, now_ns: int, *, idle: bool) -> int:
        """As `falls_to`, with what others have spent: when at most `units` count, theirs included."""
        steps = self.foreign.steps(now_ns, idle=idle) if self.foreign else ((now_ns, 0),)
        beside = [(from_ns, self._beside(kept)) for from_ns, kept in steps]
        return min(self.falls_to(units - kept, max(now_ns, from_ns)) for from_ns, kept in beside if kept <= units)

    def next_return(self, now_ns: int) -> int | None:
        """The first instant after `now_ns` at which less counts, if nothing is added; None: nothing counts."""
        found = self.used(now_ns)
        return max(now_ns + 1, self.falls_to(found - 1, now_ns)) if found else None

    def returns(self, now_ns: int) -> tuple[tuple[int, int], ...]:
        """All that counts, as (instant, units that count no more from then on), in order. Of a bucket there may be very
        many: those units are given as if they ran out one by one, but the list ends with the rest after a thousand."""
        found: list[tuple[int, int]] = []
        at_ns, left = now_ns, self.used(now_ns)
        while left and len(found) < _RETURNS_MAX:
            at_ns = self.next_return(at_ns) or at_ns
            before, left = left, self.used(at_ns)
            found.append((at_ns, before - left))
        if left:
            found.append((self.falls_to(0, at_ns), left))
        return tuple(found)

    def returns_by(self, now_ns: int, by_ns: int) -> int:
        """Units that can be spent from `now_ns` to `by_ns` beyond what is free at `by_ns`: they return in between."""
        if self.limit.window is Window.PACED:
            # What is in it now has run out by then, or is in it still.
            return max(0, by_ns - max(now_ns, self.empty_ns)) // self.limit.interval_ns
        return self.limit.units * max(0, (by_ns - now_ns) // self.limit.kept_ns)

    def _beside(self, kept_units: int) -> int:
        """Of what others have, what does not count already: they have put it in the bucket."""
        is_bucket = self.foreign is not None and self.limit.window is Window.PACED
        return max(0, kept_units - self.foreign.lo_units) if is_bucket and self.foreign else kept_units

    def floor_ns(self, now_ns: int) -> int:
        """Of a limit that has a history: what expires at this instant or before does not count at `now_ns`."""
        return self.reset.floor_ns(self.limit, now_ns) if self.limit.window is Window.FIXED else now_ns

    def _opens_ns(self, now_ns: int) -> int | None:
        """When a fixed limit begins its next window, if that is ahead and known."""
        opens_ns = self.reset.opens_ns if self.limit.window is Window.FIXED else None
        return opens_ns if opens_ns is not None and opens_ns > now_ns else None


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
    #: The upstream has refused a call and has served none since: until then one task goes at a time.
    probing_until_ns: int = 0
    #: Processes that share it on this host.
    processes: int = 1

    def probing(self, now_ns: int) -> bool:
        """Whether one task goes at a time, to see whether the upstream serves again."""
        return now_ns < self.probing_until_ns

    @property
    def leased_units(self) -> int:
        """Units in the hands of all processes: in memory, or with running tasks."""
        return sum(self.leased.values())

    def used(self, now_ns: int) -> tuple[int, ...]:
        """Units that count at `now_ns`, for each limit: spent and leased."""
        return tuple(part.used(now_ns) + self.leased_units for part in self.limits)

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
    """Units that may be leased at `now_ns`, claims aside; negative after a limit was lowered, or others spent more."""
    leased = reading.leased_units
    if now_ns < reading.blocked_until_ns or (leased and reading.probing(now_ns)):
        return 0
    return min(
        part.limit.units - leased - part.used(now_ns) - part.kept_off(now_ns, idle=not leased)
        for part in reading.limits
    )


def free_at(reading: Reading, units: int, now_ns: int) -> int | None:
    """The earliest instant, not before `now_ns`, at which `units` may be leased if nobody else takes any.

    None when that depends on leases that are out now, or when it can never be.
    """
    leased = reading.leased_units
    at_ns = max(now_ns, reading.blocked_until_ns, reading.probing_until_ns if leased else 0)
    for part in reading.limits:
        room = part.limit.units - leased - units
        if room < 0:
            return None
        at_ns = max(at_ns, part.admits_at(room, at_ns, idle=not leased))
    return at_ns
