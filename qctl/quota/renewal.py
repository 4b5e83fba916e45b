"""The thread that alone asks the ledger on behalf of a process, and judges where its consumers stand.

A round: pay who can be paid from memory; if anything is due (somebody waits, a pool runs low, settlements are to be
written, units lie idle), one exchange with the ledger; look at the ledger again if it was changed and that matters;
judge every consumer. Then sleep until something is due by the clock, or somebody wakes us.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from qctl.errors import LedgerError
from qctl.quota.admission import (
    Cause,
    Hold,
    Need,
    Pay,
    Purse,
    Return,
    Standing,
    Wait,
    decide,
    may_return,
    return_at,
    sensible_run,
)
from qctl.quota.ledger import Exchange, Ledger, Want
from qctl.quota.policy import NS_PER_MS, NS_PER_S
from qctl.quota.till import Grant, Pool, Priced, Statement, Till, Waiter
from qctl.quota.window import Reading

log = logging.getLogger(__name__)

#: A process with nothing to do looks this often whether somebody else needs what it has.
TICK_NS = 250 * NS_PER_MS
#: While somebody waits here: what others give back should be seen soon.
WAITING_TICK_NS = 20 * NS_PER_MS
#: Units that nobody took for this long go back.
IDLE_NS = NS_PER_S
#: The dead are looked for, and readings are renewed, this often.
HOUSEKEEPING_NS = NS_PER_S
#: Settlements are written down at least this often, and twenty times a window.
FLUSH_NS = NS_PER_S
FLUSHES_A_WINDOW = 20
#: After a refusal, ask again no sooner: a shared disk commits about a thousand times a second for all processes.
RETRY_NS = 10 * NS_PER_MS
#: After an error of the ledger.
BROKEN_RETRY_NS = 200 * NS_PER_MS
#: Wants in one exchange, so that a transaction stays short for the others.
WANTS = 64
#: Units leased for a consumer that comes back are kept for it this long: to subscribe and receive takes some ms.
EARMARK_NS = NS_PER_S
#: Processes that were held at one moment return within this, not at one moment.
JITTER_NS = 50 * NS_PER_MS
#: Weight of the newest second in a consumer's measured rate.
RATE_WEIGHT = 0.5
#: Of what a process spends in a second it keeps this part when somebody else is short.
KEEP_DIVISOR = 2


@dataclass(slots=True, eq=False)
class Entry:
    """A registered consumer."""

    priced: Priced
    backlog: Callable[[], Mapping[str, int]]
    standing: Standing = field(default_factory=Standing)
    short_since_ns: int | None = None
    held_since_ns: int = 0
    ripe_ns: int | None = None
    rate_per_s: float = 0.0
    tasks_before: int = 0
    earmarked_until_ns: int | None = None


@dataclass(slots=True)
class _Usage:
    """What a pool was used for lately."""

    taken_before: int = 0
    active_ns: int = 0
    per_second: int = 0
    taken_at_second: int = 0


@dataclass(slots=True)
class _Plan:
    """What the next exchange is to contain."""

    waiters: list[Waiter] = field(default_factory=list)
    returning: list[tuple[Entry, Want]] = field(default_factory=list)
    give_back: dict[str, int] = field(default_factory=dict)
    top_up: set[str] = field(default_factory=set)
    due: bool = False


class Renewal:
    """The thread and its state. `entries` and standings are guarded by the till's lock."""

    def __init__(
        self, ledger: Ledger, till: Till, *, hold_after_ns: int, on_standing: Callable[[str, Standing], None]
    ) -> None:
        self.entries: dict[str, Entry] = {}
        self.readings: Mapping[str, Reading] = {}
        self.broken: LedgerError | None = None
        self.wake = threading.Event()
        self._ledger = ledger
        self._till = till
        self._now_ns = ledger.clock.now_ns
        self._hold_after_ns = hold_after_ns
        self._on_standing = on_standing
        self._unclaim: list[str] = []
        self._usage: dict[str, _Usage] = {}
        self._mark = -1
        self._looked_ns = self._flushed_ns = self._kept_house_ns = 0
        self._retry_ns = 0
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
        entry = Entry(priced=priced, backlog=backlog)
        readings = self._ledger.readings()
        now_ns = self._now_ns()
        with self._till.lock:
            self.readings = readings
            needs = self._needs(entry, now_ns, backlog={})
            if isinstance(verdict := decide(needs, now_ns=now_ns, deadline_ns=now_ns + self._hold_after_ns), Hold):
                entry.standing = Standing(verdict)
                entry.held_since_ns = now_ns
            self.entries[priced.consumer] = entry
        self.wake.set()

    def withdraw(self, consumer: str) -> list[Waiter]:
        """Forget a consumer. Returns those who waited for it, no longer in line."""
        with self._till.lock:
            gone = self.entries.pop(consumer, None)
        if gone is None:
            return []
        waiters = self._leave_line(consumer)
        self._till.unmark(consumer)
        self._unclaim.append(consumer)
        self.wake.set()
        return waiters

    # -- the thread

    def _run(self) -> None:
        while not self._stopping:
            try:
                pause_ns = self.round()
            except LedgerError as error:
                pause_ns = self._break(error)
            except (
                Exception
            ) as error:  # a listener or backlog of the worker: without this thread nothing would ever be paid
                log.exception("ledger thread: a round failed")
                pause_ns = self._break(LedgerError(f"the ledger thread failed: {error}"))
            self.wake.wait(max(0, pause_ns) / NS_PER_S)
            self.wake.clear()

    def _break(self, error: LedgerError) -> int:
        if self.broken is None:
            log.error("ledger unusable: %s", error.message)
        self.broken = error
        self._retry_ns = self._now_ns() + BROKEN_RETRY_NS
        try:
            self._judge(self._now_ns())
        except Exception:  # the same listener may fail again; the next round tries again
            log.exception("ledger thread: cannot judge")
        return BROKEN_RETRY_NS

    def round(self) -> int:
        """One round; returns how long to sleep unless woken, in ns."""
        now_ns = self._now_ns()
        self._answer(self._till.serve())
        if self.broken is None or now_ns >= self._retry_ns:
            self._observe(now_ns)
            plan = self._plan(now_ns)
            if plan.due:
                self._exchange(plan)
            self._keep_house(now_ns)
            self._look(now_ns)
            if self.broken is not None:
                log.warning("ledger usable again")
                self.broken = None
        now_ns = self._now_ns()
        return self._judge(now_ns) - now_ns

    def _observe(self, now_ns: int) -> None:
        for quota, pool in self._till.pools.items():
            usage = self._usage.setdefault(quota, _Usage(active_ns=now_ns))
            if pool.taken != usage.taken_before:
                usage.taken_before, usage.active_ns = pool.taken, now_ns
        with self._till.lock:
            over = [
                e for e in self.entries.values() if e.earmarked_until_ns is not None and now_ns >= e.earmarked_until_ns
            ]
        for entry in over:
            entry.earmarked_until_ns = None
            self._till.unmark(entry.priced.consumer)

    def _plan(self, now_ns: int) -> _Plan:
        plan = _Plan(due=bool(self._unclaim))
        with self._till.lock:
            waiting = [it for it in self._till.waiters if it.try_ns <= now_ns][:WANTS]
            entries = list(self.entries.values())
        for waiter in waiting:
            plan.waiters.append(waiter)
            for pool, _ in waiter.priced.lines:
                # A part in memory does not help; together with what the ledger has it may.
                plan.give_back[pool.quota] = pool.left
                plan.top_up.add(pool.quota)
        for entry in entries:
            if not entry.standing.consuming and entry.ripe_ns is not None and now_ns >= entry.ripe_ns:
                if want := self._want_of_returning(entry, now_ns):
                    plan.returning.append((entry, want))
        for quota, pool in self._till.pools.items():
            self._plan_pool(plan, quota, pool, now_ns)
        plan.due |= bool(plan.waiters or plan.returning)
        return plan

    def _plan_pool(self, plan: _Plan, quota: str, pool: Pool, now_ns: int) -> None:
        usage = self._usage[quota]
        idle_ns = now_ns - usage.active_ns
        reading = self.readings.get(quota)
        if pool.left > 0 and not pool.set_aside:
            wanted = reading is not None and any(
                claim.process != self._ledger.process and claim.expires_ns > now_ns for claim in reading.claims
            )
            keep = usage.per_second // KEEP_DIVISOR if idle_ns < TICK_NS else 0
            if idle_ns >= IDLE_NS:
                plan.give_back[quota] = pool.left
                plan.due = True
            elif wanted and pool.left > keep:
                plan.give_back[quota] = pool.left - keep
                plan.due = True
        if pool.thirsty:
            plan.top_up.add(quota)
            plan.due = True
        plan.due |= pool.restate or pool.left < 0 or not pool.valid
        if pool.pending or pool.doubtful:
            period_ns = min(part.limit.period_ns for part in reading.limits) if reading else FLUSH_NS
            plan.due |= now_ns - self._flushed_ns >= min(FLUSH_NS, period_ns // FLUSHES_A_WINDOW)

    def _exchange(self, plan: _Plan) -> None:
        till = self._till
        unclaim, self._unclaim = tuple(self._unclaim), []
        statement = till.state(plan.give_back)
        wants = [Want(it.priced.consumer, it.priced.cost, claim=it.grant is None) for it in plan.waiters]
        wants += [want for _, want in plan.returning]
        # Nobody's wants are met ahead of their claims, so a top-up goes last and takes only what nobody claims.
        request = Exchange(
            held=statement.held,
            settled=statement.settled,
            doubtful=statement.doubtful,
            wants=tuple(wants),
            top_up={quota: till.pools[quota].left for quota in plan.top_up},
            unclaim=unclaim,
        )
        try:
            response = self._ledger.exchange(request)
        except BaseException:
            till.restore(statement)
            self._unclaim.extend(unclaim)
            raise
        now_ns = self._now_ns()
        if response.void:
            self._start_over(statement)
            return
        self._flushed_ns = now_ns
        till.confirm(response.leased, response.epochs)
        count = len(plan.waiters)
        self._answer(till.serve_leased(it for it, ok in zip(plan.waiters, response.granted, strict=False) if ok))
        for waiter, ok in zip(plan.waiters, response.granted, strict=False):
            if not ok:
                waiter.try_ns = now_ns + TICK_NS
        for (entry, want), ok in zip(plan.returning, response.granted[count:], strict=True):
            if ok:
                till.earmark(want.consumer, tuple((till.pools[q], n) for q, n in want.cost.items()))
                entry.earmarked_until_ns = now_ns + EARMARK_NS
                self._change(entry, Standing(), now_ns)
            else:
                entry.ripe_ns = now_ns + RETRY_NS
        if response.readings:
            self.readings, self._mark, self._looked_ns = response.readings, self._ledger.mark, now_ns
        self._answer(till.serve())

    def _start_over(self, statement: Statement) -> None:
        """The ledger is another, or took us for dead: what is left is void, what was not written down still has to be."""
        log.warning("ledger does not know this process: leases are void")
        self._till.restore(statement)
        self._till.void()
        for pool in self._till.pools.values():
            pool.epoch = -1
        self.rebind()
        self.wake.set()

    def rebind(self) -> None:
        """Make pools for all quotas of the ledger, and have all look at its shared page."""
        view = self._ledger.words.view
        readings = self._ledger.readings()
        epochs = self._ledger.epochs()
        for quota, (slot, _) in epochs.items():
            grain_ns = min(part.limit.bucket_ns for part in readings[quota].limits)
            with self._till.lock:
                pool = self._till.pools.get(quota)
                if pool is None:
                    self._till.pools[quota] = Pool(quota, slot, view, grain_ns)
                else:
                    pool.slot, pool.view, pool.grain_ns = slot, view, grain_ns
        self.readings = readings

    def _keep_house(self, now_ns: int) -> None:
        passed_ns = now_ns - self._kept_house_ns
        if passed_ns < HOUSEKEEPING_NS:
            return
        self._kept_house_ns = now_ns
        self._ledger.bury_dead()
        for quota, pool in self._till.pools.items():
            usage = self._usage.setdefault(quota, _Usage(active_ns=now_ns))
            usage.per_second = (pool.taken - usage.taken_at_second) * NS_PER_S // passed_ns
            usage.taken_at_second = pool.taken
        with self._till.lock:
            entries = list(self.entries.values())
        for entry in entries:
            tasks = entry.priced.tally.tasks
            if tasks != entry.tasks_before and entry.standing.consuming:
                newest = (tasks - entry.tasks_before) * NS_PER_S / passed_ns
                entry.rate_per_s += RATE_WEIGHT * (newest - entry.rate_per_s)
            entry.tasks_before = tasks

    def _look(self, now_ns: int) -> None:
        """Read the ledger again if it was changed, less often if nobody waits."""
        with self._till.lock:
            waiting = bool(self._till.waiters)
        if self._ledger.words.mark != self._mark and now_ns - self._looked_ns >= (
            WAITING_TICK_NS if waiting else TICK_NS
        ):
            # Before the readings: a change between the two is then seen next time.
            self._mark = self._ledger.words.mark
            self.readings = self._ledger.readings()
            self._looked_ns = now_ns

    # -- standings

    def _judge(self, now_ns: int) -> int:
        """Judge all; returns the instant of the next round."""
        with self._till.lock:
            entries = list(self.entries.values())
            waiters = list(self._till.waiters)
        backlog = self._backlog(entries, waiters)
        next_ns = now_ns + (WAITING_TICK_NS if waiters else TICK_NS)
        for entry in entries:
            if not entry.priced.lines:
                continue
            mine = [it for it in waiters if it.priced.consumer == entry.priced.consumer and it.grant is None]
            if entry.standing.consuming:
                at_ns = self._judge_consuming(entry, mine, backlog, now_ns)
            else:
                at_ns = self._judge_held(entry, now_ns)
            if at_ns is not None:
                next_ns = min(next_ns, at_ns)
        for waiter in waiters:
            if waiter.grant is not None:
                self._judge_running(waiter, now_ns)
            next_ns = min(next_ns, waiter.try_ns)
        for pool in self._till.pools.values():
            reading = self.readings.get(pool.quota)
            if (pool.pending or pool.doubtful) and reading:
                period_ns = min(part.limit.period_ns for part in reading.limits)
                next_ns = min(next_ns, self._flushed_ns + min(FLUSH_NS, period_ns // FLUSHES_A_WINDOW))
        return max(next_ns, now_ns + NS_PER_MS)

    def _judge_consuming(self, entry: Entry, mine: list[Waiter], backlog: Mapping[str, int], now_ns: int) -> int | None:
        needs = self._needs(entry, now_ns, backlog=backlog)
        if not mine and all(need.purse.left_units >= need.cost_units for need in needs):
            entry.short_since_ns = None
            return None
        since_ns = mine[0].since_ns if mine else entry.short_since_ns or now_ns
        deadline_ns = since_ns + self._hold_after_ns
        if self.broken is not None:
            verdict: Pay | Wait | Hold = Hold(None, Cause.LEDGER) if now_ns >= deadline_ns else Wait(deadline_ns)
        else:
            verdict = decide(needs, now_ns=now_ns, deadline_ns=deadline_ns)
        if isinstance(verdict, Hold):
            entry.ripe_ns = entry.short_since_ns = None
            entry.held_since_ns = now_ns
            self._change(entry, Standing(verdict), now_ns)
            for waiter in self._leave_line(entry.priced.consumer):
                waiter.done(verdict)
            return None
        if isinstance(verdict, Wait):
            entry.short_since_ns = entry.short_since_ns or now_ns
            for waiter in mine:
                waiter.try_ns = verdict.until_ns
            return verdict.until_ns
        entry.short_since_ns = None
        for waiter in mine:
            waiter.try_ns = min(waiter.try_ns, max(now_ns, self._flushed_ns + RETRY_NS))
        return None

    def _judge_held(self, entry: Entry, now_ns: int) -> int | None:
        if self.broken is not None:
            return None
        needs = self._needs(entry, now_ns, backlog={})
        runs = self._runs(entry, needs)
        back = may_return(needs, runs, now_ns=now_ns, held_since_ns=entry.held_since_ns)
        if back is Return.NOT_YET:
            entry.ripe_ns = None
            verdict = decide(needs, now_ns=now_ns, deadline_ns=now_ns)
            if isinstance(verdict, Hold):
                self._change(entry, Standing(verdict), now_ns)
            return return_at(needs, runs, now_ns=now_ns, held_since_ns=entry.held_since_ns)
        if entry.ripe_ns is None:
            entry.ripe_ns = now_ns + random.randrange(JITTER_NS)
        if now_ns >= entry.ripe_ns and not self._has_claim(entry, now_ns):
            self._change(entry, Standing(), now_ns)
            return None
        return entry.ripe_ns

    def _judge_running(self, waiter: Waiter, now_ns: int) -> None:
        """A running task that needs more is told no when it cannot have it in time."""
        quota, units = next((pool.quota, units) for pool, units in waiter.priced.lines)
        purse = self._purse(quota, waiter.priced.consumer, now_ns)
        deadline_ns = waiter.since_ns + self._hold_after_ns
        verdict: Pay | Wait | Hold = Hold(quota, Cause.LEDGER)
        if self.broken is None or now_ns < deadline_ns:
            verdict = decide([Need(quota, units, units, purse)], now_ns=now_ns, deadline_ns=deadline_ns)
        if isinstance(verdict, Hold):
            if self._till.dequeue(waiter):
                waiter.done(verdict)
        elif isinstance(verdict, Wait):
            waiter.try_ns = verdict.until_ns
        else:
            waiter.try_ns = min(waiter.try_ns, max(now_ns, self._flushed_ns + RETRY_NS))

    def _want_of_returning(self, entry: Entry, now_ns: int) -> Want | None:
        """What to lease for a held consumer that may come back and has a claim: a run if there is one, else a task."""
        if not self._has_claim(entry, now_ns):
            return None
        needs = self._needs(entry, now_ns, backlog={})
        runs = self._runs(entry, needs)
        back = may_return(needs, runs, now_ns=now_ns, held_since_ns=entry.held_since_ns)
        if back is Return.NOT_YET:
            return None
        units = runs if back is Return.RUN else [need.cost_units for need in needs]
        return Want(entry.priced.consumer, {need.quota: n for need, n in zip(needs, units, strict=True)})

    def _has_claim(self, entry: Entry, now_ns: int) -> bool:
        own = (self._ledger.process, entry.priced.consumer)
        return any(
            (claim.process, claim.consumer) == own and claim.expires_ns > now_ns
            for pool, _ in entry.priced.lines
            for claim in self.readings[pool.quota].claims
        )

    def _runs(self, entry: Entry, needs: list[Need]) -> list[int]:
        return [
            sensible_run(need.purse.reading, cost_units=need.cost_units, rate_per_s=entry.rate_per_s * need.cost_units)
            for need in needs
        ]

    def _needs(self, entry: Entry, now_ns: int, *, backlog: Mapping[str, int]) -> list[Need]:
        return [
            Need(
                quota=pool.quota,
                cost_units=units,
                backlog_units=max(units, backlog.get(pool.quota, 0)),
                purse=self._purse(pool.quota, entry.priced.consumer, now_ns),
            )
            for pool, units in entry.priced.lines
        ]

    def _purse(self, quota: str, consumer: str, now_ns: int) -> Purse:
        pool, reading = self._till.pools[quota], self.readings[quota]
        kept_for_others = sum(units for name, units in pool.earmarks.copy().items() if name != consumer)
        return Purse(
            reading=reading,
            left_units=max(0, pool.left - kept_for_others) if pool.valid else 0,
            ahead_units=reading.ahead(self._ledger.process, consumer, now_ns),
        )

    def _backlog(self, entries: list[Entry], waiters: list[Waiter]) -> dict[str, int]:
        """Units that all consumers of this process need for what they hold, by quota; at least for those who wait."""
        told: dict[str, int] = {}
        for entry in entries:
            if entry.priced.lines:
                for quota, units in entry.backlog().items():
                    told[quota] = told.get(quota, 0) + units
        waiting: dict[str, int] = {}
        for waiter in waiters:
            for pool, units in waiter.priced.lines:
                waiting[pool.quota] = waiting.get(pool.quota, 0) + units
        return {quota: max(told.get(quota, 0), waiting.get(quota, 0)) for quota in told.keys() | waiting.keys()}

    def _change(self, entry: Entry, standing: Standing, now_ns: int) -> None:
        before, entry.standing = entry.standing, standing
        if before.consuming and standing.consuming:
            return
        if (
            before.held
            and standing.held
            and (before.held.quota, before.held.cause) == (standing.held.quota, standing.held.cause)
        ):
            return
        if standing.consuming:
            entry.ripe_ns = entry.short_since_ns = None
        if self.entries.get(entry.priced.consumer) is entry:
            self._on_standing(entry.priced.consumer, standing)

    def _leave_line(self, consumer: str) -> list[Waiter]:
        with self._till.lock:
            found = [it for it in self._till.waiters if it.priced.consumer == consumer and it.grant is None]
        return [waiter for waiter in found if self._till.dequeue(waiter)]

    def _answer(self, served: list[tuple[Waiter, Grant]]) -> None:
        for waiter, grant in served:
            waiter.done(grant)
