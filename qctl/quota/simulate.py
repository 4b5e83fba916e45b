"""The same policies, ahead in time: what hosts that share queues will have done when, by the worker's own decisions.

Not a second model: what may be spent and when there is more is `window`, who is paid, waits, is held and comes back is
`admission`, and what it all counts by are the limits of `policy`. This module only moves the clock from one event to
the next: tasks end, units return, a pause is over. Tasks of a consumer take equally long; none fails; leases are as
large as what runs. What differs by less than the grain in which the ledger keeps its history is
one event, so millions of tasks take seconds.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from heapq import heappop, heappush
from itertools import count

from qctl.quota.admission import Cause, Hold, Return, Wait, decide, may_return, return_at
from qctl.quota.at_work import LiveQueue, LiveQuota, LiveTaker
from qctl.quota.forecast import Burnt, Crew, Emptied, Forecast, Taken, Waiting
from qctl.quota.page import Page
from qctl.quota.policy import NS_PER_S
from qctl.quota.standing import JITTER_NS

#: Events of one simulation: about half a minute of computing.
MAX_EVENTS = 1_000_000
#: Of a fleet so many times as large, so many grains of the ledger's history are one event: of 500 hosts a hundredth of
#: a window.
FINE_HOSTS = 50
#: A consumer without a quota starts about as much at once as it does in this time.
FREE_GRAIN_NS = NS_PER_S // 10
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


class _World:
    """All hosts at one instant, and what is due."""

    def __init__(self, crews: tuple[Crew, ...], waiting: tuple[Waiting, ...], hold_after_ns: int) -> None:
        self.queues = {one.queue: LiveQueue(one) for one in waiting}
        self.hold_after_ns = hold_after_ns
        self.burns: list[LiveQuota] = []
        self.hosts: dict[str, list[LiveTaker]] = {}
        #: (instant, order, consumer, slots that are free then, tasks that end then, of which queue); no slots: a look.
        self.due: list[tuple[int, int, LiveTaker, int, int, LiveQueue | None]] = []
        self.order = count()
        coarseness = max(1, len(crews) // FINE_HOSTS)
        for crew in crews:
            self._hire(crew, coarseness)
        #: Queues that are not empty yet, as far as anybody takes from them.
        self.awaited = {name for name, queue in self.queues.items() if queue.takers}

    def _hire(self, crew: Crew, coarseness: int) -> None:
        burns = {stock.quota: LiveQuota(crew.host, Page(stock, crew.at_ns, coarseness), []) for stock in crew.quotas}
        self.burns += burns.values()
        mine = self.hosts.setdefault(crew.host, [])
        for taker in crew.takers:
            cost = tuple((burns[quota], units) for quota, units in taker.cost.items() if units)
            one = LiveTaker(
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

    def _begin(self, one: LiveTaker, queue: LiveQueue, slots: int, tasks: int, ends_ns: int) -> None:
        one.free_slots -= slots
        queue.running += tasks
        for burn, units in one.burns:
            burn.page.reserve(units * tasks)
        heappush(self.due, (ends_ns, next(self.order), one, slots, tasks, queue))

    def _end(self, one: LiveTaker, queue: LiveQueue, slots: int, tasks: int, now_ns: int) -> None:
        one.free_slots += slots
        one.tasks += tasks
        one.last_ns = now_ns
        in_hour = now_ns <= HOUR_NS
        one.hour_tasks += tasks * in_hour
        for burn, units in one.burns:
            used = one.used(burn.page.quota, units, tasks)
            burn.page.settle(units * tasks, used, now_ns)
            burn.units += used
            burn.hour_units += used * in_hour
        queue.running -= tasks
        self._is_empty(queue, now_ns)

    def _is_empty(self, queue: LiveQueue, now_ns: int) -> None:
        """Whether nothing waits any more and, where nothing comes in, nothing runs either."""
        if queue.empty_ns is not None or now_ns < queue.waiting.at_ns or queue.available(now_ns) > 0:
            return
        if not queue.running or queue.waiting.in_per_s:
            queue.empty_ns = now_ns
            self.awaited.discard(queue.waiting.queue)

    def _look(self, one: LiveTaker, at_ns: int | None, *, listens: bool = False) -> None:
        one.look_ns, one.listens = at_ns, listens
        if at_ns is not None:
            heappush(self.due, (at_ns, next(self.order), one, 0, 0, None))

    # Who goes on

    def _serve(self, one: LiveTaker, now_ns: int) -> None:
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

    def _idle(self, one: LiveTaker, open_ones: list[LiveQueue], now_ns: int) -> None:
        for burn, _ in one.burns:
            burn.page.unclaim(one.taker.place)
        one.waits.clear()
        for queue in open_ones:
            self._is_empty(queue, now_ns)
            queue.idle.append(one)
        comes = [at_ns for queue in open_ones if (at_ns := queue.comes_ns(now_ns)) is not None]
        comes += [from_ns for _, from_ns in one.queues if from_ns > now_ns]
        self._look(one, min(comes, default=None))

    def _start(self, one: LiveTaker, queue: LiveQueue, now_ns: int) -> bool:
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

    def _fall_short(self, one: LiveTaker, now_ns: int) -> None:
        """The next task cannot be paid: wait for it, or hold."""
        for burn, units in one.burns:
            burn.page.enter(now_ns)
            burn.page.claim(one.taker.place, units, now_ns)
        # Where units are counted by the grain, nobody has waited longer than since the last of them.
        since_ns = now_ns if one.pause_ns > 1 else one.wait(now_ns)
        deadline_ns = since_ns + self.hold_after_ns
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

    def _give_back(self, one: LiveTaker, now_ns: int) -> None:
        """What it has in hand is for whoever can pay."""
        for queue, tasks in one.kept.items():
            queue.kept -= tasks
            if tasks:
                for other in queue.idle:
                    self._look(other, now_ns)
                queue.idle.clear()
        one.kept.clear()

    def _note(self, one: LiveTaker, hold: Hold, now_ns: int) -> None:
        for burn, _ in one.burns:
            if burn.page.quota == hold.quota and hold.cause is Cause.QUOTA and burn.out_ns is None:
                burn.out_ns, burn.returns_ns = now_ns, hold.until_ns

    def _comes_back(self, one: LiveTaker, now_ns: int) -> bool:
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
