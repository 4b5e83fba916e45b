"""One process's access to its host's quotas: spend from memory, wait briefly, or be told to hold."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType

from qctl.errors import LedgerError, UnknownName
from qctl.quota.account import Account, account
from qctl.quota.admission import Cause, Hold, Standing
from qctl.quota.clock import Clock
from qctl.quota.exchange import Exchange
from qctl.quota.foreign import ForeignReport, report
from qctl.quota.hearing import by_quota
from qctl.quota.ledger import Ledger
from qctl.quota.matching import limit_of
from qctl.quota.policy import NS_PER_S, Limit, Policy, Window
from qctl.quota.pool import Grant, Priced, Tally, Waiter
from qctl.quota.renewal import Renewal
from qctl.quota.till import Till
from qctl.quota.upstream import Heard
from qctl.quota.window import LimitReading, Reading

#: Takes the answer to who waits.
Answered = Callable[[Grant | Hold], None]
#: A waiting thread answers itself after hold_after and this: the ledger's thread may hang in the disk.
_MARGIN_S = 1.0


def _nothing() -> Mapping[str, int]:
    return {}


def _ignore(consumer: str, standing: Standing) -> None:
    del consumer, standing


class Leases:
    """The quotas of one process; every method may be called from any thread.

    on_standing(consumer, standing) is called from the ledger's thread when a consumer becomes held or consuming, before
    those who wait for it get their Hold. It must not block.
    """

    def __init__(self, ledger: Ledger, *, hold_after_s: float, on_standing: Callable[[str, Standing], None]) -> None:
        self._ledger = ledger
        self._hold_after_s = hold_after_s
        self._till = Till(ledger.clock.now_ns, self._wake)
        self._renewal = Renewal(ledger, self._till, hold_after_ns=int(hold_after_s * NS_PER_S), on_standing=on_standing)
        self._tallies: dict[str, Tally] = {}
        self._closed = False
        #: take(priced) -> Grant | None: reserve from memory alone; None: ask `acquire`.
        self.take = self._till.take
        #: settle(grant, used=None, *, ambiguous=False): end a grant; see Till.settle.
        self.settle = self._till.settle
        #: book(grant, quota, units, *, ambiguous=False): spent now, while the task runs on; see Till.book.
        self.book = self._till.book

    @classmethod
    def open(
        cls,
        directory: Path,
        policies: Iterable[Policy],
        *,
        hold_after_s: float = 1.0,
        on_standing: Callable[[str, Standing], None] = _ignore,
        clock: Clock | None = None,
        assume_spent: bool = False,
    ) -> Leases:
        """Join the ledger in `directory` (STATE/HOST) under these limits.

        assume_spent: if the ledger is new, all windows count as used up. Raises StateError, LedgerError.
        """
        ledger = Ledger.open(directory, clock=clock, assume_spent=assume_spent)
        try:
            ledger.configure(policies)
            ledger.join()
            leases = cls(ledger, hold_after_s=hold_after_s, on_standing=on_standing)
            leases._renewal.rebind()
        except BaseException:
            ledger.close()
            raise
        leases._renewal.start()
        return leases

    @property
    def ledger_id(self) -> str:
        """Which ledger this is; a new file has a new one."""
        return self._ledger.ledger_id

    @property
    def fresh(self) -> bool:
        """Whether this process made the file, assuming that nothing was spent."""
        return self._ledger.fresh

    @property
    def clock(self) -> Clock:
        """The clock of all instants here."""
        return self._ledger.clock

    @property
    def broken(self) -> LedgerError | None:
        """Why the ledger cannot be used at present; what is in memory may still be spent."""
        return self._renewal.standings.broken

    def register(
        self, consumer: str, cost: Mapping[str, int], *, backlog: Callable[[], Mapping[str, int]] = _nothing
    ) -> Priced:
        """Make `consumer` known: from now on it has a standing, judged at once. Returns the price of its usual task.

        backlog(): units by quota for all deliveries that this process holds of it and has not admitted; called from the
        ledger's thread, must not block. Raises UnknownName for a quota without a policy, LedgerError.
        """
        priced = self.price(consumer, cost)
        self._renewal.enter(priced, backlog)
        return priced

    def price(self, consumer: str, cost: Mapping[str, int]) -> Priced:
        """Prepare a cost for taking. Reusable. Raises UnknownName for a quota without a policy."""
        for quota, units in cost.items():
            if quota not in self._till.pools:
                raise UnknownName(f"there is no quota {quota}", hint="Add it under `quotas:` in the inventory.")
            if units < 0:
                raise ValueError(f"a cost cannot be negative: {quota}: {units}")
        lines = tuple((self._till.pools[quota], units) for quota, units in sorted(cost.items()) if units)
        return Priced(consumer, lines, self._tallies.setdefault(consumer, Tally()))

    def withdraw(self, consumer: str) -> None:
        """The consumer is paused or draining: no claims, no standing; who waits gets Hold(WITHDRAWN) before this
        returns. Grants stay. Asks no disk."""
        self._renewal.withdraw(consumer)

    def enter_again(self, priced: Priced, *, backlog: Callable[[], Mapping[str, int]] = _nothing) -> None:
        """As `register`, for a consumer that was withdrawn and is judged by what the ledger said last. Asks no disk."""
        self._renewal.enter_again(priced, backlog)

    def standing(self, consumer: str) -> Standing:
        """Where the consumer stands now; Hold(WITHDRAWN) if it is not registered."""
        return self._renewal.standings.of(consumer)

    def acquire(self, priced: Priced) -> Grant | Hold:
        """Reserve, waiting up to hold_after where it is worth it; Hold: give the delivery back."""
        return self.take(priced) or self._await(partial(self._request, priced, grant=None))

    def more(self, grant: Grant, quota: str, units: int) -> bool:
        """Reserve `units` more for a running task, waiting up to hold_after. False: they may not be spent."""
        priced = self.price(grant.priced.consumer, {quota: units})
        answer = self._await(partial(self._request, priced, grant=grant))
        return isinstance(answer, Grant)

    async def acquire_async(self, priced: Priced) -> Grant | Hold:
        """As `acquire`, while the event loop goes on. Cancelled, it has reserved nothing."""
        return self.take(priced) or await self._await_async(partial(self._request, priced, grant=None), grant=None)

    async def more_async(self, grant: Grant, quota: str, units: int) -> bool:
        """As `more`, while the event loop goes on. Cancelled, it may have reserved what the grant's end gives back."""
        priced = self.price(grant.priced.consumer, {quota: units})
        answer = await self._await_async(partial(self._request, priced, grant=grant), grant=grant)
        return isinstance(answer, Grant)

    def tell(self, quota: str, heard: Heard) -> None:
        """What an answer of the upstream said. Asks no disk: the ledger hears of it in its next exchange, of a refusal
        in a moment. What lies in memory is bound by it at once."""
        reading = self.readings().get(quota)
        if reading is None:
            return
        hearing, limits = self._renewal.hearing, [part.limit for part in reading.limits]
        remaining: dict[Limit, int] = {}
        for told in heard.told:
            limit = limit_of(told, limits)
            if limit is not None:
                hearing.note(quota, limit, told)
                if told.remaining_units is not None:
                    remaining[limit] = told.remaining_units
                    self._till.bound(quota, told.remaining_units, lasts=limit.window is Window.FIXED)
        if not heard.refused and reading.probing_until_ns and heard.told:
            self._till.answered(quota, max(told.sent_ns for told in heard.told))
        if heard.refused:
            until_ns = heard.wait.hi_ns if heard.wait else None
            if until_ns is None and not heard.secondary:
                until_ns = next_window(reading, remaining, self.clock.now_ns())
            hearing.refused(quota, until_ns)
            self._till.refuse(quota)

    def block(self, quota: str, until_ns: int | None) -> None:
        """The upstream said: nothing before `until_ns` (None: it did not say). Binds all processes of the host at once.
        Raises LedgerError."""
        self._ledger.block(quota, until_ns)
        self._wake()

    def configure(self, policies: Iterable[Policy]) -> None:
        """Change limits; binds at once in all processes of the host. Raises LedgerError."""
        self._ledger.configure(policies)
        self._renewal.rebind()
        self._wake()

    def count_as_spent(self, evidence: str) -> bool:
        """Count every window as used up from now, and void all leases of the host: others have spent what this ledger
        does not know of. Once for each `evidence` (what showed it); whether this call did it. Raises LedgerError."""
        counted = self._ledger.count_as_spent(evidence)
        self._wake()
        return counted

    def readings(self) -> Mapping[str, Reading]:
        """What the ledger said last, a second ago at most; asks no disk."""
        return self._renewal.standings.readings

    def accounts(self, policies: Iterable[Policy]) -> Mapping[str, Account]:
        """What counts of these quotas now, by name; asks no disk. What the ledger has not heard of is left out."""
        now_ns, readings, process = self.clock.now_ns(), self.readings(), self._ledger.process
        return {
            policy.name: account(
                reading,
                # What was leased after the reading is not in it.
                lease_units=min(self._till.left(policy.name), reading.leased.get(process, 0)),
                shown_ns={limit.period_ns for limit in policy.limits},
                now_ns=now_ns,
            )
            for policy in policies
            if (reading := readings.get(policy.name)) is not None
        }

    def foreign(self) -> Mapping[str, ForeignReport]:
        """What others spend of these quotas now, by name, as far as the upstream shows it; asks no disk."""
        now_ns, found = self.clock.now_ns(), dict[str, ForeignReport]()
        for quota, reading in self.readings().items():
            told = report(quota, ((part.limit, part.foreign) for part in reading.limits), now_ns)
            if told is not None:
                found[quota] = told
        return found

    def look(self) -> Mapping[str, Reading]:
        """What the ledger says now. Asks the disk. Raises LedgerError."""
        return self._ledger.readings()

    def close(self) -> None:
        """Give back what is unspent and leave. What no task has settled counts as spent. Raises LedgerError."""
        if self._closed:
            return
        self._closed = True
        for entry in self._renewal.standings.all():
            self.withdraw(entry.priced.consumer)
        self._renewal.stop()
        for waiter in tuple(self._till.waiters):
            if self._till.dequeue(waiter):
                waiter.done(Hold(None, Cause.WITHDRAWN))
        try:
            statement = self._till.state({quota: pool.left for quota, pool in self._till.pools.items()})
            last = Exchange(
                held=statement.held,
                settled=statement.settled,
                doubtful=statement.doubtful,
                told=by_quota(self._renewal.hearing.take()),
                running=statement.running,
            )
            if self._ledger.exchange(last).void:
                self._ledger.exchange(last)
            for quota, until_ns in self._renewal.hearing.blocks().items():
                self._ledger.block(quota, until_ns)
            self._ledger.leave()
        finally:
            self._till.shut()
            self._ledger.close()

    def __enter__(self) -> Leases:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _wake(self) -> None:
        self._renewal.wake.set()

    def _request(self, priced: Priced, done: Answered, grant: Grant | None) -> Waiter | None:
        held = self.standing(priced.consumer).held if grant is None else None
        if held is not None:
            done(held)
            return None
        now_ns = self._ledger.clock.now_ns()
        waiter = Waiter(priced=priced, done=done, since_ns=now_ns, grant=grant, try_ns=now_ns)
        self._till.enqueue(waiter)
        # Whoever was withdrawn in between was not seen in line.
        held = self.standing(priced.consumer).held if grant is None else None
        if held is not None and self._till.dequeue(waiter):
            done(held)
            return None
        return waiter

    def _await(self, ask: Callable[[Answered], Waiter | None]) -> Grant | Hold:
        answered = threading.Event()
        answers: list[Grant | Hold] = []

        def done(answer: Grant | Hold) -> None:
            answers.append(answer)
            answered.set()

        waiter = ask(done)
        if waiter and not answered.wait(self._hold_after_s + _MARGIN_S) and self._till.dequeue(waiter):
            return Hold(None, Cause.LEDGER)
        # Whoever took the waiter out of the line is about to answer.
        answered.wait()
        return answers[0]

    async def _await_async(self, ask: Callable[[Answered], Waiter | None], *, grant: Grant | None) -> Grant | Hold:
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[Grant | Hold] = loop.create_future()

        def refuse(answer: Grant | Hold) -> None:
            # A task that was cancelled, or whose loop is closed, has no use for it. What a running task got is its own.
            if isinstance(answer, Grant) and grant is None:
                self.settle(answer, {})

        def deliver(answer: Grant | Hold) -> None:
            refuse(answer) if answered.done() else answered.set_result(answer)

        def done(answer: Grant | Hold) -> None:
            try:
                loop.call_soon_threadsafe(deliver, answer)
            except RuntimeError:
                refuse(answer)

        waiter = ask(done)
        try:
            await asyncio.wait([answered], timeout=self._hold_after_s + _MARGIN_S)
            if waiter and not answered.done() and self._till.dequeue(waiter):
                return Hold(None, Cause.LEDGER)
            return await answered
        except asyncio.CancelledError:
            if answered.done() and not answered.cancelled():
                refuse(answered.result())
            answered.cancel()
            if waiter:
                self._till.dequeue(waiter)
            raise


def next_window(reading: Reading, remaining: Mapping[Limit, int], now_ns: int) -> int | None:
    """When an API that counts by windows, and refuses without a word, serves again: the soonest reset that is known of
    a limit that is used up. Others are refused for another reason: for too many calls at once, by a proxy.

    remaining: units, as the refusal itself said of a limit.
    """
    opens_ns = (
        part.reset.opens_ns
        for part in reading.limits
        if part.limit.window is Window.FIXED and _is_used_up(part, remaining.get(part.limit), reading, now_ns)
    )
    return min((at_ns for at_ns in opens_ns if at_ns is not None and at_ns > now_ns), default=None)


def _is_used_up(part: LimitReading, said_units: int | None, reading: Reading, now_ns: int) -> bool:
    """By the API's word, else by what is counted."""
    if said_units is not None:
        return said_units <= 0
    known = part.foreign
    if known is not None and now_ns < known.until_ns and not known.remaining_units:
        return True
    beside = part.kept_off(now_ns, idle=False)
    return part.used(now_ns) + reading.leased_units + beside >= part.limit.units
