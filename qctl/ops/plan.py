"""When each queue will be empty, and when each quota runs out and returns: the fleet as it is, ahead in time. Pure.

`plan_crews` says who works, `qctl.quota.simulate` what comes of it; here it becomes rows and reasons.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from qctl.inventory.model import Inventory
from qctl.ops.found import MAX_FORESIGHT_S, Depth, Found
from qctl.ops.picture import picture_of
from qctl.ops.plan_crews import Absent, Lack, Staff, running_units, staff
from qctl.ops.plan_question import Question
from qctl.ops.plan_stock import used_of
from qctl.ops.status import QueueRow, QuotaRow
from qctl.ops.when import iso, span
from qctl.quota.forecast import Crew, Emptied, Forecast, Taker, Waiting
from qctl.quota.policy import Window
from qctl.quota.simulate import simulate
from qctl.units import NS_PER_S, Rate

#: What lies further ahead is not foretold.
HORIZON_S = MAX_FORESIGHT_S
#: Where a queue grows, the quotas are told of for this many of the longest window.
WINDOWS_SHOWN = 2
#: Names in a sentence before the rest is only counted.
MAX_NAMED = 8


class Never(StrEnum):
    """Why nobody can say when a queue is empty."""

    UNKNOWN = "depth unknown"
    NOBODY = "nobody consumes it"
    PAUSED = "paused"
    HELD = "held"
    COST = "cost over limit"
    GROWS = "more comes in than can be done"
    BEYOND = "too far ahead"


_OF_LACK = {
    Lack.DOWN: Never.NOBODY,
    Lack.UNKNOWN: Never.NOBODY,
    Lack.PAUSED: Never.PAUSED,
    Lack.HELD: Never.HELD,
    Lack.COST: Never.COST,
}
#: Where consumers lack for several reasons, the first is said: what an operator can end soonest.
_FIRST = (Never.PAUSED, Never.HELD, Never.COST, Never.NOBODY)


@dataclass(frozen=True, slots=True)
class QueuePlan:
    """A queue. tasks: that wait in it, in_workers: that workers have; empty_at_s: when the last of them is done; None:
    never, or nobody knows, and `never` says why, in words too. in_per_s None: nobody says, and none are taken to come.

    by_host: how many tasks each host will have done of it until then, of all its queues if a consumer has several.
    """

    queue: str
    tasks: int | None
    in_workers: int = 0
    in_per_s: float | None = None
    empty_at_s: float | None = None
    never: Never | None = None
    words: str = ""
    by_host: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class QuotaPlan:
    """A quota of a host. used_units of limit_units now, of the limit that binds first; None: nobody says.

    out_at_s: when it first has nothing left and holds its consumers; returns_at_s: when a task can be paid again then;
    None: it lasts. units: that will be spent, hour_units: in the first hour.
    """

    host: str
    quota: str
    rates: tuple[str, ...]
    used_units: int | None
    limit_units: int | None
    out_at_s: float | None
    returns_at_s: float | None
    units: int
    hour_units: int
    asked: bool = False

    @property
    def address(self) -> str:
        """`HOST/QUOTA`."""
        return f"{self.host}/{self.quota}"


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be, as of `at_s`. assumed: what was taken for granted for want of better, a sentence each; notes: what
    could not be learnt; absent: consumers that take nothing. unheard: no worker is heard, so that all of it
    rests on the first assumption."""

    at_s: float
    queues: tuple[QueuePlan, ...]
    quotas: tuple[QuotaPlan, ...]
    absent: tuple[Absent, ...] = ()
    assumed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    asked: Question = field(default_factory=Question)
    events: int = 0
    unheard: bool = False

    @property
    def first_out(self) -> QuotaPlan | None:
        """The quota that runs out first."""
        return min(
            (one for one in self.quotas if one.out_at_s is not None), key=lambda one: one.out_at_s or 0.0, default=None
        )


@dataclass(frozen=True, slots=True)
class _Ahead:
    """Of the simulation what all queues share. done: tasks by (host, consumer)."""

    at_s: float
    growing: frozenset[str]
    done: Mapping[tuple[str, str], int]


