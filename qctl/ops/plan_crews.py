"""A fleet as `simulate` wants it, from what was heard of it: who takes from which queue, how fast, and what it costs.

What nobody tells is assumed, and what is assumed is said. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from qctl.control.host_quotas import host_quotas
from qctl.control.quota_reading import LimitReading, QuotaReading
from qctl.control.reading import ConsumerReading
from qctl.control.target import Subject
from qctl.inventory.model import Consumer, Inventory, Quota
from qctl.ops.backlog import queues_of
from qctl.ops.found import Found
from qctl.ops.host_view import HostView
from qctl.ops.picture import Picture
from qctl.ops.plan_question import Added, Question, Rates
from qctl.ops.status import ConsumerRow, State
from qctl.quota.forecast import Crew, Taker
from qctl.quota.page import LONG_AGO_NS, History, Stock
from qctl.quota.policy import Limit, Policy, Window, enforced
from qctl.quota.upstream import Span
from qctl.units import NS_PER_S, Rate

#: Where no worker has told how long a task takes.
ASSUMED_RUN_S = 0.1
#: What a worker needs for a task beside the handler; so a process runs no more than this many a second.
TASKS_PER_S = 15_000.0
#: A pause or a hold whose end nobody knows.
NO_END = None


class Lack(StrEnum):
    """Why a consumer of a queue takes nothing from it."""

    DOWN = "down"
    UNKNOWN = "unknown"
    PAUSED = "paused"
    HELD = "held"
    COST = "cost over limit"


@dataclass(frozen=True, slots=True)
class Absent:
    """A consumer on a host that takes nothing, and why, in words too."""

    host: str
    consumer: str
    queues: tuple[str, ...]
    lack: Lack
    words: str


@dataclass(frozen=True, slots=True)
class Staff:
    """Who will work, who will not, and what was assumed: a sentence each. held_tasks: in workers and not started, by
    queue."""

    crews: tuple[Crew, ...]
    absent: tuple[Absent, ...]
    assumed: tuple[str, ...]
    held_tasks: Mapping[str, int] = field(default_factory=dict)


def staff(found: Found, picture: Picture, inventory: Inventory, asked: Question) -> Staff:
    """The fleet at `found.at_s`, which is the instant 0 of the simulation."""
    return _Roll(found, picture, inventory, asked).staff()


class _Roll:
    def __init__(self, found: Found, picture: Picture, inventory: Inventory, asked: Question) -> None:
        self.found, self.inventory, self.asked = found, inventory, asked
        self.views = picture.hosts
        self.rows: dict[str, list[ConsumerRow]] = {}
        for row in picture.status.consumers:
            self.rows.setdefault(row.host, []).append(row)
        #: Nobody works: the plan is then about the fleet as it stands in the inventory.
        self.nobody = not any(view.live for view in self.views)
        self.absent: list[Absent] = []
        self.assumed: dict[str, None] = {}
        self.held_tasks: dict[str, int] = {}
        self.run_s = _measured(view.spoken.values() for view in self.views)

    def staff(self) -> Staff:
        if self.nobody:
            self.assumed["no worker is heard: every host of the inventory is assumed to run, one process each"] = None
        crews = [self._crew(view) for view in self.views]
        crews += [self._added(one) for one in self.asked.added]
        return Staff(
            tuple(crew for crew in crews if crew.takers), tuple(self.absent), (*self.assumed,), self.held_tasks
        )

    def _ns(self, at_s: float) -> int:
        return round((at_s - self.found.at_s) * NS_PER_S)

    # Hosts

    def _crew(self, view: HostView) -> Crew:
        at_s = max((heard.at_s for heard in view.live), default=self.found.at_s)
        readings = {one.name: one for one in host_quotas(view.readings)} if view.live else {}
        limits = {
            name: self._policy(view, name, readings.get(name)) for name in _spent_by(self.rows.get(view.name, ()))
        }
        known = {name: policy for name, policy in limits.items() if policy}
        takers = [taker for row in self.rows.get(view.name, ()) for taker in self._takers(view, row, known)]
        running: dict[str, int] = {}
        for taker in takers:
            for quota, units in taker.cost.items():
                running[quota] = running.get(quota, 0) + units * taker.running
        stocks = tuple(
            stock(policy, readings.get(name), running_units=running.get(name, 0), at_ns=self._ns(at_s), now_s=at_s)
            for name, policy in limits.items()
            if policy is not None
        )
        return Crew(view.name, tuple(takers), stocks, self._ns(at_s))

    def _policy(self, view: HostView, name: str, reading: QuotaReading | None) -> Policy | None:
        """The quota as it is enforced, or as it is asked for; None: nobody knows it."""
        quota = view.host.quotas.get(name) if view.host else None
        asked = self.asked.limits.get((view.name, name))
        told = tuple(Rate(one.units, round(one.period_s * NS_PER_S)) for one in reading.limits) if reading else ()
        desired = self.found.desired
        ordered = desired.override_of(view.name, name, self.found.at_s) if desired else None
        set_rates = tuple(Rate(units, period_ns) for units, period_ns in ordered.limits) if ordered else ()
        rates = asked or told or set_rates or (quota.limits if quota else ())
        return _policy(name, rates, quota, reading) if rates else None

    def _added(self, one: Added) -> Crew:
        """A host like another one: as the inventory has that, with nothing spent."""
        like = self.inventory.hosts[one.like]
        self.assumed[f"{one.name} is assumed to run what {one.like} runs, one process, with nothing spent"] = None
        policies = {}
        for name in dict.fromkeys(quota for consumer in like.consumers.values() for quota in consumer.cost):
            quota = like.quotas[name]
            policies[name] = _policy(name, one.limits.get(name, quota.limits), quota, None)
        takers = []
        for consumer in like.consumers.values():
            queues = (consumer.queue,)
            if self.asked.is_paused(_subject(one.name, consumer.name, consumer.queue)):
                self.absent.append(Absent(one.name, consumer.name, queues, Lack.PAUSED, "paused"))
            elif self._payable(one.name, consumer.name, queues, consumer.cost, policies):
                takers.append(self._assumed_taker(one.name, consumer, {consumer.queue: 0}, policies))
        stocks = tuple(stock(policy, None, running_units=0, at_ns=0, now_s=0.0) for policy in policies.values())
        return Crew(one.name, tuple(takers), stocks, 0)

    # Consumers

    def _takers(self, view: HostView, row: ConsumerRow, policies: Mapping[str, Policy]) -> tuple[Taker, ...]:
        """A consumer in each of the host's processes; none of them where it takes nothing."""
        known = view.host.consumers.get(row.consumer) if view.host else None
        queues = queues_of(view.name, known) if known is not None else (row.queue,)
        assumed = self.nobody and known is not None
        if not assumed and row.state in (State.DOWN, State.UNKNOWN, State.DRAINING):
            lack = Lack.UNKNOWN if row.state is State.UNKNOWN else Lack.DOWN
            self.absent.append(Absent(row.host, row.consumer, queues, lack, f"{row.state}: {row.why}"))
            return ()
        if not self._payable(row.host, row.consumer, queues, row.costs, policies):
            return ()
        held_until = self._held(row, queues)
        if held_until is NO_END:
            return ()
        open_from = {
            queue: max(held_until, from_ns)
            for number, queue in enumerate(queues)
            if (from_ns := self._opens(view, row, queue, directed=number > 0)) is not NO_END
        }
        if closed := tuple(queue for queue in queues if queue not in open_from):
            self.absent.append(Absent(row.host, row.consumer, closed, Lack.PAUSED, "paused"))
        if not open_from:
            return ()
        if assumed and known is not None:
            return (self._assumed_taker(row.host, known, open_from, policies),)
        return tuple(
            self._heard_taker(row, one, reading.index, open_from)
            for reading in view.readings
            for one in reading.consumers
            if one.name == row.consumer
        )

    def _payable(
        self, host: str, consumer: str, queues: tuple[str, ...], cost: Mapping[str, int], policies: Mapping[str, Policy]
    ) -> bool:
        """Whether a task of it can ever be paid for."""
        for quota, units in cost.items():
            policy = policies.get(quota)
            if policy is None and units:
                words = f"no limit of {host}/{quota} is known"
                self.absent.append(Absent(host, consumer, queues, Lack.UNKNOWN, words))
                return False
            least = min(limit.units for limit in enforced(policy)) if policy is not None else units
            if units > least:
                words = f"a task is expected to need {units} units of {quota}, more than {least}"
                self.absent.append(Absent(host, consumer, queues, Lack.COST, words))
                return False
        return True

    def _held(self, row: ConsumerRow, queues: tuple[str, ...]) -> int | None:
        """When holds other than for want of quota are over: what was learnt of quotas is simulated."""
        holds = [hold for hold in row.holds if hold.cause != "quota"]
        ends = [hold.until_s for hold in holds]
        known = [end for end in ends if end is not None]
        if len(known) < len(ends):
            words = "; ".join(hold.words or hold.cause for hold in holds)
            self.absent.append(Absent(row.host, row.consumer, queues, Lack.HELD, f"held: {words}"))
            return NO_END
        return max([self._ns(end) for end in known], default=LONG_AGO_NS)

    def _opens(self, view: HostView, row: ConsumerRow, queue: str, *, directed: bool) -> int | None:
        """When no pause holds for a queue of it any more."""
        subject = _subject(row.host, row.consumer, queue, directed=directed)
        if self.asked.is_paused(subject):
            return NO_END
        if self.found.desired is not None:
            ends = [one.until_s for one in view.pauses_of(subject)]
        else:
            ends = [one.until_s for one in row.pauses]
        known_ends = [end for end in ends if end is not None]
        if len(known_ends) < len(ends):
            return NO_END
        return max([self._ns(end) for end in known_ends], default=LONG_AGO_NS)

    def _heard_taker(self, row: ConsumerRow, one: ConsumerReading, index: int, queues: Mapping[str, int]) -> Taker:
        slots = max(1, one.concurrency)
        self.held_tasks[row.queue] = self.held_tasks.get(row.queue, 0) + one.waiting
        run_s = one.run_s if one.run_s is not None else self._run_s(row.host, row.consumer)
        return Taker(
            name=row.consumer,
            queues=queues,
            cost=_paid(row.costs),
            slots=min(slots, one.prefetch) if one.prefetch else slots,
            run_ns=_slot_ns(run_s, slots),
            prefetch=one.prefetch,
            running=min(one.running, slots),
            index=index,
        )

    def _assumed_taker(
        self, host: str, consumer: Consumer, queues: Mapping[str, int], policies: Mapping[str, Policy]
    ) -> Taker:
        run_s = self._run_s(host, consumer.name)
        cost = _paid(consumer.cost)
        buckets = [
            (limit, units) for quota, units in cost.items() for limit in enforced(policies[quota]) if _is_bucket(limit)
        ]
        patience_s = self.inventory.worker.hold_after_s
        slots = min([consumer.concurrency, *(_paid_in_time(*bucket, run_s, patience_s) for bucket in buckets)])
        return Taker(consumer.name, queues, cost, slots, _slot_ns(run_s, slots), prefetch=slots)

    def _run_s(self, host: str, consumer: str) -> float:
        """How long a task takes, of which its own host has told nothing."""
        others = self.run_s.get(consumer)
        if others is None:
            words = f"nobody has told how long a task of {consumer} takes: {ASSUMED_RUN_S:g} s is assumed"
        else:
            words = f"{host} has run no task of {consumer}: {others:.3g} s is assumed, as on other hosts"
        self.assumed[words] = None
        return ASSUMED_RUN_S if others is None else others


