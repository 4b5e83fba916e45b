"""The meter of a task: what its calls cost, and which quota pays for them.

It draws on what admission reserved, reserves more when the task makes more calls, and says at the end what was
used. A quota that was never metered is settled at its declared cost.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from qctl.broker.message import DeadReason, Malformed
from qctl.errors import LedgerError
from qctl.quota import Grant, Leases
from qctl.units import MAX_UNITS, NS_PER_S
from qctl.worker.exceptions import RateLimited, TimedOut, Unpaid
from qctl.worker.upstream import Seen

log = logging.getLogger(__name__)

#: Seconds without new grants after a 429 that does not say how long.
UNSAID_RETRY_AFTER_S = 5.0
#: Longest pause that an upstream or a handler is believed; an epoch taken for a delay must not end a host's work.
MAX_RETRY_AFTER_S = 86_400.0
_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Tariff:
    """Which quota a call counts against. `prefixes`: (normal URL prefix, quota), longest first; `default`: the rest.

    most: units that a quota can ever pay at once, where that is known.
    """

    prefixes: tuple[tuple[str, str], ...]
    default: str | None
    quotas: frozenset[str]
    most: Mapping[str, int]

    def quota_of(self, url: str) -> str | None:
        """The quota that pays for a call of `url`, None for a call that costs nothing."""
        if self.prefixes:
            address = normal(url)
            for prefix, quota in self.prefixes:
                if address.startswith(prefix):
                    return quota
        return self.default


def normal(url: str) -> str:
    """The one spelling of a URL: another way to write the same server must not be a way around its quota."""
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port not in (None, _DEFAULT_PORTS.get(parts.scheme)) else ""
    except ValueError:
        return url
    host = (parts.hostname or "").rstrip(".")
    return f"{parts.scheme}://{host}{port}{parts.path or '/'}"


def tariff(cost: Mapping[str, int], urls: Mapping[str, tuple[str, ...]], most: Mapping[str, int]) -> Tariff:
    """The tariff of a consumer that names the quotas of `cost`, whose `urls` and `most` units are given per quota.

    A quota without urls takes every call that no other one claims.
    """
    found = ((normal(url), quota) for quota in cost for url in urls.get(quota, ()))
    prefixes = sorted(found, key=lambda pair: -len(pair[0]))
    default = next((quota for quota in cost if not urls.get(quota)), None)
    return Tariff(tuple(prefixes), default, frozenset(cost), most)


class Meter:
    """Counts what one task uses of each quota. Thread-safe: a handler may use threads of its own.

    A call of `task.http` is booked when it is answered; units of `task.spend` when the task ends, since nobody knows
    when in between the call was made.
    """

    def __init__(self, leases: Leases, grant: Grant, rates: Tariff, deadline_s: float = math.inf) -> None:
        """deadline_s: of the monotonic clock, when the task is over time."""
        self.deadline_s = deadline_s
        self._lock = threading.Lock()
        self._leases = leases
        self._grant = grant
        self._tariff = rates
        self._in_flight: dict[str, int] = {}
        self._spent: dict[str, int] = {}
        self._overdue = False
        self._closed = False
        #: why a call was not made; it ends the task whatever the handler makes of it
        self.limited: RateLimited | Malformed | None = None
        #: what the last call met; None when there was none, or no answer
        self.seen: Seen | None = None
        #: ends the calls that are under way
        self.cut: Callable[[], None] | None = None

    def stop(self) -> None:
        """The task is over time: calls under way are cut off, and from now on every call raises TimedOut."""
        self._overdue = True
        if self.cut is not None:
            self.cut()

    def check(self) -> None:
        """Raise TimedOut when the task may make no more calls."""
        if self._overdue or self._closed:
            raise TimedOut(f"the task is {'over' if self._closed else 'over its timeout'}; no more calls")

    def begin(self, url: str) -> Call | None:
        """Reserve a unit for a call of `url`, None when the call costs nothing. Raises Unpaid, TimedOut."""
        self.check()
        quota = self._tariff.quota_of(url)
        if quota is None:
            return None
        with self._lock:
            self._reserve(quota, 1)
            self._in_flight[quota] = self._in_flight.get(quota, 0) + 1
        return Call(self, quota)

    def spend(self, units: int, quota: str | None = None) -> None:
        """Pay `units` of `quota` (default: the consumer's only one) for calls made without `task.http`.

        Raises Unpaid, TimedOut, ValueError for what cannot be, Malformed for more units than the quota ever has.
        """
        if isinstance(units, bool) or not isinstance(units, int) or not 0 <= units <= MAX_UNITS:  # type: ignore[redundant-expr]
            raise ValueError(f"units must be a whole number from 0 to 10^12, found {units!r}")
        name = quota or self._default()
        if name not in self._tariff.quotas:
            raise ValueError(f"this consumer has no quota {name!r}; it names {', '.join(sorted(self._tariff.quotas))}")
        with self._lock:
            if units > (most := self._tariff.most.get(name, units)):
                self._spent.setdefault(name, 0)
                self.limited = Malformed(f"asks {units} of {name}, more than its limit {most}", DeadReason.COST)
                raise self.limited
            self._reserve(name, units)
            self._spent[name] = self._spent.get(name, 0) + units

    def end(self, call: Call, *, sent: bool, ambiguous: bool) -> None:
        """A call of `begin` is over. sent False: the upstream cannot have seen it, and the unit is free again."""
        with self._lock:
            if self._closed:
                return  # booked when the task ended
            self._in_flight[call.quota] -= 1
            if sent:
                self._leases.book(self._grant, call.quota, 1, ambiguous=ambiguous)

    def close(self, *, proven: bool) -> dict[str, int]:
        """The task ends: no more calls. Returns what is still to be settled.

        Calls still under way (in a thread that the handler left behind) are booked as ambiguous: the upstream may count
        them yet. proven: every call of this handler is metered, so that what was not booked was not used. Otherwise a
        quota that the task never metered counts at what was reserved for it.
        """
        with self._lock:
            self._closed = True
            for quota, calls in self._in_flight.items():
                if calls:
                    self._leases.book(self._grant, quota, calls, ambiguous=True)
            metered = self._spent.keys() | self._in_flight.keys()
            unmetered = () if proven else self._tariff.quotas - metered
            return {**{quota: self._grant.reserved(quota) for quota in unmetered}, **self._spent}

    def upstream_limited(self, url: str, retry_after_s: float | None) -> RateLimited:
        """The upstream answered 429: nothing is granted until it serves again; returns what to raise."""
        quota = self._tariff.quota_of(url)
        after = "" if retry_after_s is None else f", retry after {retry_after_s:g} s"
        self.limited = limited = RateLimited(retry_after_s, f"the upstream answered 429{after}", quota=quota)
        if quota is not None:
            block(self._leases, quota, retry_after_s)
        return limited

    def _reserve(self, quota: str, units: int) -> None:
        """Make sure that the grant covers `units` more than what is promised already."""
        self.check()
        promised = self._in_flight.get(quota, 0) + self._spent.get(quota, 0)
        short_units = promised + units - self._grant.reserved(quota)
        if short_units > 0 and not self._leases.more(self._grant, quota, short_units):
            self._spent.setdefault(quota, 0)  # it is metered: what was refused is no call that nobody saw
            self.limited = Unpaid(None, f"quota {quota} cannot pay for {units} more", quota=quota)
            raise self.limited

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


def block(leases: Leases, quota: str, retry_after_s: float | None) -> None:
    """Grant nothing of a quota until the upstream serves again; a ledger that takes no writes grants nothing anyway."""
    wait_s = UNSAID_RETRY_AFTER_S if retry_after_s is None else min(retry_after_s, MAX_RETRY_AFTER_S)
    try:
        leases.block(quota, leases.clock.now_ns() + round(wait_s * NS_PER_S))
    except LedgerError as error:
        log.warning("quota %s was refused by the upstream, but the ledger did not take it: %s", quota, error)