def plan(found: Found, inventory: Inventory, asked: Question) -> Plan:
    """The fleet that was found, ahead in time, with what is asked for changed."""
    picture = picture_of(found, inventory)
    workers = staff(found, picture, inventory, asked)
    rows = {row.queue: row for row in picture.status.queues if row.work}
    waiting = [_waiting(found, name, rows[name].in_per_s, workers) for name in rows]
    takers = _takers(workers.crews)
    waiting += [Waiting(name, 0) for name in takers if name not in rows]
    growing = {one.queue for one in waiting if one.in_per_s and one.in_per_s >= _most_per_s(takers[one.queue])}
    forecast = simulate(
        workers.crews,
        waiting,
        until_ns=round(HORIZON_S * NS_PER_S),
        hold_after_ns=round(inventory.worker.hold_after_s * NS_PER_S),
        unawaited=growing | {name for name, row in rows.items() if row.ready is None},
        least_ns=_shown_ns(workers.crews) if growing else 0,
    )
    ends = {one.queue: one for one in forecast.queues}
    done: Counter[tuple[str, str]] = Counter()
    for one in forecast.takers:
        done[(one.host, one.consumer)] += one.tasks
    ahead = _Ahead(found.at_s, frozenset(growing), done)
    return Plan(
        at_s=found.at_s,
        queues=tuple(
            _queue(row, found.depths.get(name, Depth(None)), ends[name], workers, takers[name], ahead)
            for name, row in rows.items()
        ),
        quotas=tuple(_quotas(found, workers, forecast, picture.status.quotas, asked)),
        absent=workers.absent,
        assumed=(*workers.assumed, *_unknown_inflow(rows), *_delayed(found)),
        notes=found.notes,
        asked=asked,
        events=forecast.events,
        unheard=workers.unheard,
    )


def _waiting(found: Found, name: str, in_per_s: float | None, workers: Staff) -> Waiting:
    depth = found.depths.get(name, Depth(None))
    at_s = found.at_s if depth.at_s is None else depth.at_s
    tasks = (depth.ready or 0) + workers.held_tasks.get(name, 0)
    return Waiting(name, tasks, in_per_s or 0.0, round((at_s - found.at_s) * NS_PER_S))


def _takers(crews: Iterable[Crew]) -> Mapping[str, list[tuple[Crew, Taker]]]:
    """Who takes from each queue."""
    found: dict[str, list[tuple[Crew, Taker]]] = defaultdict(list)
    for crew in crews:
        for taker in crew.takers:
            for queue in taker.queues:
                found[queue].append((crew, taker))
    return found


def _most_per_s(takers: Iterable[tuple[Crew, Taker]]) -> float:
    """Tasks a second that these can do for ever, if they did nothing else."""
    return sum(_lasting_per_s(crew, taker) for crew, taker in takers)


def _lasting_per_s(crew: Crew, taker: Taker) -> float:
    rates = [
        part.limit.units * NS_PER_S / part.limit.kept_ns / units
        for one in crew.quotas
        if (units := taker.uses.get(one.quota, taker.cost.get(one.quota)))
        for part in one.limits
    ]
    return min([taker.rate_per_s, *rates])


def _shown_ns(crews: Iterable[Crew]) -> int:
    """Where no queue says when it is over: long enough to see quotas run out and return."""
    periods = [part.limit.kept_ns for crew in crews for one in crew.quotas for part in one.limits]
    return WINDOWS_SHOWN * max(periods, default=0)


def _queue(
    row: QueueRow, depth: Depth, end: Emptied, workers: Staff, takers: Sequence[tuple[Crew, Taker]], world: _Ahead
) -> QueuePlan:
    name = row.queue
    running = sum(taker.running for _, taker in takers if next(iter(taker.queues)) == name)
    by_host: dict[str, int] = {}
    for host, consumer in dict.fromkeys((crew.host, taker.name) for crew, taker in takers):
        by_host[host] = by_host.get(host, 0) + world.done[(host, consumer)]
    never, words = None, ""
    if depth.ready is None:
        never, words = Never.UNKNOWN, f"it is not known how many tasks wait: {depth.why or 'nobody said'}"
    elif name in world.growing:
        most = _most_per_s(takers)
        never, words = Never.GROWS, f"{row.in_per_s or 0.0:.1f} a second come in, {most:.1f} can be done"
    elif end.empty_ns is None and takers:
        never, words = Never.BEYOND, f"it takes longer than {span(HORIZON_S)}, or more steps than are computed"
    elif end.empty_ns is None and (depth.ready or row.in_per_s):
        never, words = _nobody(name, workers)
    at_s = max(0, end.empty_ns or 0) / NS_PER_S
    return QueuePlan(
        queue=name,
        tasks=depth.ready,
        in_workers=workers.held_tasks.get(name, 0) + running,
        in_per_s=row.in_per_s,
        empty_at_s=None if never else world.at_s + at_s,
        never=never,
        words=words,
        by_host=tuple(by_host.items()),
    )


