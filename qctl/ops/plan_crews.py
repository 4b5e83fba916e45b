"""A fleet as `simulate` wants it, from what was heard of it: who takes from which queue, how fast, and what it costs.

What nobody tells is assumed, and what is assumed is said. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from qctl.control.host_quotas import host_quotas
from qctl.control.quota_reading import QuotaReading
from qctl.control.reading import ConsumerReading
from qctl.control.target import Subject
from qctl.inventory.model import Consumer, Inventory
from qctl.ops import costs, plan_costs
from qctl.ops.backlog import queues_of
from qctl.ops.found import Found
from qctl.ops.host_view import HostView
from qctl.ops.picture import Picture
from qctl.ops.plan_question import Added, Question
from qctl.ops.plan_stock import least, policy_of, stock
from qctl.ops.status import ConsumerRow, State
from qctl.quota.forecast import Crew, Taker
from qctl.quota.page import LONG_AGO_NS
from qctl.quota.policy import Limit, Policy, Window, enforced
from qctl.units import NS_PER_S, Rate

#: Where no worker has told how long a task takes.
ASSUMED_RUN_S = 0.1
#: What a worker needs for a task beside the handler; so a process runs no more than this many a second.
TASKS_PER_S = 15_000.0
UNHEARD = "no worker is heard: every host of the inventory is assumed to run"
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
    queue. unheard: nobody works, and the first assumption says what is planned instead."""

    crews: tuple[Crew, ...]
    absent: tuple[Absent, ...]
    assumed: tuple[str, ...]
    held_tasks: Mapping[str, int] = field(default_factory=dict)
    unheard: bool = False


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
        self.seen = plan_costs.seen(costs.judged(picture.status.quotas))

    def staff(self) -> Staff:
        if self.nobody:
            told = any(host_quotas(view.readings) for view in self.views)
            spent = "nothing spent but what was told before" if told else "nothing spent"
            self.assumed[f"{UNHEARD}, one process each, with {spent}"] = None
        crews = [self._crew(view) for view in self.views]
        crews += [self._added(one) for one in self.asked.added]
        return Staff(
            crews=tuple(crew for crew in crews if crew.takers),
            absent=tuple(self.absent),
            assumed=(*self.assumed,),
            held_tasks=self.held_tasks,
            unheard=self.nobody,
        )

    def _ns(self, at_s: float) -> int:
        return round((at_s - self.found.at_s) * NS_PER_S)

    # Hosts

    def _crew(self, view: HostView) -> Crew:
        heard_s = [heard.at_s for heard in view.live] or [reading.at_s for reading in view.readings]
        at_s = min(self.found.at_s, max(heard_s, default=self.found.at_s))
        readings = {one.name: one for one in host_quotas(view.readings)}
        limits = {
            name: self._policy(view, name, readings.get(name) if view.live else None)
            for name in _spent_by(self.rows.get(view.name, ()))
        }
        known = {name: policy for name, policy in limits.items() if policy}
        takers = [taker for row in self.rows.get(view.name, ()) for taker in self._takers(view, row, known)]
        crew = Crew(view.name, tuple(takers), at_ns=self._ns(at_s) if view.live else 0)
        stocks = tuple(
            stock(
                policy,
                readings.get(name),
                running_units=running_units(crew, name),
                at_ns=self._ns(at_s),
                now_s=at_s,
            )
            for name, policy in limits.items()
            if policy is not None
        )
        return replace(crew, quotas=stocks)

    def _policy(self, view: HostView, name: str, reading: QuotaReading | None) -> Policy | None:
        """The quota as it is enforced, or as it is asked for; None: nobody knows it."""
        quota = view.host.quotas.get(name) if view.host else None
        asked = self.asked.limits.get((view.name, name))
        told = tuple(Rate(one.units, round(one.period_s * NS_PER_S)) for one in reading.limits) if reading else ()
        desired = self.found.desired
        ordered = desired.override_of(view.name, name, self.found.at_s) if desired else None
        set_rates = tuple(Rate(units, period_ns) for units, period_ns in ordered.limits) if ordered else ()
        rates = asked or told or set_rates or (quota.limits if quota else ())
        return policy_of(name, rates, quota, reading) if rates else None

    def _added(self, one: Added) -> Crew:
        """A host like another one: as the inventory has that, with nothing spent."""
        like = self.inventory.hosts[one.like]
        self.assumed[f"{one.name} is assumed to run what {one.like} runs, one process, with nothing spent"] = None
        policies = {}
        for name in dict.fromkeys(quota for consumer in like.consumers.values() for quota in consumer.cost):
            quota = like.quotas[name]
            policies[name] = policy_of(name, one.limits.get(name, quota.limits), quota, None)
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
            self._heard_taker(row, one, reading.index, open_from, policies)
            for reading in view.readings
            for one in reading.consumers
            if one.name == row.consumer
        )

    def _cost(
        self, consumer: str, declared: Mapping[str, int], policies: Mapping[str, Policy]
    ) -> tuple[dict[str, int], dict[str, float]]:
        """What a task must be able to have of each quota, and what it will use where that is something else."""
        cost, uses = _paid(declared), {}
        for quota, units in cost.items():
            key = consumer, quota, units
            self.assumed.update(dict.fromkeys(filter(None, [plan_costs.words(key, self.seen.get(key))])))
            will_use = min(plan_costs.units(units, self.seen.get(key)), least(policies[quota]))
            if will_use != units:
                cost[quota], uses[quota] = max(units, math.ceil(will_use)), will_use
        return cost, uses

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
            most = least(policy) if policy is not None else units
            if units > most:
                words = f"a task is expected to need {units} units of {quota}, more than {most}"
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

    def _heard_taker(
        self,
        row: ConsumerRow,
        one: ConsumerReading,
        index: int,
        queues: Mapping[str, int],
        policies: Mapping[str, Policy],
    ) -> Taker:
        slots = max(1, one.concurrency)
        self.held_tasks[row.queue] = self.held_tasks.get(row.queue, 0) + one.waiting
        run_s = one.run_s if one.run_s is not None else self._run_s(row.host, row.consumer)
        cost, uses = self._cost(row.consumer, row.costs, policies)
        return Taker(
            name=row.consumer,
            queues=queues,
            cost=cost,
            slots=min(slots, one.prefetch) if one.prefetch else slots,
            run_ns=_slot_ns(run_s, slots),
            prefetch=one.prefetch,
            running=min(one.running, slots),
            index=index,
            uses=uses,
        )

    def _assumed_taker(
        self, host: str, consumer: Consumer, queues: Mapping[str, int], policies: Mapping[str, Policy]
    ) -> Taker:
        run_s = self._run_s(host, consumer.name)
        cost, uses = self._cost(consumer.name, consumer.cost, policies)
        buckets = [
            (limit, units) for quota, units in cost.items() for limit in enforced(policies[quota]) if _is_bucket(limit)
        ]
        patience_s = self.inventory.worker.hold_after_s
        slots = min([consumer.concurrency, *(_paid_in_time(*bucket, run_s, patience_s) for bucket in buckets)])
        return Taker(consumer.name, queues, cost, slots, _slot_ns(run_s, slots), prefetch=slots, uses=uses)

    def _run_s(self, host: str, consumer: str) -> float:
        """How long a task takes, of which its own host has told nothing."""
        others = self.run_s.get(consumer)
        if others is None:
            words = f"nobody has told how long a task of {consumer} takes: {ASSUMED_RUN_S:g} s is assumed"
        elif self.nobody:
            words = f"a task of {consumer} takes {others:.3g} s, as was told before"
        else:
            words = f"{host} has run no task of {consumer}: {others:.3g} s is assumed, as on other hosts"
        self.assumed[words] = None
        return ASSUMED_RUN_S if others is None else others


def running_units(crew: Crew, quota: str) -> int:
    """Units of a quota that running tasks of a host have reserved."""
    return sum(taker.cost.get(quota, 0) * taker.running for taker in crew.takers)


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