def stock(policy: Policy, reading: QuotaReading | None, *, running_units: int, at_ns: int, now_s: float) -> Stock:
    """What counts of a quota, as a reading told it at `at_ns`; running_units: reserved by tasks that run, left out."""
    told = {round(one.period_s * NS_PER_S): one for one in reading.limits} if reading else {}
    blocked_s = reading.blocked_until_s if reading else None
    shift_ns = at_ns - round(now_s * NS_PER_S)
    return Stock(
        policy.name,
        tuple(_history(limit, told, reading, running_units, at_ns, shift_ns) for limit in enforced(policy)),
        blocked_until_ns=round(blocked_s * NS_PER_S) + shift_ns if blocked_s is not None else LONG_AGO_NS,
    )


def _history(
    limit: Limit,
    told: Mapping[int, LimitReading],
    reading: QuotaReading | None,
    running_units: int,
    at_ns: int,
    shift_ns: int,
) -> History:
    if limit.window is Window.PACED or reading is None or not told:
        return History(limit, empty_ns=at_ns)
    one = told.get(limit.period_ns)
    if one is None:
        return History(limit, tuple(_carried_over(limit, told, running_units, at_ns)))
    rows = list(_rows(one, limit, running_units, at_ns))
    foreign = reading.foreign
    if foreign is not None and foreign.units and round(foreign.period_s * NS_PER_S) == limit.period_ns:
        until_ns = at_ns + limit.kept_ns if foreign.until_s is None else round(foreign.until_s * NS_PER_S) + shift_ns
        rows.append((until_ns, foreign.units))
    resets = None
    if limit.window is Window.FIXED and one.resets_at_s is not None:
        resets_ns = round(one.resets_at_s * NS_PER_S) + shift_ns
        resets = Span(resets_ns, resets_ns)
    return History(limit, tuple(rows), resets)


