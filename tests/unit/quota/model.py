"""What the tests judge by, and drive with: written from the laws alone, with a list of units and no buckets."""

from __future__ import annotations

import math
import os
import random
import resource
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from hypothesis import HealthCheck, settings

from qctl.quota import Clock, Grant, Ledger, Limit, Policy, Window
from qctl.quota.exchange import Exchange, Want
from qctl.quota.policy import enforced
from qctl.quota.pool import Pool, Priced, Tally
from qctl.quota.till import Till

S = 10**9
#: The same histories in every run; QCTL_TEST_THOROUGH=20 looks at twenty times as many, and at new ones each time.
_FACTOR = int(os.environ.get("QCTL_TEST_THOROUGH", "1"))


def thorough(examples: int, *, steps: int = 50) -> settings:
    """Settings of a property test that touches the disk."""
    return settings(
        max_examples=examples * _FACTOR,
        stateful_step_count=steps,
        deadline=None,
        derandomize=_FACTOR == 1,
        suppress_health_check=list(HealthCheck),
    )


@contextmanager
def no_writes() -> Iterator[None]:
    """No file of this process can grow or be written meanwhile, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@dataclass
class FakeClock:
    """A clock that the test moves. `true_ns` only ever rises; the boot clock starts anew at each reboot."""

    true_ns: int = 10**12
    booted_ns: int = 0
    boots: int = 1

    def clock(self) -> Clock:
        return Clock(now_ns=lambda: self.true_ns - self.booted_ns, boot_id=lambda: f"boot-{self.boots}")

    def pass_ns(self, span_ns: int) -> None:
        self.true_ns += span_ns

    def reboot(self, *, after_ns: int = 5 * S) -> None:
        self.true_ns += after_ns
        self.boots += 1
        self.booted_ns = self.true_ns - after_ns


@dataclass(eq=False)
class Unit:
    """A unit that may be counted upstream from now on until `until_ns` (None: it runs), or a linger later.

    counted_ns: when it was counted in fact, for an upstream that says what remains; None: not yet, or never.
    """

    until_ns: int | None = None
    lingers: bool = False
    counted_ns: int | None = None

    def latest_ns(self, now_ns: int, limit: Limit) -> int:
        """The last instant up to now at which it can have been counted."""
        if self.until_ns is None:
            return now_ns
        return min(now_ns, self.until_ns + (limit.linger_ns if self.lingers else 0))


@dataclass
class Upstream:
    """Judges by the worst case: a unit counts in every window that the time of its counting may lie in."""

    units: list[Unit] = field(default_factory=list)
    #: One of its fixed windows began here.
    begun_ns: int = 0
    #: How full a bucket was at some instant, by what had been settled then.
    poured: tuple[int, Fraction] = (0, Fraction(0))

    def window_ns(self, now_ns: int, limit: Limit) -> int:
        """When the fixed window began in which now lies."""
        return now_ns - (now_ns - self.begun_ns) % limit.period_ns

    def worst(self, now_ns: int, limit: Limit) -> int:
        """The most units that the upstream can count in the window of `limit` that ends now, or is now, or in a bucket
        of it."""
        if limit.window is Window.PACED:
            return math.ceil(self.level(now_ns, limit))
        first_ns = self.window_ns(now_ns, limit) if limit.window is Window.FIXED else now_ns - limit.period_ns + 1
        return sum(unit.latest_ns(now_ns, limit) >= first_ns for unit in self.units)

    def level(self, now_ns: int, limit: Limit, *, running: bool = True) -> Fraction:
        """The most that a leaky bucket can hold: exactly, and each unit counted as late as it can have been."""
        before_ns, level = self.poured
        instants = [
            unit.latest_ns(now_ns, limit)
            for unit in self.units
            if (running or unit.until_ns is not None)
            and (unit.until_ns is None or unit.latest_ns(now_ns, limit) > before_ns)
        ]
        for at_ns in (*sorted(instants), None):
            passed_ns = (now_ns if at_ns is None else at_ns) - before_ns
            level = max(Fraction(0), level - Fraction(passed_ns * limit.units, limit.period_ns))
            if at_ns is not None:
                before_ns, level = at_ns, level + 1
        return level

    def count(self, now_ns: int, linger_ns: int, chance: random.Random) -> None:
        """Some of what runs, or lingers, is counted now."""
        for unit in self.units:
            may_be = unit.until_ns is None or (unit.lingers and now_ns <= unit.until_ns + linger_ns)
            if unit.counted_ns is None and may_be and chance.random() < 0.5:
                unit.counted_ns = now_ns

    def remaining(self, now_ns: int, limit: Limit) -> int:
        """What it says is left of a limit that has windows."""
        first_ns = self.window_ns(now_ns, limit) if limit.window is Window.FIXED else now_ns - limit.period_ns + 1
        counted = sum(unit.counted_ns is not None and unit.counted_ns >= first_ns for unit in self.units)
        return max(0, limit.units - counted)

    def forget(self, before_ns: int) -> None:
        """Drop what was over before, and can be in no window any more."""
        if len(self.units) > 500:
            self.units = [unit for unit in self.units if unit.until_ns is None or unit.until_ns > before_ns]

    def judge(self, now_ns: int, policy: Policy) -> None:
        for limit in enforced(policy):
            worst = self.worst(now_ns, limit)
            assert worst <= limit.units, f"{worst} units in a window of {limit}"


class Process:
    """A worker process without threads: what the renewal does, on command. One unit of the judge per unit taken."""

    def __init__(self, directory: Path, clock: FakeClock, upstream: Upstream, policies: Mapping[str, Policy]) -> None:
        self.clock = clock
        self.upstream = upstream
        self.ledger = Ledger.open(directory, clock=clock.clock())
        self.ledger.configure(policies.values())
        self.ledger.join()
        self.till = Till(clock.clock().now_ns, lambda: None)
        self._bind()
        self.running: list[tuple[Grant, list[Unit]]] = []

    def price(self, consumer: str, cost: Mapping[str, int]) -> Priced:
        return Priced(consumer, tuple((self.till.pools[q], n) for q, n in sorted(cost.items())), Tally())

    def pool(self, quota: str) -> Pool:
        return self.till.pools[quota]

    def take(self, consumer: str, cost: Mapping[str, int], *, top_up: bool = True) -> bool:
        """From memory, or else from the ledger. Whether it was paid for."""
        priced = self.price(consumer, cost)
        grant = self.till.take(priced)
        if grant is None:
            # Through the pools, as a consumer that comes back does: its units are kept for it, and taken by it.
            if not self.sync(Want(consumer, cost), give_back=True, top_up=tuple(cost) if top_up else ()):
                return False
            grant = self.till.take(priced)
            assert grant is not None, "granted by the ledger, refused from memory"
            self.till.unmark(consumer)
        units = [Unit() for _ in range(sum(cost.values()))]
        self.upstream.units += units
        self.running.append((grant, units))
        return True

    def settle(self, index: int, used: int, *, ambiguous: bool = False) -> None:
        """End a task whose only quota was `api`: of its units the first `used` were spent."""
        grant, units = self.running.pop(index)
        self.till.settle(grant, {"api": used}, ambiguous=ambiguous)
        for unit in units[:used]:
            unit.until_ns, unit.lingers = self.clock.true_ns, ambiguous
        for unit in units[used:]:
            self.upstream.units.remove(unit)

    def sync(self, *wants: Want, give_back: bool = False, top_up: tuple[str, ...] = ()) -> bool:
        """One exchange. Whether all wants were granted; what was is kept in memory for the consumer."""
        statement = self.till.state({q: pool.left for q, pool in self.till.pools.items()} if give_back else {})
        response = self.ledger.exchange(
            Exchange(
                held=statement.held,
                settled=statement.settled,
                doubtful=statement.doubtful,
                wants=wants,
                top_up={quota: max(0, self.pool(quota).left) for quota in top_up},
            )
        )
        if response.void:
            self.till.restore(statement)
            self.till.void()
            self._bind()
            return self.sync(*wants, give_back=give_back, top_up=top_up)
        self.till.confirm(response.leased, response.epochs)
        for want, granted in zip(wants, response.granted, strict=True):
            if granted:
                self.till.earmark(want.consumer, want.cost)
        return all(response.granted)

    def in_hand(self, quota: str) -> int:
        """Units that the ledger must have as leased to this process."""
        pool = self.pool(quota)
        return pool.left + pool.running + sum(pool.pending.values()) + sum(pool.doubtful.values())

    def crash(self) -> list[Unit]:
        """Die. Returns the units that were running: when they stop being counted is settled by who notices."""
        self.ledger.close()
        return [unit for _, units in self.running for unit in units]

    def _bind(self) -> None:
        grains = {
            quota: min(part.limit.bucket_ns for part in reading.limits)
            for quota, reading in self.ledger.readings().items()
        }
        self.till.bind(self.ledger.slots(), grains, self.ledger.words.view)
