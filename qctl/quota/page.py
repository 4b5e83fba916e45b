"""One quota of one host as it goes on in simulated time: what a ledger would say of it at any instant.

Settlements are entered late: until a task cannot be paid they count as units that are out, which is the same number.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import accumulate

from qctl.quota import bucket
from qctl.quota.foreign import spread_ns
from qctl.quota.policy import Limit, Window
from qctl.quota.reset import Reset
from qctl.quota.upstream import Span
from qctl.quota.window import Claim, LimitReading, Reading, Spent, expiry, free_units

#: Settlements that are not entered yet; a bound on memory, and on how late they may be.
MAX_PENDING = 4_096
#: ... and this part of the shortest window: what is not entered does not come back.
LATE_DIVISOR = 4
#: Before any instant of a simulation, whose zero is the present.
LONG_AGO_NS = -(1 << 62)


@dataclass(frozen=True, slots=True)
class History:
    """One limit and what counts against it.

    rows: (instant at which they are free again, units), in any order; of a sliding or fixed limit. resets: where the
    end of the upstream's present window lies; of a fixed limit, None: not known. empty_ns: when a paced one runs empty.
    """

    limit: Limit
    rows: tuple[tuple[int, int], ...] = ()
    resets: Span | None = None
    empty_ns: int = 0


@dataclass(frozen=True, slots=True)
class Stock:
    """What a ledger says of a quota: at least one limit. Units of running tasks are not in it."""

    quota: str
    limits: tuple[History, ...]
    blocked_until_ns: int = LONG_AGO_NS


class Page:
    """A quota at work: units are reserved, settled at an instant, and free again when the policy says so."""

    __slots__ = (
        "_blocked_until_ns",
        "_claims",
        "_first_ns",
        "_kept",
        "_late_ns",
        "_parts",
        "_pending",
        "_pending_units",
        "_running",
        "_seq",
        "_turns",
        "grain_ns",
        "pause_ns",
        "quota",
    )

    def __init__(self, stock: Stock, start_ns: int, coarseness: int = 1) -> None:
        """coarseness: how many grains of the ledger's history are one here."""
        self.quota = stock.quota
        grains_ns = [part.limit.bucket_ns for part in stock.limits if part.limit.window is not Window.PACED]
        #: What lies within this is one instant.
        self.grain_ns = coarseness * min(grains_ns)
        self._kept = [_Kept(_coarse(part, self.grain_ns, start_ns)) for part in stock.limits]
        #: Whoever waits looks again no sooner: a bucket counts by the grain, and loses nothing in half of one.
        is_coarse = any(kept.limit != part.limit for kept, part in zip(self._kept, stock.limits, strict=True))
        self.pause_ns = self.grain_ns // 2 if is_coarse else 1
        self._blocked_until_ns = stock.blocked_until_ns
        self._late_ns = min(kept.limit.kept_ns for kept in self._kept) // LATE_DIVISOR
        self._turns = any(kept.reset.next is not None for kept in self._kept)
        self._running = 0
        self._pending: dict[int, int] = {}
        self._pending_units = 0
        self._first_ns = 0
        self._claims: dict[str, Claim] = {}
        self._seq = 0
        self._parts = tuple(kept.reading() for kept in self._kept)

    def reserve(self, units: int) -> None:
        """A task has started."""
        self._running += units

    def settle(self, reserved_units: int, units: int, at_ns: int) -> None:
        """So much of what was reserved is spent now, and the rest is free; instants do not go back."""
        self._running -= reserved_units
        if not self._pending:
            self._first_ns = at_ns
        self._pending[at_ns] = self._pending.get(at_ns, 0) + units
        self._pending_units += units
        if len(self._pending) >= MAX_PENDING or at_ns - self._first_ns >= self._late_ns:
            self.enter(at_ns)

    def enter(self, now_ns: int) -> None:
        """Write the settlements down, each free again when its limit says so, and forget what is free."""
        if not self._pending and not self._turns:
            return
        for kept in self._kept:
            kept.enter(self._pending, now_ns)
        self._pending.clear()
        self._pending_units = 0
        self._parts = tuple(kept.reading() for kept in self._kept)

    def reading(self) -> Reading:
        """As the ledger would say it now."""
        return Reading(
            self.quota,
            self._parts,
            leased={"": self._running + self._pending_units},
            claims=tuple(self._claims.values()) if self._claims else (),
            blocked_until_ns=self._blocked_until_ns,
        )

    def payable(self, consumer: str, now_ns: int) -> int:
        """Units that this consumer may have now, who is before it in line left aside."""
        reading = self.reading()
        ahead = reading.ahead("", consumer, now_ns) if self._claims else 0
        return free_units(reading, now_ns) - ahead

    # Who could not be paid stands in line.

    def claim(self, consumer: str, units: int, now_ns: int) -> None:
        """It waits for so many units; it keeps its place until it is paid or leaves."""
        claim = self._claims.get(consumer)
        life_ns = max(kept.limit.claim_ns for kept in self._kept)
        if claim is None:
            if units > min(kept.limit.units for kept in self._kept):
                return  # what can never be paid must not keep the others from being paid
            self._seq += 1
            claim = Claim(self._seq, "", consumer, units, now_ns + life_ns)
        self._claims[consumer] = Claim(claim.seq, "", consumer, units, now_ns + life_ns)

    def unclaim(self, consumer: str) -> None:
        """It no longer waits."""
        self._claims.pop(consumer, None)


