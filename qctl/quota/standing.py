"""Where the consumers of a process stand, judged from what is in memory and the ledger's last readings.

Only the ledger's thread judges; others register, withdraw and ask. What the judgement is, is decided in `admission`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from qctl.errors import LedgerError
from qctl.quota.admission import (
    SINGLE_AFTER_NS,
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
    one_by_one,
    only_paced,
    return_at,
    sensible_run,
)
from qctl.quota.desk import CLAIM_NS, CLAIM_RENEWALS, claim_life_ns
from qctl.quota.exchange import Want
from qctl.quota.line import askers
from qctl.quota.policy import NS_PER_MS, NS_PER_S
from qctl.quota.pool import Priced, Waiter
from qctl.quota.till import Till
from qctl.quota.window import Claim, Reading, claimed_ahead

#: After a refusal, ask again no sooner: a shared disk commits about a thousand times a second for all processes.
RETRY_NS = 10 * NS_PER_MS
#: Consumers that were held at one moment return within this, and this part of a period, not at one moment.
JITTER_NS = 50 * NS_PER_MS
JITTER_DIVISOR = 1000
#: How long a consumer without a place in line consumes, once a window, to see whether there is a task.
LOOK_NS = NS_PER_S
#: Weight of the newest second in a consumer's measured rate.
_RATE_WEIGHT = 0.5


@dataclass(slots=True, eq=False)
class Entry:
    """A registered consumer."""

    priced: Priced
    backlog: Callable[[], Mapping[str, int]]
    standing: Standing = field(default_factory=Standing)
    #: When it was first found that the next task cannot be paid, while nobody waits.
    short_since_ns: int | None = None
    held_since_ns: int = 0
    #: Without a place in line it consumes until then, to see whether there is a task, which leaves a claim.
    looks_until_ns: int = 0
    #: Held, but may return from this instant on.
    ripe_ns: int | None = None
    #: Tasks a second, while consuming.
    rate_per_s: float = 0.0
    tasks_before: int = 0
    #: Until when units are kept in memory for its return.
    earmarked_until_ns: int | None = None


class Standings:
    """The registered consumers of a process and the readings that they are judged by."""

    def __init__(
        self,
        till: Till,
        *,
        process: Callable[[], str],
        hold_after_ns: int,
        on_standing: Callable[[str, Standing], None],
    ) -> None:
        #: Guarded by the till's lock.
        self.entries: dict[str, Entry] = {}
        self.readings: Mapping[str, Reading] = {}
        self.broken: LedgerError | None = None
        self._till = till
        self._process = process
        self._hold_after_ns = hold_after_ns
        self._on_standing = on_standing
        #: Of each quota the units of the cheapest usual task; of the ledger's thread.
        self._cheapest: Mapping[str, int] = {}

    # -- from any thread

    def enter(self, entry: Entry, now_ns: int) -> None:
        """Register a consumer with the standing that the readings give it; the listener is not called."""
        verdict = decide(self._needs(entry, now_ns), now_ns=now_ns, deadline_ns=now_ns + self._hold_after_ns)
        if isinstance(verdict, Hold):
            entry.standing, entry.held_since_ns = Standing(verdict), now_ns
        with self._till.lock:
            self.entries[entry.priced.consumer] = entry

    def forget(self, consumer: str) -> bool:
        """Withdraw a consumer; whether it was known."""
        with self._till.lock:
            return self.entries.pop(consumer, None) is not None

    def has(self, entry: Entry) -> bool:
        """Whether it is registered still."""
        with self._till.lock:
            return self.entries.get(entry.priced.consumer) is entry

    def of(self, consumer: str) -> Standing:
        """Where the consumer stands; Hold(WITHDRAWN) if it is not registered."""
        with self._till.lock:
            entry = self.entries.get(consumer)
            return entry.standing if entry else Standing(Hold(None, Cause.WITHDRAWN))

    # -- from the ledger's thread

    def all(self) -> list[Entry]:
        """A copy of the list."""
        with self._till.lock:
            return list(self.entries.values())

    def judge(self, now_ns: int) -> int | None:
        """Judge all consumers and all who wait; returns the instant at which another verdict is due by the clock."""
        entries = self.all()
        with self._till.lock:
            waiters = tuple(self._till.waiters)
        backlog = self._backlog(entries, waiters)
        self._cheapest = _cheapest(entries)
        due: list[int | None] = []
        for entry in entries:
            if entry.priced.lines and entry.standing.consuming:
                mine = [it for it in waiters if it.priced.consumer == entry.priced.consumer and it.grant is None]
                due.append(self._judge_consuming(entry, mine, backlog, now_ns))
            elif entry.priced.lines:
                due.append(self._judge_held(entry, now_ns))
        for waiter in waiters:
            if waiter.grant is not None:
                self._judge_running(waiter, now_ns)
            elif (held := self.of(waiter.priced.consumer).held) is not None:
                self._refuse(waiter, held)
        due.extend(waiter.try_ns for waiter in askers(waiters))
        return min((at for at in due if at is not None), default=None)

    def measure(self, passed_ns: int) -> None:
        """Update the rates of the consumers that are consuming."""
        for entry in self.all():
            tasks = entry.priced.tally.tasks
            if tasks != entry.tasks_before and entry.standing.consuming:
                newest = (tasks - entry.tasks_before) * NS_PER_S / passed_ns
                entry.rate_per_s += _RATE_WEIGHT * (newest - entry.rate_per_s)
            entry.tasks_before = tasks

    def want_of_returning(self, entry: Entry, now_ns: int) -> Want | None:
        """What to lease for a held consumer that may come back now and stands in line: a run, or a single task."""
        if entry.standing.consuming or entry.ripe_ns is None or now_ns < entry.ripe_ns:
            return None
        needs = self._needs(entry, now_ns)
        runs = self._runs(entry, needs)
        back = may_return(needs, runs, now_ns=now_ns, held_since_ns=entry.held_since_ns)
        if back is Return.NOT_YET or not self._has_claim(entry):
            return None
        alone = any(one_by_one(need.purse.reading, now_ns) for need in needs)
        units = runs if back is Return.RUN and not alone else [need.cost_units for need in needs]
        return Want(entry.priced.consumer, {need.quota: n for need, n in zip(needs, units, strict=True)})

    def want_of_waiting(self, entry: Entry, now_ns: int) -> Want | None:
        """What to ask for so that a held consumer whose claim is about to end keeps its place in line."""
        claims = [] if entry.standing.consuming else self._claims_of(entry)
        if not any(claim.expires_ns - now_ns < life_ns // CLAIM_RENEWALS for _, claim, life_ns in claims):
            return None
        return Want(entry.priced.consumer, self._expected(entry))

    def idle_claims(self) -> set[str]:
        """Consumers that go on, stand in line by the readings, and have nobody in it here."""
        waiting = {it.priced.consumer for it in self._till.waiting() if it.grant is None}
        return {
            entry.priced.consumer
            for entry in self.all()
            if entry.standing.consuming and entry.priced.consumer not in waiting and self._has_claim(entry)
        }

    def change(self, entry: Entry, standing: Standing) -> None:
        """Enter a verdict; tell the listener if it is another one, not for a later estimate of the same hold."""
        before, entry.standing = entry.standing.held, standing
        after = standing.held
        if (before and (before.quota, before.cause)) == (after and (after.quota, after.cause)):
            return
        entry.ripe_ns = entry.short_since_ns = None
        if self.entries.get(entry.priced.consumer) is entry:
            self._on_standing(entry.priced.consumer, standing)

    # -- inside

    def _judge_consuming(
        self, entry: Entry, mine: Sequence[Waiter], backlog: Mapping[str, int], now_ns: int
    ) -> int | None:
        if mine and mine[0].refused_ns is None and self.broken is None:
            return now_ns
        if not mine and now_ns < entry.looks_until_ns:
            return entry.looks_until_ns
        needs = self._needs(entry, now_ns, backlog, mine[0].priced if mine else None)
        if not mine and self._seeks(needs, now_ns):
            entry.short_since_ns = None
            return None
        since_ns = mine[0].since_ns if mine else entry.short_since_ns or now_ns
        deadline_ns = since_ns + self._hold_after_ns
        verdict = self._verdict(needs, now_ns, deadline_ns)
        if isinstance(verdict, Hold):
            entry.held_since_ns = now_ns
            # The listener first: who gives a delivery back must find its consumer held.
            self.change(entry, Standing(verdict))
            for waiter in mine:
                self._refuse(waiter, verdict)
            return None
        if isinstance(verdict, Wait):
            entry.short_since_ns = entry.short_since_ns or now_ns
            until_ns = verdict.until_ns
            if mine and mine[0].refused_ns is not None and self.broken is None:
                # Who waits for long asks again, for its place in line to count.
                until_ns = min(until_ns, mine[0].refused_ns + CLAIM_NS // (2 * CLAIM_RENEWALS))
            for waiter in mine:
                waiter.try_ns = until_ns
            return until_ns
        entry.short_since_ns = None
        for waiter in mine:
            waiter.try_ns = _again_ns(waiter, now_ns)
        return None

    def _judge_held(self, entry: Entry, now_ns: int) -> int | None:
        if self.broken is not None:
            return None
        needs = self._needs(entry, now_ns)
        runs = self._runs(entry, needs)
        back = may_return(needs, runs, now_ns=now_ns, held_since_ns=entry.held_since_ns)
        in_line = self._has_claim(entry)
        if back is Return.NOT_YET and not in_line and now_ns >= entry.held_since_ns + SINGLE_AFTER_NS:
            back = Return.TASK if self._seeks(needs, now_ns) else back
        if back is Return.NOT_YET:
            entry.ripe_ns = None
            verdict = decide(needs, now_ns=now_ns, deadline_ns=now_ns)
            if isinstance(verdict, Hold):
                self.change(entry, Standing(verdict))
            return_ns = return_at(needs, runs, now_ns=now_ns, held_since_ns=entry.held_since_ns)
            if in_line:
                return return_ns
            # Among a flood of cheaper tasks it might never be payable, and held it never meets a task that could claim.
            look_ns = entry.held_since_ns + max(
                part.limit.claim_ns for need in needs for part in need.purse.reading.limits
            )
            if now_ns >= look_ns:
                entry.looks_until_ns = now_ns + LOOK_NS
                self.change(entry, Standing())
                return None
            return min(look_ns, return_ns or look_ns)
        if entry.ripe_ns is None:
            period_ns = max(part.limit.period_ns for need in needs for part in need.purse.reading.limits)
            jitter_ns = min(JITTER_NS, period_ns // JITTER_DIVISOR)
            entry.ripe_ns = now_ns + random.randrange(jitter_ns)  # noqa: S311 (spreads processes, hides nothing)
        if now_ns >= entry.ripe_ns and not in_line:
            self.change(entry, Standing())
            return None
        return entry.ripe_ns

    def _judge_running(self, waiter: Waiter, now_ns: int) -> None:
        """A running task that needs more is told no when it cannot have it in time."""
        if waiter.refused_ns is None and self.broken is None:
            return
        needs = [
            Need(pool.quota, units, units, self._purse(pool.quota, waiter.priced.consumer, now_ns))
            for pool, units in waiter.priced.lines
        ]
        verdict = self._verdict(needs, now_ns, waiter.since_ns + self._hold_after_ns)
        if isinstance(verdict, Hold):
            self._refuse(waiter, verdict)
        elif isinstance(verdict, Wait):
            waiter.try_ns = verdict.until_ns
        else:
            waiter.try_ns = _again_ns(waiter, now_ns)

    def _seeks(self, needs: Sequence[Need], now_ns: int) -> bool:
        """Whether to consume without a task, although none could be paid now: in line it would be, within a window,
        but beside a flood of others there is never room in a bucket, nor anywhere for a costlier task than theirs."""
        if self.broken is not None:
            return False
        if only_paced(needs, now_ns=now_ns, by_ns=now_ns + self._hold_after_ns):
            return True
        costly = any(need.cost_units > self._cheapest.get(need.quota, need.cost_units) for need in needs)
        return costly and all(
            now_ns >= need.purse.reading.blocked_until_ns
            and need.cost_units <= min(part.limit.units for part in need.purse.reading.limits)
            for need in needs
        )

    def _verdict(self, needs: Sequence[Need], now_ns: int, deadline_ns: int) -> Pay | Wait | Hold:
        if self.broken is None or all(need.purse.left_units >= need.cost_units for need in needs):
            return decide(needs, now_ns=now_ns, deadline_ns=deadline_ns)
        return Wait(deadline_ns) if now_ns < deadline_ns else Hold(None, Cause.LEDGER)

    def _refuse(self, waiter: Waiter, hold: Hold) -> None:
        if self._till.dequeue(waiter):
            waiter.done(hold)

    def _needs(
        self, entry: Entry, now_ns: int, backlog: Mapping[str, int] | None = None, first: Priced | None = None
    ) -> list[Need]:
        """Of the `first` task in line here, else of the next one that is expected."""
        cost = first.cost if first else self._expected(entry)
        return [
            Need(
                quota=quota,
                cost_units=units,
                backlog_units=max(units, (backlog or {}).get(quota, 0)),
                purse=self._purse(quota, entry.priced.consumer, now_ns),
            )
            for quota, units in cost.items()
        ]

    def _expected(self, entry: Entry) -> dict[str, int]:
        """What the next task costs: as usual; to one that is held, what it was held for, which is in its claim."""
        cost = entry.priced.cost
        if entry.standing.held is not None:
            for quota, claim, _ in self._claims_of(entry):
                cost[quota] = max(cost[quota], claim.units)
        return cost

    def _purse(self, quota: str, consumer: str, now_ns: int) -> Purse:
        reading, process = self.readings[quota], self._process()
        # Claims of who was withdrawn here are about to be struck out.
        claims = [it for it in reading.claims if it.process != process or it.consumer in self.entries]
        return Purse(
            reading=reading,
            left_units=self._till.left_for(quota, consumer),
            ahead_units=claimed_ahead(claims, process, consumer, now_ns),
        )

    def _runs(self, entry: Entry, needs: Iterable[Need]) -> list[int]:
        return [
            sensible_run(need.purse.reading, cost_units=need.cost_units, rate_per_s=entry.rate_per_s * need.cost_units)
            for need in needs
        ]

    def _has_claim(self, entry: Entry) -> bool:
        return bool(self._claims_of(entry))

    def _claims_of(self, entry: Entry) -> list[tuple[str, Claim, int]]:
        """Where it stands in line for which quota, and for how long such a claim counts; the place outlasts that."""
        own = (self._process(), entry.priced.consumer)
        readings = [self.readings[pool.quota] for pool, _ in entry.priced.lines]
        return [
            (reading.quota, claim, claim_life_ns(part.limit for part in reading.limits))
            for reading in readings
            for claim in reading.claims
            if (claim.process, claim.consumer) == own
        ]

    def _backlog(self, entries: Iterable[Entry], waiters: Iterable[Waiter]) -> dict[str, int]:
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


def _again_ns(waiter: Waiter, now_ns: int) -> int:
    """When to ask for one that seems payable: at once, but not twice within RETRY_NS."""
    refused_ns = now_ns if waiter.refused_ns is None else waiter.refused_ns
    return min(waiter.try_ns, max(now_ns, refused_ns + RETRY_NS))


def _cheapest(entries: Iterable[Entry]) -> dict[str, int]:
    found: dict[str, int] = {}
    for entry in entries:
        for pool, units in entry.priced.lines:
            found[pool.quota] = min(units, found.get(pool.quota, units))
    return found