def _nobody(name: str, workers: Staff) -> tuple[Never, str]:
    """Why nobody takes from a queue."""
    absent = [one for one in workers.absent if name in one.queues]
    found = {_OF_LACK[one.lack] for one in absent}
    reason = next((one for one in _FIRST if one in found), Never.NOBODY)
    words = [f"{one.host}/{one.consumer} {one.words}" for one in absent]
    return reason, _listed(words, "; ") or "no host of the inventory consumes it"


def _listed(words: Sequence[str], between: str = ", ") -> str:
    more = f" and {len(words) - MAX_NAMED} more" if len(words) > MAX_NAMED else ""
    return between.join(words[:MAX_NAMED]) + more


def _quotas(
    found: Found, workers: Staff, forecast: Forecast, rows: Sequence[QuotaRow], asked: Question
) -> Iterator[QuotaPlan]:
    burnt = {(one.host, one.quota): one for one in forecast.quotas}
    known = {(row.host, row.quota): row for row in rows}
    for crew in workers.crews:
        for one in crew.quotas:
            key = (crew.host, one.quota)
            row, burn = known.get(key), burnt[key]
            limits = [part.limit for part in one.limits if part.limit.window is not Window.PACED]
            is_asked = key in asked.limits or row is None
            used_units, limit_units = (row.used_units, row.limit_units) if row is not None else (None, None)
            if is_asked:  # as if it held: of this limit, and not of the one that does
                used_units, limit_units = used_of(one, running_units(crew, one.quota))
            yield QuotaPlan(
                host=crew.host,
                quota=one.quota,
                rates=tuple(str(Rate(limit.units, limit.period_ns)) for limit in limits),
                used_units=used_units,
                limit_units=limit_units,
                out_at_s=_wall_s(found, burn.out_ns),
                returns_at_s=_wall_s(found, burn.returns_ns),
                units=burn.units,
                hour_units=burn.hour_units,
                asked=is_asked,
            )


def _wall_s(found: Found, at_ns: int | None) -> float | None:
    return None if at_ns is None else found.at_s + at_ns / NS_PER_S


def _unknown_inflow(rows: Mapping[str, QueueRow]) -> Iterator[str]:
    names = [name for name, row in rows.items() if row.in_per_s is None]
    if names:
        yield f"nobody says how much comes in: nothing is taken to come into {_listed(names)}"


def _delayed(found: Found) -> Iterator[str]:
    later = sum(depth.ready or 0 for name, depth in found.depths.items() if name.startswith("qctl.retry."))
    if later:
        yield f"{later} tasks wait to be tried again later: they are not counted"


def document(found: Plan) -> dict[str, Any]:
    """The whole as JSON; every item says its `kind`."""
    first = found.first_out
    return {
        "v": 1,
        "at": iso(found.at_s),
        "what_if": found.asked.item(),
        "queues": [_queue_item(one, found.at_s) for one in found.queues],
        "quotas": [_quota_item(one) for one in found.quotas],
        "first_out": first and {"host": first.host, "quota": first.quota, "at": iso(first.out_at_s)},
        "absent": [
            {"host": one.host, "consumer": one.consumer, "queues": [*one.queues], "why": one.lack, "words": one.words}
            for one in found.absent
        ],
        "assumed": list(found.assumed),
        "notes": list(found.notes),
        "horizon_s": HORIZON_S,
    }


def _queue_item(one: QueuePlan, at_s: float) -> dict[str, Any]:
    return {
        "kind": "queue",
        "queue": one.queue,
        "ready": one.tasks,
        "in_workers": one.in_workers,
        "in_per_s": one.in_per_s,
        "empty_at": iso(one.empty_at_s),
        "empty_in_s": None if one.empty_at_s is None else round(one.empty_at_s - at_s, 3),
        "never": one.never and one.never.value,
        "why": one.words or None,
        "tasks_by_host": dict(one.by_host),
    }


def _quota_item(one: QuotaPlan) -> dict[str, Any]:
    return {
        "kind": "quota",
        "host": one.host,
        "quota": one.quota,
        "limits": list(one.rates),
        "asked": one.asked,
        "used_units": one.used_units,
        "limit_units": one.limit_units,
        "out_at": iso(one.out_at_s),
        "returns_at": iso(one.returns_at_s),
        "units": one.units,
        "first_hour_units": one.hour_units,
    }