def _rows(one: LimitReading, limit: Limit, running_units: int, at_ns: int) -> Iterator[tuple[int, int]]:
    """What is spent of a limit, by when it is free again; what is not written down yet was spent just now."""
    told = sum(units for _, units in one.returns)
    yield from ((at_ns + round(in_s * NS_PER_S), units) for in_s, units in one.returns)
    if (just_now := one.used - told - running_units) > 0:
        yield at_ns + limit.kept_ns, just_now


def _carried_over(
    limit: Limit, told: Mapping[int, LimitReading], running_units: int, at_ns: int
) -> Iterator[tuple[int, int]]:
    """The history of the longest period that is told of, under another one. Where that asks for more than anybody
    remembers, what was possible counts as spent, as in the ledger."""
    period_ns, one = max(told.items())
    before = Limit(one.units, period_ns)
    for expires_ns, units in _rows(one, before, running_units, at_ns):
        yield expires_ns - before.kept_ns + limit.kept_ns, units
    for number in range(1, min(limit.period_ns // period_ns + 1, max(1, limit.units // max(1, one.units)) + 1)):
        yield at_ns - number * period_ns + limit.kept_ns, one.units


def _policy(name: str, rates: Rates, quota: Quota | None, reading: QuotaReading | None) -> Policy:
    window = Window(quota.window.value) if quota else _window(reading)
    burst = quota.burst if quota else reading.burst if reading else 1
    return Policy(name, tuple(Limit(rate.units, rate.period_ns) for rate in rates), window, burst)


def _window(reading: QuotaReading | None) -> Window:
    try:
        return Window(reading.window) if reading else Window.SLIDING
    except ValueError:
        return Window.SLIDING


def _measured(hosts: Iterable[Iterable[list[ConsumerReading]]]) -> dict[str, float]:
    """How long a task of each consumer takes, the mean of all processes that know."""
    found: dict[str, list[float]] = {}
    for spoken in hosts:
        for mine in spoken:
            for one in mine:
                if one.run_s is not None:
                    found.setdefault(one.name, []).append(one.run_s)
    return {name: sum(all_s) / len(all_s) for name, all_s in found.items()}


def _slot_ns(run_s: float, slots: int) -> int:
    """How long a task keeps its slot: no process can do more than it can."""
    return max(1, round(max(run_s, slots / TASKS_PER_S) * NS_PER_S))


def _is_bucket(limit: Limit) -> bool:
    return limit.window is Window.PACED


def _paid_in_time(bucket: Limit, units: int, run_s: float, patience_s: float) -> int:
    """Deliveries that a worker holds where a paced quota pays for them one by one: about those it pays in time."""
    interval_s = bucket.interval_ns * units / NS_PER_S
    per_s = min(1 / interval_s, bucket.units / units / (interval_s + run_s))
    return max(1, int(per_s * (patience_s / 2 + run_s)))


def _subject(host: str, consumer: str, queue: str, *, directed: bool = False) -> Subject:
    """A subscription of the first process."""
    return Subject(host, consumer, queue, f"qctl/{host}/{consumer}/0{'/directed' if directed else ''}")


def _paid(cost: Mapping[str, int]) -> dict[str, int]:
    return {quota: units for quota, units in cost.items() if units}


def _spent_by(rows: Iterable[ConsumerRow]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(quota for row in rows for quota, units in row.costs.items() if units))
