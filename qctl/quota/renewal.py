"""The thread that alone asks the ledger on behalf of a process.

A round: pay who can be paid from memory; if anything is due (somebody waits, a pool runs low, settlements are to be
written, units lie idle), one exchange with the ledger; look at the ledger again if it was changed; judge every
consumer. Then sleep until something is due by the clock, or somebody wakes us.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from qctl.errors import LedgerError
from qctl.quota.admission import Cause, Hold, Standing, one_by_one
from qctl.quota.exchange import Exchange, Want
from qctl.quota.hearing import Hearing, by_quota
from qctl.quota.ledger import Ledger
from qctl.quota.line import in_turn
from qctl.quota.policy import NS_PER_MS, NS_PER_S, Window
from qctl.quota.pool import Grant, Pool, Priced, Statement, Waiter
from qctl.quota.schema import ROUND_PATIENCE_S
from qctl.quota.standing import RETRY_NS, Entry, Standings
from qctl.quota.till import Till
from qctl.quota.window import Reading

log = logging.getLogger(__name__)

#: A process with nothing to do looks this often whether somebody else needs what it has.
TICK_NS = 250 * NS_PER_MS
#: While somebody waits here: what others give back should be seen soon. Each look keeps writers out for a moment.
WAITING_TICK_NS = 50 * NS_PER_MS
#: The same where what somebody waits for comes unit by unit, of which it would miss some: a part of what one takes.
TIGHT_TICK_NS = 5 * NS_PER_MS
#: Units that nobody took for this long go back.
IDLE_NS = NS_PER_S
#: The dead are looked for this often.
HOUSEKEEPING_NS = NS_PER_S
#: Settlements are written down at least this often, and so many times a window.
FLUSH_NS = NS_PER_S
FLUSHES_A_WINDOW = 20
#: After an error of the ledger.
BROKEN_RETRY_NS = 200 * NS_PER_MS
#: Units leased for a consumer that comes back are kept for it this long: to subscribe and receive takes some ms.
EARMARK_NS = NS_PER_S
#: Of what it spends in a second a process keeps this part when somebody else is short.
KEEP_DIVISOR = 2


@dataclass(slots=True)
class _Usage:
    """What a pool was used for lately."""

    active_ns: int
    taken_before: int = 0
    per_second: int = 0
    taken_at_second: int = 0


@dataclass(slots=True)
class _Plan:
    """What the next exchange is to contain, if it is due."""

    due: bool
    #: Before the rest is looked at: who is withdrawn while this is made is for the next exchange.
    withdrawn: set[str] = field(default_factory=set)
    waiters: list[Waiter] = field(default_factory=list)
    returning: list[tuple[Entry, Want]] = field(default_factory=list)
    give_back: dict[str, int] = field(default_factory=dict)
    top_up: set[str] = field(default_factory=set)
    #: Who has a place in line and nobody in it: it was paid from memory, or left.
    idle_claims: set[str] = field(default_factory=set)
    #: Quotas that are tried out after a refusal, and when a call was sent that was served since.
    served: dict[str, int] = field(default_factory=dict)


class Renewal:
    """The thread, and what it remembers between rounds."""

    def __init__(
        self, ledger: Ledger, till: Till, *, hold_after_ns: int, on_standing: Callable[[str, Standing], None]
    ) -> None:
        self.wake = threading.Event()
        self.standings = Standings(
            till, process=lambda: ledger.process, hold_after_ns=hold_after_ns, on_standing=on_standing
        )
        self._ledger = ledger
        self._till = till
        self.hearing = Hearing()
        self._now_ns = ledger.clock.now_ns
        self._withdrawn: set[str] = set()
        self._usage: dict[str, _Usage] = {}
        self._mark = -1
        self._looked_ns = self._flushed_ns = self._kept_house_ns = self._now_ns()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="qctl-ledger", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, and wait for the round under way."""
        self._stopping = True
        self.wake.set()
        self._thread.join()

    # -- from other threads

    def enter(self, priced: Priced, backlog: Callable[[], Mapping[str, int]]) -> None:
        """Register a consumer and judge it at once, by a fresh look at the ledger."""
        self.standings.readings = self._ledger.readings()
        self.enter_again(priced, backlog)

    def enter_again(self, priced: Priced, backlog: Callable[[], Mapping[str, int]]) -> None:
        """Register a consumer and judge it at once, by what the ledger said last."""
        self._withdrawn.discard(priced.consumer)
        self.standings.enter(Entry(priced=priced, backlog=backlog), self._now_ns())
        self.wake.set()

    def withdraw(self, consumer: str) -> None:
        """Forget a consumer: who waits for it, what is kept for it, and (by the next round) its place in line."""
        if self.standings.forget(consumer):
            self._till.unmark(consumer)
            for waiter in self._till.waiting():
                if waiter.grant is None and waiter.priced.consumer == consumer and self._till.dequeue(waiter):
                    waiter.done(Hold(None, Cause.WITHDRAWN))
            self._withdrawn.add(consumer)
            self.wake.set()

    def rebind(self) -> None:
        """Make pools for all quotas of the ledger, and have all look at its shared page."""
        slots = self._ledger.slots()  # first: a quota that another process adds meanwhile is only in the readings then
        readings = self._ledger.readings()
        grains_ns = {quota: min(part.limit.bucket_ns for part in reading.limits) for quota, reading in readings.items()}
        self._till.bind(slots, grains_ns, self._ledger.words.view)
        self.standings.readings = readings

    # -- the thread

    def _run(self) -> None:
        while not self._stopping:
            self.wake.wait(max(0, self.turn()) / NS_PER_S)
            self.wake.clear()

    def turn(self) -> int:
        """A round, whatever comes of it; returns how long to sleep unless woken, in ns."""
        try:
            return self.round()
        except LedgerError as error:
            return self._break(error)
        except Exception as error:
            # Of the worker's listener or backlog; without this thread nobody would ever be paid again.
            log.exception("ledger thread: a round failed")
            return self._break(LedgerError(f"the ledger's thread failed: {error}"))

    def _break(self, error: LedgerError) -> int:
        if self.standings.broken is None:
            log.error("ledger unusable: %s", error.message)
        self.standings.broken = error
        try:
            self.standings.judge(self._now_ns())
        except Exception:
            # The same listener may fail again; the next round tries again.
            log.exception("ledger thread: cannot judge")
        return BROKEN_RETRY_NS

    def round(self) -> int:
        """One round; returns how long to sleep unless woken, in ns. Raises LedgerError."""
        now_ns = self._now_ns()
        self._answer(self._till.serve())
        if self.standings.broken is not None:
            self._ledger.probe(patience_s=ROUND_PATIENCE_S)
            log.warning("ledger usable again")
            self.standings.broken = None
            self._mark = -1
        self._till.listen()  # before what the API has said is taken
        self._block()
        self._observe(now_ns)
        plan = self._plan(now_ns)
        if plan.due:
            self._exchange(plan)
        self._keep_house(now_ns)
        tick_ns = self._tick_ns()
        self._look(now_ns, tick_ns)
        now_ns = self._now_ns()
        next_ns = now_ns + tick_ns
        verdict_ns = self.standings.judge(now_ns)
        for pool, _ in self._known():
            if pool.pending or pool.doubtful:
                next_ns = min(next_ns, self._flushed_ns + self._flush_ns(pool))
        return max(min(next_ns, verdict_ns or next_ns) - now_ns, NS_PER_MS)

    def _block(self) -> None:
        """Write down what the API has refused, before anything is asked for."""
        blocks = self.hearing.blocks()
        try:
            for quota, until_ns in blocks.items():
                self._ledger.block(quota, until_ns)
        except BaseException:
            self.hearing.keep(blocks)
            raise

    def _tick_ns(self) -> int:
        if not self._till.waiters:
            return TICK_NS
        return TIGHT_TICK_NS if any(pool.urgent for pool in self._till.pools.values()) else WAITING_TICK_NS

    def _observe(self, now_ns: int) -> None:
        for pool, reading in self._known():
            quota = pool.quota
            # Others may have come to wait since.
            waited_for = pool.set_aside > 0 or reading.processes > 1
            pool.urgent = waited_for and is_tight(reading, now_ns)
            usage = self._usage.setdefault(quota, _Usage(active_ns=now_ns))
            if pool.taken != usage.taken_before:
                usage.taken_before, usage.active_ns = pool.taken, now_ns
        for entry in self.standings.all():
            if entry.earmarked_until_ns is not None and now_ns >= entry.earmarked_until_ns:
                entry.earmarked_until_ns = None
                self._till.unmark(entry.priced.consumer)

    def _plan(self, now_ns: int) -> _Plan:
        plan = _Plan(due=bool(self._withdrawn) or not self._ledger.knows_us, withdrawn=set(self._withdrawn))
        known = {entry.priced.consumer for entry in self.standings.all()}
        # One that is withdrawn must not claim; it is about to be told.
        line = (it for it in self._till.waiting() if it.grant or it.priced.consumer in known)
        plan.waiters = in_turn(line, now_ns)
        for waiter in plan.waiters:
            for pool, _ in waiter.priced.lines:
                # A part in memory does not help; together with what the ledger has it may.
                plan.give_back[pool.quota] = pool.left
                plan.top_up.add(pool.quota)
        for entry in self.standings.all():
            want = self.standings.want_of_returning(entry, now_ns) or self.standings.want_of_waiting(entry, now_ns)
            if want:
                plan.returning.append((entry, want))
        for pool, reading in self._known():
            self._plan_pool(plan, pool.quota, pool, now_ns)
            if reading.probing_until_ns and pool.served_ns >= reading.blocked_until_ns:
                plan.served[pool.quota] = pool.served_ns
        plan.idle_claims = self.standings.idle_claims()
        plan.due |= bool(plan.waiters or plan.returning or plan.idle_claims or plan.served)
        return plan

    def _known(self) -> list[tuple[Pool, Reading]]:
        """The pools of quotas that the ledger has."""
        readings = self.standings.readings
        return [(pool, readings[quota]) for quota, pool in self._till.pools.items() if quota in readings]

    def _plan_pool(self, plan: _Plan, quota: str, pool: Pool, now_ns: int) -> None:
        if pool.left > 0 and not pool.set_aside:
            usage = self._usage[quota]
            idle_ns = now_ns - usage.active_ns
            keep = usage.per_second // KEEP_DIVISOR if idle_ns < TICK_NS else 0
            if idle_ns >= IDLE_NS or (pool.left > keep and self._is_wanted(quota, now_ns)):
                plan.give_back[quota] = pool.left - (0 if idle_ns >= IDLE_NS else keep)
                plan.due = True
        if pool.thirsty:
            plan.top_up.add(quota)
        unwritten = bool(pool.pending or pool.doubtful)
        # Until it is written, what is spent seems to come back to who waits.
        flush_ns = min(WAITING_TICK_NS, self._flush_ns(pool)) if pool.set_aside > 0 else self._flush_ns(pool)
        flush = unwritten and (pool.urgent or now_ns - self._flushed_ns >= flush_ns)
        plan.due |= flush or pool.thirsty or pool.restate or pool.left < 0 or not pool.valid

    def _is_wanted(self, quota: str, now_ns: int) -> bool:
        """Whether another process stands in line for this quota."""
        claims = self.standings.readings[quota].claims
        return any(claim.process != self._ledger.process and claim.expires_ns > now_ns for claim in claims)

    def _flush_ns(self, pool: Pool) -> int:
        """A bucket runs empty from the instant of the settlement on, however late it is written."""
        limits = [part.limit for part in self.standings.readings[pool.quota].limits]
        windows_ns = (limit.period_ns // FLUSHES_A_WINDOW for limit in limits if limit.window is not Window.PACED)
        return min(FLUSH_NS, *windows_ns, FLUSH_NS)

    def _exchange(self, plan: _Plan) -> None:
        till = self._till
        answers = self.hearing.take()
        statement = till.state(plan.give_back)
        wants = [Want(it.priced.consumer, it.priced.cost, claim=it.grant is None) for it in plan.waiters]
        request = Exchange(
            held=statement.held,
            settled=statement.settled,
            doubtful=statement.doubtful,
            wants=(*wants, *(want for _, want in plan.returning)),
            top_up={quota: max(0, till.pools[quota].left) for quota in plan.top_up},
            unclaim=(*plan.withdrawn, *plan.idle_claims),
            told=by_quota(answers),
            running=statement.running,
            served=plan.served,
            look=bool(till.waiters or plan.idle_claims or plan.served),
        )
        self._withdrawn.difference_update(plan.withdrawn)
        try:
            response = self._ledger.exchange(request, patience_s=ROUND_PATIENCE_S)
        except BaseException:
            self._withdraw_again(plan.withdrawn)
            self.hearing.restore(answers)
            till.restore(statement)
            raise
        if response.void:
            self._withdraw_again(plan.withdrawn)
            self.hearing.restore(answers)
            self._start_over(statement)
            return
        self._flushed_ns = now_ns = self._now_ns()
        granted_units = Counter[str]()
        for want, granted in zip(request.wants, response.granted, strict=True):
            granted_units.update(want.cost if granted else {})
        till.confirm(response.leased, response.epochs, granted_units)
        paid = dict(zip(plan.waiters, response.granted, strict=False))
        self._answer(till.serve_leased(waiter for waiter, granted in paid.items() if granted))
        for waiter, granted in paid.items():
            if not granted:
                waiter.refused_ns, waiter.try_ns = now_ns, now_ns + TICK_NS
        for (entry, want), granted in zip(plan.returning, response.granted[len(wants) :], strict=True):
            if granted:
                till.earmark(want.consumer, want.cost)
                entry.earmarked_until_ns = now_ns + EARMARK_NS
                self.standings.change(entry, Standing())
                if not self.standings.has(entry):
                    till.unmark(want.consumer)  # withdrawn meanwhile: nobody would ever come for them
            else:
                entry.ripe_ns = now_ns + RETRY_NS
        if response.readings:
            self.standings.readings, self._mark, self._looked_ns = response.readings, self._ledger.mark, now_ns
        self._answer(till.serve())

    def _withdraw_again(self, consumers: Iterable[str]) -> None:
        """The ledger was not told; who came back meanwhile is not to be."""
        known = {entry.priced.consumer for entry in self.standings.all()}
        self._withdrawn.update(it for it in consumers if it not in known)

    def _start_over(self, statement: Statement) -> None:
        """The ledger is another, or took us for dead: what is left is void; what runs or was spent is stated anew."""
        log.warning("ledger does not know this process: leases are void")
        self._till.restore(statement)
        self._till.void()
        self.rebind()
        self.wake.set()

    def _keep_house(self, now_ns: int) -> None:
        passed_ns = now_ns - self._kept_house_ns
        if passed_ns < HOUSEKEEPING_NS:
            return
        self._kept_house_ns = now_ns
        self._ledger.bury_dead(patience_s=ROUND_PATIENCE_S)
        for quota, pool in self._till.pools.items():
            usage = self._usage.setdefault(quota, _Usage(active_ns=now_ns))
            usage.per_second = (pool.taken - usage.taken_at_second) * NS_PER_S // passed_ns
            usage.taken_at_second = pool.taken
        self.standings.measure(passed_ns)

    def _look(self, now_ns: int, tick_ns: int) -> None:
        """Read the ledger again if it was changed."""
        mark = self._ledger.words.mark
        if mark != self._mark and now_ns - self._looked_ns >= tick_ns:
            # The mark is from before the readings: a change between the two is seen the next time.
            self.standings.readings = self._ledger.readings(patience_s=ROUND_PATIENCE_S)
            self._mark, self._looked_ns = mark, now_ns

    def _answer(self, served: Iterable[tuple[Waiter, Grant]]) -> None:
        for waiter, grant in served:
            waiter.done(grant)


def is_tight(reading: Reading, now_ns: int) -> bool:
    """Whether what is settled makes room for the next."""
    paced = any(part.limit.window is Window.PACED for part in reading.limits)
    return paced or one_by_one(reading, now_ns)
