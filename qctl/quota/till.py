"""A process's units in memory: leased, with running tasks, or spent and not yet written down.

Everything here is arithmetic under one lock; nothing waits and nothing touches the disk. For each quota

    left + running + pending + doubtful  =  what the ledger has as leased to this process

holds between exchanges, whatever tasks do.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping

from qctl.quota.pool import Grant, Pool, Priced, Statement, Waiter, added, merge

#: Instead of the shared page when that is closed: no epoch is zero.
_NO_WORDS = memoryview(bytes(8)).cast("Q")
#: Of a pool whose units may not be spent, whatever the page says.
_NO_EPOCH = -1
_NOTHING: Mapping[str, int] = {}


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
                if grant.begun_ns and not ambiguous and (spent or pool.quota in grant.booked):
                    # By its beginning: one that was refused began before the block that it made.
                    pool.served_ns = max(pool.served_ns, grant.begun_ns)
                if spent != units:
                    self._refund(pool, units - spent, grant.era)
            if used:
                priced = {pool.quota for pool, _ in grant.lines}
                for quota in used.keys() - priced:
                    self._spend_unreserved(quota, used[quota], now_ns, ambiguous)
            grant.lines = ()  # nothing is reserved any more

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
            if not ambiguous and quota not in grant.booked:
                grant.booked = (*grant.booked, quota)

    def answered(self, quota: str, sent_ns: int) -> None:
        """A call that was sent then was answered, and not refused."""
        with self.lock:
            pool = self.pools[quota]
            pool.served_ns = max(pool.served_ns, sent_ns)

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
        """Hand out what the ledger has just leased for these waiters; who left meanwhile leaves it to the pool. What an
        answer of the API has overtaken goes back, and who waits for it asks again."""
        served: list[tuple[Waiter, Grant]] = []
        with self.lock:
            for waiter in waiters:
                if all(pool.epoch != _NO_EPOCH for pool, _ in waiter.priced.lines) and self._dequeue(waiter):
                    served.append((waiter, self._granted(waiter)))
                else:
                    for pool, units in waiter.priced.lines:
                        self._take_in(pool, units)
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
                    pool.epoch, pool.slot, pool.view = _NO_EPOCH, slot, view
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
                merge(self.pools[quota].pending, units_at)
            for quota, units_at in statement.doubtful.items():
                merge(self.pools[quota].doubtful, units_at)

    def listen(self) -> None:
        """From now on, what the API says goes before what is leased until the next `confirm`."""
        with self.lock:
            for pool in self.pools.values():
                pool.said_units, pool.said_lasts = None, False

    def confirm(
        self, leased: Mapping[str, int], epochs: Mapping[str, int], granted: Mapping[str, int] = _NOTHING
    ) -> None:
        """The exchange is done: `leased` units more, and all that is left is of these epochs. granted: what is about to
        be served and earmarked. What an answer of the API has overtaken goes back."""
        with self.lock:
            for quota in epochs.keys() & self.pools.keys():
                pool = self.pools[quota]
                more = leased.get(quota, 0) + granted.get(quota, 0)
                said_units = pool.said_units
                if said_units is not None and more and pool.said_lasts and pool.left + more + pool.running > said_units:
                    self._void(pool)
                    pool.epoch, pool.restate = _NO_EPOCH, True
                    self._wake()
                elif pool.epoch != epochs[quota] and (said_units is None or said_units >= 0):
                    # Leased under other limits, the very last moment included: not to be spent under these.
                    self._void(pool)
                    pool.epoch = epochs[quota]
            for pool in (self.pools[quota] for quota in leased.keys() & self.pools.keys()):
                self._take_in(pool, leased[pool.quota])
                self._cut(pool)
                pool.low = pool.left // 2
                pool.thirsty = False

    def void(self) -> None:
        """What is left was leased from a ledger that does not know us: it may not be spent."""
        with self.lock:
            for pool in self.pools.values():
                self._void(pool)

    def bound(self, quota: str, remaining_units: int, *, lasts: bool) -> None:
        """The API says that no more than this is left for all its callers: what is beyond it here goes back at once.

        Calls with running tasks may be in what it has counted or not, so all of them are taken to be yet to come.
        lasts: nothing returns before a reset, so that it binds what is being leased at this moment as well.
        """
        with self.lock:
            pool = self.pools[quota]
            pool.said_units = min(remaining_units, remaining_units if pool.said_units is None else pool.said_units)
            pool.said_lasts |= lasts
            self._cut(pool)

    def refuse(self, quota: str) -> None:
        """The API serves nothing for now: nothing that is left may be spent, until the ledger has been asked."""
        with self.lock:
            pool = self.pools[quota]
            self._void(pool)
            pool.epoch, pool.said_units, pool.said_lasts = _NO_EPOCH, -1, True
            self._wake()

    def earmark(self, consumer: str, cost: Mapping[str, int]) -> None:
        """Add units that were leased for `consumer`, and keep them for it until `unmark`."""
        with self.lock:
            for quota, units in cost.items():
                pool = self.pools[quota]
                self._take_in(pool, units)
                if pool.epoch != _NO_EPOCH:
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
            return Grant(waiter.priced, self._era, self._now_ns())
        if waiter.grant.open:
            waiter.grant.lines = added(waiter.grant.lines, waiter.priced.lines)
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
        return Grant(priced, self._era, self._now_ns())

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

    def _take_in(self, pool: Pool, units: int) -> None:
        """What was just leased; it goes back where an answer of the API has overtaken it."""
        if pool.epoch == _NO_EPOCH:
            pool.restate = pool.restate or units > 0
        else:
            pool.left += units

    def _cut(self, pool: Pool) -> None:
        """What the API says that does not remain goes back."""
        excess = 0 if pool.said_units is None else min(pool.left, pool.left + pool.running - pool.said_units)
        if excess > 0:
            pool.left -= excess
            pool.restate = True
            if pool.left < sum(pool.earmarks.values()):
                self._drop_earmarks(pool)
            self._wake()

    def _void(self, pool: Pool) -> None:
        pool.restate = pool.restate or pool.left > 0
        pool.left = 0
        self._drop_earmarks(pool)
        self._era += 1

    def _drop_earmarks(self, pool: Pool) -> None:
        pool.set_aside -= sum(pool.earmarks.values())
        pool.earmarks.clear()