class _Kept:
    """One limit at work."""

    __slots__ = ("empty_ns", "limit", "reset", "rows")

    def __init__(self, history: History) -> None:
        self.limit = history.limit
        self.rows = sorted(history.rows)
        self.empty_ns = history.empty_ns
        # Hosts spread their returns evenly over a while: on the average half of it.
        spread = spread_ns(self.limit.period_ns, 0.5)
        self.reset = Reset(next=history.resets, spread_ns=spread if history.resets else 0)

    def enter(self, units_at: Mapping[int, int], now_ns: int) -> None:
        """What was settled at these instants."""
        if self.limit.window is Window.PACED:
            self.empty_ns = bucket.added(self.empty_ns, units_at, self.limit)
            return
        rows = self.rows
        del rows[: bisect_right(rows, now_ns, key=_expires_ns)]
        for at_ns, units in units_at.items():
            expires_ns = expiry(at_ns, self.limit)
            if rows and rows[-1][0] == expires_ns:
                rows[-1] = (expires_ns, rows[-1][1] + units)
            elif rows and rows[-1][0] > expires_ns:
                insort(rows, (expires_ns, units))
            else:
                rows.append((expires_ns, units))
        self._turn(now_ns)

    def reading(self) -> LimitReading:
        """As the ledger has it."""
        if not self.rows:
            return LimitReading(self.limit, reset=self.reset, empty_ns=self.empty_ns)
        expiries, units = zip(*self.rows, strict=True)
        return LimitReading(self.limit, Spent(expiries, tuple(accumulate(units))), self.reset, self.empty_ns)

    def _turn(self, now_ns: int) -> None:
        """After a reset the upstream's answers tell of the next."""
        opens_ns, ends = self.reset.opens_ns, self.reset.next
        if opens_ns is not None and ends is not None and now_ns >= opens_ns:
            windows = (now_ns - opens_ns) // self.limit.period_ns * self.limit.period_ns
            since_ns, next_ns = ends.lo_ns + windows, windows + self.limit.period_ns
            ahead = Span(ends.lo_ns + next_ns, ends.hi_ns + next_ns)
            self.reset = replace(self.reset, since_ns=since_ns, next=ahead)


def _coarse(history: History, grain_ns: int, start_ns: int) -> History:
    """A bucket that takes less than a grain to run out, as one of the same rate that lasts for two grains, and is as
    full as leaves the same room: units are then counted by the grain and not one by one."""
    limit = history.limit
    times = 2 * grain_ns // limit.period_ns
    if limit.window is not Window.PACED or times <= 1:
        return history
    larger = Limit(limit.units * times, limit.period_ns * times, Window.PACED)
    more_ns = (larger.units - limit.units) * larger.interval_ns
    return History(larger, empty_ns=max(start_ns, history.empty_ns) + more_ns)


def _expires_ns(row: tuple[int, int]) -> int:
    return row[0]
