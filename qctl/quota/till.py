"""A process's units in memory: leased, with running tasks, or spent and not yet written down.

Everything here is arithmetic under one lock; nothing waits and nothing touches the disk. For each quota

    left + running + pending + doubtful  =  what the ledger has as leased to this process

holds between exchanges, whatever tasks do.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from qctl.quota.pool import Grant, Lines, Pool, Priced, Waiter

#: Instead of the shared page when that is closed: no epoch is zero.
_NO_WORDS = memoryview(bytes(8)).cast("Q")


@dataclass(frozen=True, slots=True)
class Statement:
    """What goes into an exchange: see ledger.Exchange."""

    held: Mapping[str, int]
    running: Mapping[str, int]
    settled: Mapping[str, Mapping[int, int]]
    doubtful: Mapping[str, Mapping[int, int]]


class Till:
    """All pools of a process. `wake` is called when the ledger has to be asked for something; it must not block."""

    def __init__(self, now_ns: Callable[[], int], wake: Callable[[], None]) -> None:
        self.lock = threading.Lock()
        self.pools: dict[str, Pool] = {}
        self.waiters: list[Waiter] = []
        self._era = 0
        self._now_ns = now_ns
        self._wake = wake

    # -- tasks

    def take(self, priced: Priced) -> Grant | None:
        """Reserve all that the task costs, from memory alone; None if that is not possible."""
        lines = priced.lines
        if not lines:
            return Grant(priced, self._era)
        with self.lock:
            for pool, units in lines:
                if pool.left - pool.set_aside < units or pool.view[pool.slot] != pool.epoch:
                    return self._take_earmarked(priced)
            for pool, units in lines:
                pool.left = left = pool.left - units
                pool.running += units
                pool.taken += units
                if left <= pool.low and not pool.thirsty:
                    pool.thirsty = True
                    self._wake()
            priced.tally.tasks += 1
            return Grant(priced, self._era)

    def settle(self, grant: Grant, used: Mapping[str, int] | None = None, *, ambiguous: bool = False) -> None:
        """End the grant: of what it still has reserved, `used` (None: all) is spent now and the rest comes back."""
        if used and min(used.values()) < 0:
            raise ValueError(f"units used cannot be negative: {dict(used)}")
        now_ns = self._now_ns()
        with self.lock:
            if not grant.open:
                raise ValueError("this grant was settled before")
            grant.open = False
            for pool, units in grant.lines:
                spent = units if used is None else used.get(pool.quota, 0)
                pool.running -= units
                if spent:
                    book = pool.doubtful if ambiguous else pool.pending
                    instant_ns = -(-now_ns // pool.grain_ns) * pool.grain_ns
                    book[instant_ns] = book.get(instant_ns, 0) + spent
                    if pool.urgent:
                        self._wake()
                if spent != units:
                    self._refund(pool, units - spent, grant.era)
            if used:
                priced = {pool.quota for pool, _ in grant.lines}
                for quota in used.keys() - priced:
                    self._spend_unreserved(quota, used[quota], now_ns, ambiguous)

    def book(self, grant: Grant, quota: str, units: int, *, ambiguous: bool = False) -> None:
        """These units of the grant are spent now. What the grant has not reserved is booked all the same."""
        if units < 0:
            raise ValueError(f"units spent cannot be negative: {units}")
        now_ns = self._now_ns()
        with self.lock:
            if not grant.open:
                raise ValueError("this grant was settled before")
            covered = min(units, grant.reserved(quota))
            self.pools[quota].running -= covered
            self.pools[quota].left += covered
            grant.lines = tuple((pool, held - covered if pool.quota == quota else held) for pool, held in grant.lines)
            self._spend_unreserved(quota, units, now_ns, ambiguous)

    # -- who waits

    def enqueue(self, waiter: Waiter) -> None:
        """Stand in line; the units are set aside for it as they come."""
        with self.lock:
            self.waiters.append(waiter)
            for pool, units in waiter.priced.lines:
                pool.set_aside += units
        self._wake()

    def dequeue(self, waiter: Waiter) -> bool:
        """Leave the line; False if it was served or answered already."""
        with self.lock:
            return self._dequeue(waiter)

    def waiting(self) -> tuple[Waiter, ...]:
        """Who stands in line."""
        with self.lock:
            return tuple(self.waiters)

    def serve(self) -> list[tuple[Waiter, Grant]]:
        """Pay whoever can be paid from memory, first come first served in each quota."""
        served: list[tuple[Waiter, Grant]] = []
        with self.lock:
            short: set[str] = set()
            for waiter in tuple(self.waiters):
                consumer = waiter.priced.consumer
                missing = [
                    pool.quota
                    for pool, units in waiter.priced.lines
                    if pool.quota in short
                    or not pool.valid
                    or pool.left - sum(n for it, n in pool.earmarks.items() if it != consumer) < units
                ]
                short.update(missing)
                if not missing:
                    self._dequeue(waiter)
                    for pool, units in waiter.priced.lines:
                        pool.left -= units
                        self._use_earmark(pool, consumer, units)
                    served.append((waiter, self._granted(waiter)))
        return served

    def serve_leased(self, waiters: Iterable[Waiter]) -> list[tuple[Waiter, Grant]]:
        """Hand out what the ledger has just leased for these waiters; who left meanwhile leaves it to the pool."""
        served: list[tuple[Waiter, Grant]] = []
        with self.lock:
            for waiter in waiters:
                if self._dequeue(waiter):
                    served.append((waiter, self._granted(waiter)))
                else:
                    for pool, units in waiter.priced.lines:
                        pool.left += units
        return served

    def left_for(self, quota: str, consumer: str) -> int:
        """Units in memory that `consumer` may have."""
        with self.lock:
            pool = self.pools[quota]
            kept_for_others = sum(units for name, units in pool.earmarks.items() if name != consumer)
            return max(0, pool.left - kept_for_others) if pool.valid else 0

    def left(self, quota: str) -> int:
        """Units in memory that are nobody's yet, earmarks included."""
        with self.lock:
            pool = self.pools.get(quota)
            return max(0, pool.left) if pool is not None and pool.valid else 0

    # -- exchanges

    def bind(self, slots: Mapping[str, int], grains_ns: Mapping[str, int], view: memoryview) -> None:
        """Have a pool for each quota, looking at its word of the shared page."""
        with self.lock:
            for quota, slot in slots.items():
                if quota not in self.pools:
                    # A new mapping, since other threads may be going through the old one.
                    self.pools = {**self.pools, quota: Pool(quota, slot, view, grains_ns[quota])}
                pool = self.pools[quota]
                if pool.view is not view or pool.slot != slot:
                    self._void(pool)
                    pool.epoch, pool.slot, pool.view = -1, slot, view
                pool.grain_ns = grains_ns[quota]

    def shut(self) -> None:
        """From now on nothing can be taken, and nobody looks at the shared page any more."""
        with self.lock:
            for pool in self.pools.values():
                self._void(pool)
                pool.view, pool.slot = _NO_WORDS, 0

    def state(self, give_back: Mapping[str, int]) -> Statement:
        """Take what is to be settled and given back out of the pools. give_back: the most, by quota.

        To be followed by `confirm` or `restore`.
        """
        settled, doubtful, held, running = {}, {}, {}, {}
        with self.lock:
            for quota, pool in self.pools.items():
                if pool.pending:
                    settled[quota], pool.pending = pool.pending, {}
                if pool.doubtful:
                    doubtful[quota], pool.doubtful = pool.doubtful, {}
                # Spent beyond what was leased: that is settled, so the ledger learns of it, and no more owed here.
                pool.left = max(0, pool.left)
                earmarked = sum(pool.earmarks.values()) if pool.valid else 0
                returned = max(0, min(give_back.get(quota, 0), pool.left - earmarked)) if pool.valid else pool.left
                pool.left -= returned
                if not pool.valid:
                    self._drop_earmarks(pool)
                pool.restate = False
                if pool.left + pool.running:
                    held[quota] = pool.left + pool.running
                if pool.running:
                    running[quota] = pool.running
        return Statement(held=held, running=running, settled=settled, doubtful=doubtful)

    def restore(self, statement: Statement) -> None:
        """The exchange failed, or only its answer: what was to be written is written again.

        What was to be given back may have come back: it is not ours to spend any more.
        """
        with self.lock:
            for pool in self.pools.values():
                pool.restate = True
            for quota, units_at in statement.settled.items():
                _merge(self.pools[quota].pending, units_at)
            for quota, units_at in statement.doubtful.items():
                _merge(self.pools[quota].doubtful, units_at)

    def confirm(self, leased: Mapping[str, int], epochs: Mapping[str, int]) -> None:
        """The exchange is done: `leased` units more, and all that is left is of these epochs."""
        with self.lock:
            for quota in epochs.keys() & self.pools.keys():
                pool = self.pools[quota]
                if pool.epoch != epochs[quota]:
                    # Leased under other limits, the very last moment included: not to be spent under these.
                    self._void(pool)
                    pool.epoch = epochs[quota]
            for quota, units in leased.items():
                pool = self.pools[quota]
                pool.left += units
                pool.low = pool.left // 2
                pool.thirsty = False

    def void(self) -> None:
        """What is left was leased from a ledger that does not know us: it may not be spent."""
        with self.lock:
            for pool in self.pools.values():
                self._void(pool)

    def bound(self, quota: str, remaining_units: int) -> None:
        """The API says that no more than this is left for all its callers: what is beyond it here goes back at once.

        Calls with running tasks may be in what it has counted or not, so all of them are taken to be yet to come.
        """
        with self.lock:
            pool = self.pools[quota]
            excess = min(pool.left, pool.left + pool.running - remaining_units)
            if excess > 0:
                pool.left -= excess
                pool.restate = True
                if pool.left < sum(pool.earmarks.values()):
                    self._drop_earmarks(pool)
                self._wake()

    def refuse(self, quota: str) -> None:
        """The API serves nothing for now: nothing that is left may be spent, until the ledger has been asked."""
        with self.lock:
            pool = self.pools[quota]
            self._void(pool)
            pool.epoch = -1
            self._wake()

    def earmark(self, consumer: str, cost: Mapping[str, int]) -> None:
        """Add units that were leased for `consumer`, and keep them for it until `unmark`."""
        with self.lock:
            for quota, units in cost.items():
                pool = self.pools[quota]
                pool.left += units
                pool.set_aside += units
                pool.earmarks[consumer] = pool.earmarks.get(consumer, 0) + units

    def unmark(self, consumer: str) -> None:
        """Whoever comes first may have what was kept for `consumer`."""
        with self.lock:
            for pool in self.pools.values():
                self._use_earmark(pool, consumer, pool.earmarks.get(consumer, 0))

    # -- inside, under the lock

    def _granted(self, waiter: Waiter) -> Grant:
        for pool, units in waiter.priced.lines:
            pool.running += units
            pool.taken += units
        if waiter.grant is None:
            waiter.priced.tally.tasks += 1
            return Grant(waiter.priced, self._era)
        if waiter.grant.open:
            waiter.grant.lines = _added(waiter.grant.lines, waiter.priced.lines)
        else:
            for pool, units in waiter.priced.lines:
                pool.running -= units
                pool.left += units
        return waiter.grant

    def _take_earmarked(self, priced: Priced) -> Grant | None:
        consumer = priced.consumer
        for pool, units in priced.lines:
            kept_for_others = pool.set_aside - pool.earmarks.get(consumer, 0)
            if not pool.valid or pool.left - kept_for_others < units:
                return None
        for pool, units in priced.lines:
            pool.left -= units
            pool.running += units
            pool.taken += units
            self._use_earmark(pool, consumer, units)
        priced.tally.tasks += 1
        return Grant(priced, self._era)

    def _dequeue(self, waiter: Waiter) -> bool:
        if waiter not in self.waiters:
            return False
        self.waiters.remove(waiter)
        for pool, units in waiter.priced.lines:
            pool.set_aside -= units
        return True

    def _spend_unreserved(self, quota: str, units: int, now_ns: int, ambiguous: bool) -> None:
        pool = self.pools[quota]
        book = pool.doubtful if ambiguous else pool.pending
        instant_ns = -(-now_ns // pool.grain_ns) * pool.grain_ns
        if units:
            book[instant_ns] = book.get(instant_ns, 0) + units
            pool.left -= units
            if pool.left < 0 or pool.urgent:
                self._wake()

    def _refund(self, pool: Pool, units: int, era: int) -> None:
        if era != self._era and units > 0:
            pool.restate = True
        else:
            pool.left += units
        if pool.restate or pool.left < 0 or (self.waiters and pool.set_aside):
            self._wake()

    def _use_earmark(self, pool: Pool, consumer: str, units: int) -> None:
        marked = pool.earmarks.get(consumer, 0)
        used = min(units, marked)
        if used:
            pool.set_aside -= used
            pool.earmarks[consumer] = marked - used
        if used == marked:
            pool.earmarks.pop(consumer, None)

    def _void(self, pool: Pool) -> None:
        pool.restate = pool.restate or pool.left > 0
        pool.left = 0
        self._drop_earmarks(pool)
        self._era += 1

    def _drop_earmarks(self, pool: Pool) -> None:
        pool.set_aside -= sum(pool.earmarks.values())
        pool.earmarks.clear()


def _added(lines: Lines, more: Lines) -> Lines:
    units = dict(lines)
    for pool, extra in more:
        units[pool] = units.get(pool, 0) + extra
    return tuple(units.items())


def _merge(book: dict[int, int], units_at: Mapping[int, int]) -> None:
    for instant_ns, units in units_at.items():
        book[instant_ns] = book.get(instant_ns, 0) + units
