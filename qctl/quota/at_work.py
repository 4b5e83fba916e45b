"""Queues, quotas and consumers of a simulation, as they stand at one instant; `simulate` moves them on."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from qctl.quota.admission import Hold, Need, Purse, sensible_run
from qctl.quota.forecast import Taker, Waiting
from qctl.quota.page import Page
from qctl.quota.policy import NS_PER_S

#: Where tasks come in, a consumer that has none looks for more no sooner than after this.
IDLE_NS = NS_PER_S // 10
#: Near its end a queue is shared out in parts of a consumer's even share, so that all of them end together.
SHARE_DIVISOR = 2


@dataclass(slots=True, eq=False)
class LiveQueue:
    waiting: Waiting
    takers: int = 0
    taken: int = 0
    running: int = 0
    #: In the hands of consumers, who have not started them: nobody else can.
    kept: int = 0
    empty_ns: int | None = None
    #: Consumers that found nothing.
    idle: list[LiveTaker] = field(default_factory=list)

    def free(self, now_ns: int) -> int:
        """Tasks that nobody has in hand."""
        return self.available(now_ns) - self.kept

    def available(self, now_ns: int) -> int:
        """Tasks that nobody has started."""
        waiting = self.waiting
        if now_ns < waiting.at_ns or not waiting.in_per_s:
            return waiting.tasks - self.taken
        return waiting.tasks - self.taken + int(waiting.in_per_s * (now_ns - waiting.at_ns) / NS_PER_S)

    def share(self, now_ns: int) -> int:
        """What one taker may take at once."""
        return self.free(now_ns) // (SHARE_DIVISOR * self.takers)

    def comes_ns(self, now_ns: int) -> int | None:
        """When there may be more than nothing; None: never."""
        if now_ns < self.waiting.at_ns:
            return self.waiting.at_ns
        return now_ns + max(IDLE_NS, int(NS_PER_S / self.waiting.in_per_s)) if self.waiting.in_per_s else None


@dataclass(slots=True, eq=False)
class LiveQuota:
    """A quota at work, and what is told of it in the end."""

    host: str
    page: Page
    consumers: list[LiveTaker]
    units: int = 0
    hour_units: int = 0
    out_ns: int | None = None
    returns_ns: int | None = None

    def backlog_units(self, index: int) -> int:
        """Units for what a process of the host holds and has not started."""
        mine = (one for one in self.consumers if one.taker.index == index)
        return sum(one.waiting_here * one.taker.cost[self.page.quota] for one in mine)


@dataclass(slots=True, eq=False)
class LiveTaker:
    """A taker at work. look_ns: when it is to be looked at, None at any event of its host."""

    taker: Taker
    host: str
    queues: tuple[tuple[LiveQueue, int], ...]
    burns: tuple[tuple[LiveQuota, int], ...]
    free_slots: int
    grain_ns: int
    pause_ns: int
    look_ns: int | None = None
    #: It waits for what may come back when a task of its host ends.
    listens: bool = False
    hold: Hold | None = None
    held_since_ns: int = 0
    ripe_ns: int | None = None
    #: Since when each delivery in a slot waits for quota, the oldest first.
    waits: deque[int] = field(default_factory=deque)
    #: Deliveries in hand that are not started, by queue.
    kept: dict[LiveQueue, int] = field(default_factory=dict)
    #: Of each quota, the part of a unit that its tasks have used and that is not settled yet.
    owed: dict[str, float] = field(default_factory=dict)
    tasks: int = 0
    hour_tasks: int = 0
    last_ns: int | None = None

    def used(self, quota: str, cost_units: int, tasks: int) -> int:
        """Whole units that so many tasks, which end now, have used of a quota."""
        uses = self.taker.uses.get(quota)
        if uses is None:
            return cost_units * tasks
        owed = self.owed.get(quota, 0.0) + uses * tasks
        self.owed[quota] = owed - int(owed)
        return min(int(owed), cost_units * tasks)

    @property
    def room(self) -> int:
        """How many more deliveries it may have."""
        running = self.taker.slots - self.free_slots
        return max(self.taker.prefetch, self.taker.slots) - running - sum(self.kept.values())

    def keep(self, queue: LiveQueue, now_ns: int) -> None:
        """Have as many deliveries in hand as it may."""
        more = min(self.room, queue.free(now_ns))
        if more > 0 and now_ns >= queue.waiting.at_ns:
            self.kept[queue] = self.kept.get(queue, 0) + more
            queue.kept += more

    def can_take(self, queue: LiveQueue, now_ns: int) -> int:
        """Tasks of a queue that it has in hand or that nobody has."""
        return queue.free(now_ns) + self.kept.get(queue, 0)

    @property
    def waiting_here(self) -> int:
        """Deliveries that it has and has not started."""
        return sum(self.kept.values())

    def wait(self, now_ns: int) -> int:
        """One is short of quota, and so are all others that are in a slot: since when the first waits."""
        waiting = max(1, min(self.free_slots, self.waiting_here))
        while len(self.waits) > waiting:
            self.waits.pop()
        while len(self.waits) < waiting:
            self.waits.append(now_ns)
        return self.waits[0]

    def needs(self, now_ns: int) -> list[Need]:
        """What its next task needs of each quota, and all that its process holds."""
        found = []
        for burn, units in self.burns:
            reading = burn.page.reading()
            ahead = reading.ahead("", self.taker.place, now_ns) if reading.claims else 0
            purse = Purse(reading, left_units=0, ahead_units=ahead)
            found.append(Need(burn.page.quota, units, max(units, burn.backlog_units(self.taker.index)), purse))
        return found

    def runs(self, needs: Iterable[Need]) -> list[int]:
        """Units of a run that is worth coming back for."""
        rate = self.taker.rate_per_s
        return [
            sensible_run(need.purse.reading, cost_units=need.cost_units, rate_per_s=rate * need.cost_units)
            for need in needs
        ]

    def payable(self, now_ns: int) -> int:
        """Tasks that can be paid now."""
        place = self.taker.place
        return min(burn.page.payable(place, now_ns) // units for burn, units in self.burns) if self.burns else 1 << 62
