"""A quota that is only counted: in place of a host's ledger and this process's leases."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

from qctl.quota import Cause, Hold
from qctl.quota.upstream import Heard


class Price:
    """What a task costs, in place of `Priced`."""

    def __init__(self, consumer: str, cost: Mapping[str, int]) -> None:
        self.consumer = consumer
        self.cost = dict(cost)


class Reservation:
    """What one task has reserved, in place of `Grant`."""

    def __init__(self, price: Price) -> None:
        self.priced = price
        self.units = dict(price.cost)
        self.open = True

    def reserved(self, quota: str) -> int:
        """Units of `quota` that the task may still spend."""
        return self.units.get(quota, 0)


class Purse:
    """In place of `Leases`: the part of it that the executor and the meter use, by the same rules of what counts."""

    def __init__(self, left: Mapping[str, int]) -> None:
        """left: units by quota that can be paid; a quota that is not in it has no end."""
        self.left = dict(left)
        self.spent: dict[str, int] = {}
        self.blocked: set[str] = set()
        self.clock = self
        self._lock = threading.Lock()

    def now_ns(self) -> int:
        """As of Clock."""
        return time.monotonic_ns()

    def price(self, consumer: str, cost: Mapping[str, int]) -> Price:
        """As of Leases."""
        return Price(consumer, cost)

    def take(self, price: Price) -> Reservation | None:
        """As of Leases: all quotas or none."""
        with self._lock:
            return Reservation(price) if self._take(price.cost) else None

    def acquire(self, price: Price) -> Reservation | Hold:
        """As of Leases, but that nothing is waited for."""
        short = next((quota for quota, units in price.cost.items() if units > self.left.get(quota, units)), None)
        return self.take(price) or Hold(short, Cause.QUOTA)

    def more(self, grant: Reservation, quota: str, units: int) -> bool:
        """As of Leases."""
        with self._lock:
            paid = self._take({quota: units})
            if paid:
                grant.units[quota] = grant.reserved(quota) + units
            return paid

    def book(self, grant: Reservation, quota: str, units: int, *, ambiguous: bool = False) -> None:
        """As of Leases."""
        del ambiguous
        with self._lock:
            if not grant.open:
                raise ValueError("this grant was settled before")
            grant.units[quota] = grant.reserved(quota) - units
            self.spent[quota] = self.spent.get(quota, 0) + units

    def settle(self, grant: Reservation, used: Mapping[str, int] | None = None, *, ambiguous: bool = False) -> None:
        """As of Leases."""
        del ambiguous
        with self._lock:
            if not grant.open:
                raise ValueError("this grant was settled before")
            grant.open = False
            for quota, reserved in grant.units.items():
                units = reserved if used is None else used.get(quota, 0)
                if units:
                    self.spent[quota] = self.spent.get(quota, 0) + units
                if quota in self.left:
                    self.left[quota] += reserved - units
            grant.units = {}

    async def more_async(self, grant: Reservation, quota: str, units: int) -> bool:
        """As of Leases."""
        return self.more(grant, quota, units)

    def tell(self, quota: str, heard: Heard) -> None:
        """As of Leases, for the rest of the test's task: nothing after a refusal, else what the API says remains."""
        with self._lock:
            if heard.refused:
                self.blocked.add(quota)
            for told in heard.told:
                if told.remaining_units is not None and not told.exact:
                    self.left[quota] = min(self.left.get(quota, told.remaining_units), told.remaining_units)

    def _take(self, cost: Mapping[str, int]) -> bool:
        if any(quota in self.blocked or units > self.left.get(quota, units) for quota, units in cost.items() if units):
            return False
        for quota, units in cost.items():
            if quota in self.left:
                self.left[quota] -= units
        return True
