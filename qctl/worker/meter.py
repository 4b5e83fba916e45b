"""The meter of a task: what its calls cost, and which quota pays for them.

It draws on what admission reserved, reserves more when the task makes more calls, hears what each answer says about the
limit, and says at the end what was used. A quota that was never metered is settled at its declared cost.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from qctl.broker.message import DeadReason, Malformed
from qctl.quota import Grant, Leases
from qctl.quota.upstream import MAX_WAIT_NS, Answer, Heard, Span, Style
from qctl.units import MAX_UNITS, NS_PER_S
from qctl.worker.exceptions import RateLimited, TimedOut, Unpaid
from qctl.worker.tariff import Tariff
from qctl.worker.upstream import Seen, seen_in

#: Why a task may do no more, in words.
OVER, OVERDUE = "over", "over its timeout"


class Meter:
    """Counts what one task uses of each quota. Thread-safe: a handler may use threads of its own.

    A call of `task.http` is booked when it is answered; units of `task.spend` when the task ends, since nobody knows
    when in between the call was made. The `_async` forms let the event loop go on while more is reserved.
    """

    def __init__(self, leases: Leases, grant: Grant, rates: Tariff, deadline_s: float = math.inf) -> None:
        """deadline_s: of the monotonic clock, when the task is over time."""
        self.deadline_s = deadline_s
        self.clock = leases.clock
        self._lock = threading.Lock()
        # Of those who reserve more, one after the other, lest each reserves for the others too. Not the lock above,
        # since that is taken on the event loop and this one is waited for.
        self._turn, self._turn_async = threading.Lock(), asyncio.Lock()
        self._leases = leases
        self._grant = grant
        self._tariff = rates
        self._in_flight: dict[str, int] = {}
        self._spent: dict[str, int] = {}
        self._booked: dict[str, int] = {}
        self._over = ""
        self._closed = False
        #: why a call was not made; it ends the task whatever the handler makes of it
        self.limited: RateLimited | Malformed | None = None
        #: by quota, what the task would have needed at least when the host could not pay for it
        self.short: dict[str, int] = {}
        #: what the last call met; None when there was none, or no answer
        self.seen: Seen | None = None
        #: ends the calls of a meter that are under way
        self.cut: Callable[[Meter], None] | None = None

    def stop(self, over: str = OVERDUE) -> None:
        """The task is over (time): calls under way are cut off, and from now on every call raises TimedOut."""
        self._over = over
        if self.cut is not None:
            self.cut(self)

    def check(self) -> None:
        """Raise TimedOut when the task may make no more calls."""
        if self._over or not self._grant.open:
            raise TimedOut(f"the task is {self._over or OVER}; no more calls")

    def style(self, url: str) -> Style:
        """How the API of `url` reports its limit."""
        return self._tariff.listener(self._tariff.quota_of(url)).style

    def begin(self, url: str) -> Call | None:
        """Reserve a unit for a call of `url`, None when the call costs nothing. Raises Unpaid, TimedOut."""
        quota = self._tariff.quota_of(url)
        self.check()
        if quota is None:
            return None
        self._pay(self._in_flight, quota, 1)
        return Call(self, quota)

    async def begin_async(self, url: str) -> Call | None:
        """As `begin`, on an event loop."""
        quota = self._tariff.quota_of(url)
        self.check()
        if quota is None:
            return None
        await self._pay_async(self._in_flight, quota, 1)
        return Call(self, quota)

    def spend(self, units: int, quota: str | None = None) -> None:
        """Pay `units` of `quota` (default: the consumer's only one) for calls made without `task.http`.

        Raises Unpaid, TimedOut, ValueError for what cannot be, Malformed for more units than the quota ever has.
        """
        self._pay(self._spent, self._checked(units, quota), units)

    async def spend_async(self, units: int, quota: str | None = None) -> None:
        """As `spend`, on an event loop."""
        await self._pay_async(self._spent, self._checked(units, quota), units)

    def end(self, call: Call, *, sent: bool, ambiguous: bool) -> None:
        """A call of `begin` is over. sent False: the upstream cannot have seen it, and the unit is free again."""
        with self._lock:
            if self._closed:
                return  # booked when the task ended
            self._in_flight[call.quota] -= 1
            if sent:
                self._book(call.quota, 1, ambiguous=ambiguous)

    def hear(self, url: str, answer: Answer) -> RateLimited | None:
        """What the answer to a call of `url` says; what to raise where the upstream did not serve for a limit's sake.

        The ledger hears it too. Never waits.
        """
        quota = self._tariff.quota_of(url)
        heard = self._tariff.listener(quota).hear(answer)
        self.seen = seen_in(answer.status, url, limited=heard.refused)
        if quota is not None and not heard.silent:
            self._leases.tell(quota, heard)
        if not heard.refused:
            return None
        after_s = None
        if heard.wait is not None:  # as it was said: what it may have been rounded by is for the ledger
            after_s = max(0.0, round((heard.wait.lo_ns + heard.wait.hi_ns - 2 * answer.received_ns) / 2 / NS_PER_S, 1))
        words = "" if after_s is None else f", retry after {after_s:g} s"
        which = "a secondary limit: " if heard.secondary else ""
        self.limited = limited = RateLimited(
            after_s, f"{which}the upstream answered {answer.status}{words}", quota=quota
        )
        return limited

    def close(self, *, proven: bool) -> dict[str, int]:
        """The task ends: no more calls. Returns what is still to be settled.

        Calls still under way (in a thread that the handler left behind) are booked as ambiguous: the upstream may count
        them yet. proven: every call of this handler is metered, so that what was not booked was not used. Otherwise a
        quota that the task never metered counts at what was reserved for it.
        """
        with self._lock:
            self._closed, self._over = True, self._over or OVER
            for quota, calls in self._in_flight.items():
                if calls:
                    self._book(quota, calls, ambiguous=True)
            metered = self._spent.keys() | self._in_flight.keys()
            unmetered = () if proven else self._tariff.quotas - metered
            return {**{quota: self._grant.reserved(quota) for quota in unmetered}, **self._spent}

    def used(self) -> Mapping[str, int]:
        """Units that the task was seen to use, of each quota that it metered; to be asked after `close`."""
        with self._lock:
            metered = self._spent.keys() | self._in_flight.keys()
            return {quota: self._booked.get(quota, 0) + self._spent.get(quota, 0) for quota in metered}

    def _book(self, quota: str, units: int, *, ambiguous: bool) -> None:
        self._booked[quota] = self._booked.get(quota, 0) + units
        self._leases.book(self._grant, quota, units, ambiguous=ambiguous)

    def _checked(self, units: int, quota: str | None) -> str:
        """The quota that `units` are to be spent of. Raises ValueError, Malformed; either ends the task for good."""
        try:
            name = self._named(units, quota)
        except ValueError as error:  # the next run would ask the same
            self.limited = Malformed(f"spends what cannot be: {error}", DeadReason.COST)
            raise
        if units > (most := self._tariff.most.get(name, units)):
            with self._lock:
                self._spent.setdefault(name, 0)
            self.limited = Malformed(
                f"asks {units} of {name}, more than the {most} it can ever pay at once", DeadReason.COST
            )
            raise self.limited
        return name

    def _named(self, units: int, quota: str | None) -> str:
        """The quota that is meant. Raises ValueError."""
        if isinstance(units, bool) or not isinstance(units, int) or not 0 <= units <= MAX_UNITS:  # type: ignore[redundant-expr]
            raise ValueError(f"units must be a whole number from 0 to 10^12, found {units!r}")
        name = quota or self._default()
        if name not in self._tariff.quotas:
            raise ValueError(f"this consumer has no quota {name!r}; it names {', '.join(sorted(self._tariff.quotas))}")
        return name

    def _pay(self, book: dict[str, int], quota: str, units: int) -> None:
        with self._turn:
            while short_units := self._promise(book, quota, units):
                if not self._leases.more(self._grant, quota, short_units):
                    raise self._unpaid(quota, units)

    async def _pay_async(self, book: dict[str, int], quota: str, units: int) -> None:
        async with self._turn_async:
            while short_units := self._promise(book, quota, units):
                if not await self._leases.more_async(self._grant, quota, short_units):
                    raise self._unpaid(quota, units)

    def _promise(self, book: dict[str, int], quota: str, units: int) -> int:
        """Enter the units in `book` if the grant covers them beside what is promised already; how many are missing."""
        with self._lock:
            self.check()
            promised = self._in_flight.get(quota, 0) + self._spent.get(quota, 0)
            short_units = max(0, promised + units - self._grant.reserved(quota))
            if not short_units:
                book[quota] = book.get(quota, 0) + units
            return short_units

    def _unpaid(self, quota: str, units: int) -> Unpaid:
        with self._lock:
            self._spent.setdefault(quota, 0)  # it is metered: what was refused is no call that nobody saw
            wanted = self._booked.get(quota, 0) + self._in_flight.get(quota, 0) + self._spent[quota] + units
            self.short[quota] = max(wanted, self.short.get(quota, 0))
        self.limited = unpaid = Unpaid(None, f"quota {quota} cannot pay for {units} more", quota=quota)
        return unpaid

    def _default(self) -> str:
        if len(self._tariff.quotas) == 1:
            return next(iter(self._tariff.quotas))
        raise ValueError(f"name the quota, one of {', '.join(sorted(self._tariff.quotas)) or 'none'}")


@dataclass(frozen=True, slots=True)
class Call:
    """One metered call that is under way."""

    meter: Meter
    quota: str

    def end(self, *, sent: bool = True, ambiguous: bool = False) -> None:
        """The call is over."""
        self.meter.end(self, sent=sent, ambiguous=ambiguous)


def block(leases: Leases, quota: str, retry_after_s: float) -> None:
    """A handler says that the upstream serves nothing of a quota for so long; a day is the most. Never waits."""
    wait_ns = MAX_WAIT_NS if retry_after_s * NS_PER_S >= MAX_WAIT_NS else round(retry_after_s * NS_PER_S)
    until_ns = leases.clock.now_ns() + wait_ns
    leases.tell(quota, Heard(refused=True, wait=Span(until_ns, until_ns)))
