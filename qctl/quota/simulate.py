"""The same policies, ahead in time: what hosts that share queues will have done when, by the worker's own decisions.

Not a second model: what may be spent and when there is more is `window`, who is paid, waits, is held and comes back is
`admission`, and what it all counts by are the limits of `policy`. This module only moves the clock from one event to
the next: tasks end, units return, a pause is over. Tasks of a consumer take equally long; none fails; leases are as
large as what runs. What differs by less than the grain in which the ledger keeps its history is
one event, so millions of tasks take seconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count

from qctl.quota.admission import Cause, Hold, Need, Purse, Return, Wait, decide, may_return, return_at, sensible_run
from qctl.quota.forecast import Burnt, Crew, Emptied, Forecast, Taken, Taker, Waiting
from qctl.quota.page import Page
from qctl.quota.policy import NS_PER_S
from qctl.quota.standing import JITTER_NS

#: Events of one simulation: about half a minute of computing.
MAX_EVENTS = 1_000_000
#: A consumer without a quota starts about as much at once as it does in this time.
FREE_GRAIN_NS = NS_PER_S // 10
#: Where tasks come in, a consumer that has none looks for more no sooner than after this.
IDLE_NS = NS_PER_S // 10
#: Near its end a queue is shared out in parts of a consumer's even share, so that all of them end together.
SHARE_DIVISOR = 2
HOUR_NS = 3_600 * NS_PER_S


def simulate(
    crews: Iterable[Crew],
    waiting: Iterable[Waiting],
    *,
    until_ns: int,
    least_ns: int = 0,
    unawaited: Collection[str] = (),
    hold_after_ns: int = NS_PER_S,
    max_events: int = MAX_EVENTS,
) -> Forecast:
    """Let these hosts work until the queues are empty, but for those that are `unawaited`: at least until `least_ns`,
    at most until `until_ns`. The first hour is that after the instant 0.

    Every queue that a taker names must be among `waiting`, every quota of a cost among those of its host, and every
    taker have a slot and a task that takes time.
    """
    world = _World(tuple(crews), tuple(waiting), hold_after_ns)
    world.awaited.difference_update(unawaited)
    return world.run(least_ns, until_ns, max_events)


@dataclass(slots=True, eq=False)
class _Queue:
    waiting: Waiting
    takers: int = 0
    taken: int = 0
    running: int = 0
    #: In the hands of consumers, who have not started them: nobody else can.
    kept: int = 0
    empty_ns: int | None = None
    #: Consumers that found nothing.
    idle: list[_Consumer] = field(default_factory=list)

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
class _Burn:
    """A quota at work, and what is told of it in the end."""

    host: str
    page: Page
    consumers: list[_Consumer]
    units: int = 0
    hour_units: int = 0
    out_ns: int | None = None
    returns_ns: int | None = None

    def backlog_units(self, index: int) -> int:
        """Units for what a process of the host holds and has not started."""
        mine = (one for one in self.consumers if one.taker.index == index)
        return sum(one.waiting_here * one.taker.cost[self.page.quota] for one in mine)


@dataclass(slots=True, eq=False)
class _Consumer:
    """A taker at work. look_ns: when it is to be looked at, None at any event of its host."""

    taker: Taker
    host: str
    queues: tuple[tuple[_Queue, int], ...]
    burns: tuple[tuple[_Burn, int], ...]
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
    kept: dict[_Queue, int] = field(default_factory=dict)
    tasks: int = 0
    hour_tasks: int = 0
    last_ns: int | None = None

    @property
    def room(self) -> int:
        """How many more deliveries it may have."""
        running = self.taker.slots - self.free_slots
        return max(self.taker.prefetch, self.taker.slots) - running - sum(self.kept.values())

    def keep(self, queue: _Queue, now_ns: int) -> None:
        """Have as many deliveries in hand as it may."""
        more = min(self.room, queue.free(now_ns))
        if more > 0 and now_ns >= queue.waiting.at_ns:
            self.kept[queue] = self.kept.get(queue, 0) + more
            queue.kept += more

    def can_take(self, queue: _Queue, now_ns: int) -> int:
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


class _World:
    """All hosts at one instant, and what is due."""

    def __init__(self, crews: tuple[Crew, ...], waiting: tuple[Waiting, ...], hold_after_ns: int) -> None:
        self.queues = {one.queue: _Queue(one) for one in waiting}
        self.hold_after_ns = hold_after_ns
        self.burns: list[_Burn] = []
        self.hosts: dict[str, list[_Consumer]] = {}
        #: (instant, order, consumer, slots that are free then, tasks that end then, of which queue); no slots: a look.
        self.due: list[tuple[int, int, _Consumer, int, int, _Queue | None]] = []
        self.order = count()
        for crew in crews:
            self._hire(crew)
        #: Queues that are not empty yet, as far as anybody takes from them.
        self.awaited = {name for name, queue in self.queues.items() if queue.takers}

    def _hire(self, crew: Crew) -> None:
        burns = {stock.quota: _Burn(crew.host, Page(stock, crew.at_ns), []) for stock in crew.quotas}
        self.burns += burns.values()
        mine = self.hosts.setdefault(crew.host, [])
        for taker in crew.takers:
            cost = tuple((burns[quota], units) for quota, units in taker.cost.items() if units)
            one = _Consumer(
                taker=taker,
                host=crew.host,
                queues=tuple((self.queues[name], from_ns) for name, from_ns in taker.queues.items()),
                burns=cost,
                free_slots=taker.slots,
                grain_ns=min((burn.page.grain_ns for burn, _ in cost), default=FREE_GRAIN_NS),
                pause_ns=min((burn.page.pause_ns for burn, _ in cost), default=1),
            )
            mine.append(one)
            for burn, _ in cost:
                burn.consumers.append(one)
            for queue, _ in one.queues:
                queue.takers += 1
            first_ns = max(crew.at_ns, min((from_ns for _, from_ns in one.queues), default=crew.at_ns))
            running = min(taker.running, taker.slots)
            if running and one.queues:
                self._begin(one, one.queues[0][0], running, running, crew.at_ns + taker.run_ns // 2)
            self._look(one, first_ns)

    def run(self, least_ns: int, until_ns: int, max_events: int) -> Forecast:
        """Until all is done, or nothing is due, or a bound is reached."""
        events, now_ns, due = 0, 0, self.due
        for queue in self.queues.values():
            self._is_empty(queue, queue.waiting.at_ns)
        while due and (self.awaited or due[0][0] <= least_ns):
            if due[0][0] > until_ns or events >= max_events:
                return self._forecast(min(due[0][0], until_ns), events, bounded=True)
            now_ns, _, one, slots, tasks, ended = heappop(due)
            events += 1
            if ended is not None:
                self._end(one, ended, slots, tasks, now_ns)
                for other in self.hosts[one.host]:
                    if other.look_ns is None or other.listens:
                        self._serve(other, now_ns)
            elif one.look_ns == now_ns:
                self._serve(one, now_ns)
        return self._forecast(now_ns, events, bounded=False)

    # What happens

    def _begin(self, one: _Consumer, queue: _Queue, slots: int, tasks: int, ends_ns: int) -> None:
        one.free_slots -= slots
        queue.running += tasks
        for burn, units in one.burns:
            burn.page.reserve(units * tasks)
        heappush(self.due, (ends_ns, next(self.order), one, slots, tasks, queue))

    def _end(self, one: _Consumer, queue: _Queue, slots: int, tasks: int, now_ns: int) -> None:
        one.free_slots += slots
        one.tasks += tasks
        one.last_ns = now_ns
        in_hour = now_ns <= HOUR_NS
        one.hour_tasks += tasks * in_hour
        for burn, units in one.burns:
            burn.page.settle(units * tasks, now_ns)
            burn.units += units * tasks
            burn.hour_units += units * tasks * in_hour
        queue.running -= tasks
        self._is_empty(queue, now_ns)

    def _is_empty(self, queue: _Queue, now_ns: int) -> None:
        """Whether nothing waits any more and, where nothing comes in, nothing runs either."""
        if queue.empty_ns is not None or now_ns < queue.waiting.at_ns or queue.available(now_ns) > 0:
            return
        if not queue.running or queue.waiting.in_per_s:
            queue.empty_ns = now_ns
            self.awaited.discard(queue.waiting.queue)

    def _look(self, one: _Consumer, at_ns: int | None, *, listens: bool = False) -> None:
        one.look_ns, one.listens = at_ns, listens
        if at_ns is not None:
            heappush(self.due, (at_ns, next(self.order), one, 0, 0, None))

    # Who goes on

    def _serve(self, one: _Consumer, now_ns: int) -> None:
        """Start what can be started; say when to look again."""
        open_ones = [queue for queue, from_ns in one.queues if from_ns <= now_ns]
        full = [queue for queue in open_ones if one.can_take(queue, now_ns) > 0]
        if not full:
            self._idle(one, open_ones, now_ns)
        elif one.hold is None or self._comes_back(one, now_ns):
            one.look_ns, one.listens = None, False
            while one.free_slots and full:
                queue = full[one.tasks % len(full)] if len(full) > 1 else full[0]
                if not self._start(one, queue, now_ns):
                    one.keep(queue, now_ns)
                    self._fall_short(one, now_ns)
                    return
                one.keep(queue, now_ns)
                full = [queue for queue in full if one.can_take(queue, now_ns) > 0]

    def _idle(self, one: _Consumer, open_ones: list[_Queue], now_ns: int) -> None:
        for burn, _ in one.burns:
            burn.page.unclaim(one.taker.place)
        one.waits.clear()
        for queue in open_ones:
            self._is_empty(queue, now_ns)
            queue.idle.append(one)
        comes = [at_ns for queue in open_ones if (at_ns := queue.comes_ns(now_ns)) is not None]
        comes += [from_ns for _, from_ns in one.queues if from_ns > now_ns]
        self._look(one, min(comes, default=None))

    def _start(self, one: _Consumer, queue: _Queue, now_ns: int) -> bool:
        payable = one.payable(now_ns)
        if payable <= 0:
            return False
        taker = one.taker
        rounds = max(1, one.grain_ns // taker.run_ns)
        uncounted = now_ns < queue.waiting.at_ns
        if uncounted:
            rounds = max(1, min(rounds, (queue.waiting.at_ns - now_ns) // taker.run_ns))
        # Whole rounds: a slot that is idle for one is not idle in a worker.
        share = max(1, queue.share(now_ns) // one.free_slots) * one.free_slots
        tasks = min(payable, one.free_slots * rounds, share, one.can_take(queue, now_ns))
        slots = min(one.free_slots, tasks)
        if not uncounted:
            queue.taken += tasks
            in_hand = min(tasks, one.kept.get(queue, 0))
            queue.kept -= in_hand
            one.kept[queue] = one.kept.get(queue, 0) - in_hand
        self._begin(one, queue, slots, tasks, now_ns - (-tasks // slots) * taker.run_ns)
        for _ in range(min(tasks, len(one.waits))):
            one.waits.popleft()
        if not one.waits:
            for burn, _ in one.burns:
                burn.page.unclaim(taker.place)
        return True

    def _fall_short(self, one: _Consumer, now_ns: int) -> None:
        """The next task cannot be paid: wait for it, or hold."""
        for burn, units in one.burns:
            burn.page.enter(now_ns)
            burn.page.claim(one.taker.place, units, now_ns)
        deadline_ns = one.wait(now_ns) + self.hold_after_ns
        needs = one.needs(now_ns)
        verdict = decide(needs, now_ns=now_ns, deadline_ns=deadline_ns)
        if isinstance(verdict, Hold):
            one.hold, one.held_since_ns, one.ripe_ns = verdict, now_ns, None
            one.waits.clear()
            self._give_back(one, now_ns)
            self._note(one, verdict, now_ns)
            self._comes_back(one, now_ns)
        else:
            until_ns = verdict.until_ns if isinstance(verdict, Wait) else now_ns
            listens = any(need.purse.payable_at(need.cost_units, now_ns) is None for need in needs)
            self._look(one, max(until_ns, now_ns + one.pause_ns), listens=listens)

    def _give_back(self, one: _Consumer, now_ns: int) -> None:
        """What it has in hand is for whoever can pay."""
        for queue, tasks in one.kept.items():
            queue.kept -= tasks
            if tasks:
                for other in queue.idle:
                    self._look(other, now_ns)
                queue.idle.clear()
        one.kept.clear()

    def _note(self, one: _Consumer, hold: Hold, now_ns: int) -> None:
        for burn, _ in one.burns:
            if burn.page.quota == hold.quota and hold.cause is Cause.QUOTA and burn.out_ns is None:
                burn.out_ns, burn.returns_ns = now_ns, hold.until_ns

    def _comes_back(self, one: _Consumer, now_ns: int) -> bool:
        """Whether a held consumer consumes again; if not, when to look."""
        for burn, _ in one.burns:
            burn.page.enter(now_ns)
        needs = one.needs(now_ns)
        runs = one.runs(needs)
        if may_return(needs, runs, now_ns=now_ns, held_since_ns=one.held_since_ns) is Return.NOT_YET:
            one.ripe_ns = None
            at_ns = return_at(needs, runs, now_ns=now_ns, held_since_ns=one.held_since_ns)
            self._look(one, None if at_ns is None else max(at_ns, now_ns + 1))
            return False
        if one.ripe_ns is None:
            one.ripe_ns = now_ns + JITTER_NS // 2
        if now_ns < one.ripe_ns:
            self._look(one, one.ripe_ns)
            return False
        one.hold = one.ripe_ns = None
        for burn, _ in one.burns:
            if burn.out_ns is not None and burn.returns_ns is None:
                burn.returns_ns = now_ns
        return True

    def _forecast(self, end_ns: int, events: int, *, bounded: bool) -> Forecast:
        consumers = [one for mine in self.hosts.values() for one in mine]
        return Forecast(
            end_ns=end_ns,
            queues=tuple(
                Emptied(name, queue.empty_ns, max(0, queue.available(end_ns))) for name, queue in self.queues.items()
            ),
            takers=tuple(
                Taken(one.host, one.taker.name, one.taker.index, one.tasks, one.hour_tasks, one.last_ns)
                for one in consumers
            ),
            quotas=tuple(
                Burnt(burn.host, burn.page.quota, burn.units, burn.hour_units, burn.out_ns, burn.returns_ns)
                for burn in self.burns
            ),
            events=events,
            bounded=bounded,
        )
