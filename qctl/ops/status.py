"""What a fleet looks like at one moment, as values: hosts, consumers, quotas, queues, and how old each of them is.

`picture` makes them from what was heard, `why` puts them into words. None is unknown, everywhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from qctl.ops.when import iso


class State(StrEnum):
    """A consumer's state, the one that shows first first; a host's is MIXED where its consumers do not agree."""

    DOWN = "down"
    DRAINING = "draining"
    PAUSED = "paused"
    HELD = "held"
    CONSUMING = "consuming"
    UNKNOWN = "unknown"
    MIXED = "mixed"


#: Where several hold, the first shows. Of one that is silent nobody knows whether tasks run in it, whatever others say.
PRECEDENCE = (State.DOWN, State.DRAINING, State.UNKNOWN, State.PAUSED, State.HELD, State.CONSUMING)
#: In this order states are counted in words.
COUNTED = (State.PAUSED, State.HELD, State.DRAINING, State.DOWN, State.UNKNOWN, State.CONSUMING)


#: Why nothing is known while the broker takes no publishes: a silence then says nothing.
BLOCKED = "broker blocked"


class Source(StrEnum):
    """Where a row's numbers come from: heard just now, read in the log of readings, or the management API's."""

    LIVE = "live"
    LOG = "log"
    BROKER = "broker"


@dataclass(frozen=True, slots=True)
class Seen:
    """Where from, and the instant at which it was true."""

    source: Source
    at_s: float


@dataclass(frozen=True, slots=True)
class Order:
    """Something that an operator commanded and that holds. by: verified by the broker; claimed_by: what they say."""

    id: str
    target: str
    by: str
    claimed_by: str | None = None
    at_s: float | None = None
    reason: str | None = None
    until_s: float | None = None
    #: Of an override: the limits that hold instead of the inventory's.
    rates: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class HeldBy:
    """A cause of a hold, in a word and in words; until_s: when it may be over."""

    cause: str
    words: str
    until_s: float | None = None


@dataclass(frozen=True, slots=True)
class HostRow:
    """A server. listed: it is in the inventory. processes: how many its supervisor runs, heard: how many spoke."""

    host: str
    state: State
    counts: Mapping[State, int] = field(default_factory=dict)
    listed: bool = True
    since_s: float | None = None
    why: str = ""
    machine: str | None = None
    processes: int | None = None
    heard: int = 0
    seen: Seen | None = None

    @property
    def words(self) -> str:
        """`consuming`, `unknown (broker blocked)`, or `1 held 2 consuming` where its consumers do not agree."""
        if self.state is not State.MIXED:
            return in_words(self.state, self.why)
        return " ".join(f"{self.counts[state]} {state}" for state in COUNTED if self.counts.get(state))


@dataclass(frozen=True, slots=True)
class ConsumerRow:
    """A consumer on a host, its processes taken together. counts: how many processes are in which state; a silent one
    is unknown, and then so are the numbers.
    """

    host: str
    consumer: str
    queue: str
    state: State
    why: str = ""
    since_s: float | None = None
    counts: Mapping[State, int] = field(default_factory=dict)
    pauses: tuple[Order, ...] = ()
    holds: tuple[HeldBy, ...] = ()
    costs: Mapping[str, int] = field(default_factory=dict)
    running: int | None = None
    waiting: int | None = None
    concurrency: int | None = None
    rate_per_s: float | None = None
    settled: Mapping[str, int] | None = None
    seen: Seen | None = None

    @property
    def address(self) -> str:
        """`HOST/CONSUMER`."""
        return f"{self.host}/{self.consumer}"


@dataclass(frozen=True, slots=True)
class QuotaRow:
    """A quota on a host. rates: the limits that hold; used, limit and period: of the one that is nearest to its end.

    spend_per_s is an estimate: what consumers finish, at what their tasks are expected to cost. estimated: so are the
    units used, by the broker's own counters, since nothing is heard of the host's ledger.
    """

    host: str
    quota: str
    rates: tuple[str, ...]
    inventory_rates: tuple[str, ...] = ()
    used_units: int | None = None
    limit_units: int | None = None
    period_s: float | None = None
    spend_per_s: float | None = None
    exhausted_at_s: float | None = None
    returns_at_s: float | None = None
    blocked_until_s: float | None = None
    override: Order | None = None
    fault: str = ""
    estimated: bool = False
    seen: Seen | None = None

    @property
    def address(self) -> str:
        """`HOST/QUOTA`."""
        return f"{self.host}/{self.quota}"

    @property
    def dry(self) -> bool:
        """Nothing is left of it."""
        return self.used_units is not None and self.limit_units is not None and self.used_units >= self.limit_units


@dataclass(frozen=True, slots=True)
class QueueRow:
    """A queue. ready: tasks that nobody has; out_estimated: summed up from what consumers finish.

    in_per_s None: nobody says how much is added, and empty_at_s then holds if nothing is.
    """

    queue: str
    work: bool = True
    ready: int | None = None
    unacked: int | None = None
    in_per_s: float | None = None
    out_per_s: float | None = None
    out_estimated: bool = False
    empty_at_s: float | None = None
    consumers: tuple[str, ...] = ()
    why: str = ""
    seen: Seen | None = None


@dataclass(frozen=True, slots=True)
class Status:
    """The fleet at `at_s`. blocked: the broker reports an alarm. notes: what could not be learnt, and why."""

    at_s: float
    blocked: bool
    hosts: tuple[HostRow, ...] = ()
    consumers: tuple[ConsumerRow, ...] = ()
    quotas: tuple[QuotaRow, ...] = ()
    queues: tuple[QueueRow, ...] = ()
    notes: tuple[str, ...] = ()

    def host(self, name: str) -> HostRow | None:
        """The host of that name."""
        return next((row for row in self.hosts if row.host == name), None)

    def quota(self, host: str, name: str) -> QuotaRow | None:
        """The quota of that name on a host."""
        return next((row for row in self.quotas if (row.host, row.quota) == (host, name)), None)

    def queue(self, name: str) -> QueueRow | None:
        """The queue of that name."""
        return next((row for row in self.queues if row.queue == name), None)

    def of_queue(self, name: str) -> tuple[ConsumerRow, ...]:
        """The consumers of all hosts that take from a queue."""
        return tuple(row for row in self.consumers if row.queue == name)


def in_words(state: State, why: str) -> str:
    """A state as a table shows it."""
    return f"{state} ({why})" if state is State.UNKNOWN and why == BLOCKED else str(state)


def overall(states: Iterable[State]) -> State:
    """A consumer's state from those of its processes: where several hold, the first shows."""
    found = set(states)
    return next((state for state in PRECEDENCE if state in found), State.UNKNOWN)


def agreed(states: Iterable[State]) -> State:
    """A host's state from those of its consumers: theirs when they agree."""
    found = set(states)
    return found.pop() if len(found) == 1 else State.MIXED if found else State.UNKNOWN


def alike(orders: Iterable[Order]) -> tuple[tuple[Order, int], ...]:
    """Each order once, as it was given first, with how often the same was given."""
    first: dict[Order, Order] = {}
    times: Counter[Order] = Counter()
    for one in orders:
        key = replace(one, id="", at_s=None)
        first.setdefault(key, one)
        times[key] += 1
    return tuple((one, times[key]) for key, one in first.items())


def often(times: int) -> str:
    """How often something was given, behind its words; "" for once."""
    return f" ({times} times)" if times > 1 else ""


def document(status: Status) -> dict[str, Any]:
    """The whole as JSON; every item says its `kind`."""
    at_s = status.at_s
    return {
        "v": 1,
        "at": iso(at_s),
        "blocked": status.blocked,
        "notes": list(status.notes),
        "hosts": [host_item(row, at_s) for row in status.hosts],
        "consumers": [consumer_item(row, at_s) for row in status.consumers],
        "quotas": [quota_item(row, at_s) for row in status.quotas],
        "queues": [queue_item(row) for row in status.queues],
    }


def host_item(row: HostRow, at_s: float) -> dict[str, Any]:
    """A host as JSON."""
    return {
        "kind": "host",
        "host": row.host,
        "listed": row.listed,
        "state": row.state.value,
        "counts": {state.value: number for state, number in row.counts.items()},
        "since": iso(row.since_s),
        "why": row.why or None,
        "machine": row.machine,
        "processes": row.processes,
        "processes_heard": row.heard,
        **_seen(row.seen, at_s),
    }


def consumer_item(row: ConsumerRow, at_s: float) -> dict[str, Any]:
    """A consumer as JSON."""
    return {
        "kind": "consumer",
        "host": row.host,
        "consumer": row.consumer,
        "queue": row.queue,
        "state": row.state.value,
        "counts": {state.value: number for state, number in row.counts.items()},
        "why": row.why or None,
        "since": iso(row.since_s),
        "pauses": [_order(pause) for pause in row.pauses],
        "holds": [{"cause": one.cause, "words": one.words, "until": iso(one.until_s)} for one in row.holds],
        "costs_units": dict(row.costs),
        "running": row.running,
        "waiting": row.waiting,
        "concurrency": row.concurrency,
        "rate_per_s": row.rate_per_s,
        "settled": dict(row.settled) if row.settled is not None else None,
        **_seen(row.seen, at_s),
    }


def quota_item(row: QuotaRow, at_s: float) -> dict[str, Any]:
    """A quota as JSON."""
    return {
        "kind": "quota",
        "host": row.host,
        "quota": row.quota,
        "limits": list(row.rates),
        "inventory_limits": list(row.inventory_rates),
        "used_units": row.used_units,
        "limit_units": row.limit_units,
        "period_s": row.period_s,
        "spend_per_s": row.spend_per_s,
        "exhausted_at": iso(row.exhausted_at_s),
        "returns_at": iso(row.returns_at_s),
        "blocked_until": iso(row.blocked_until_s),
        "override": _order(row.override) if row.override else None,
        "fault": row.fault or None,
        **_seen(row.seen, at_s),
    }


def queue_item(row: QueueRow) -> dict[str, Any]:
    """A queue as JSON."""
    return {
        "kind": "queue",
        "queue": row.queue,
        "work": row.work,
        "ready": row.ready,
        "unacked": row.unacked,
        "in_per_s": row.in_per_s,
        "out_per_s": row.out_per_s,
        "out_estimated": row.out_estimated,
        "empty_at": iso(row.empty_at_s),
        "consumers": list(row.consumers),
        "why": row.why or None,
    }


def _seen(seen: Seen | None, at_s: float) -> dict[str, Any]:
    return {"source": seen and seen.source.value, "age_s": seen and round(max(0.0, at_s - seen.at_s), 3)}


def _order(order: Order) -> dict[str, Any]:
    found = {
        "id": order.id,
        "target": order.target,
        "by": order.by,
        "as": order.claimed_by,
        "at": iso(order.at_s),
        "reason": order.reason,
        "until": iso(order.until_s),
    }
    return {**found, "limits": list(order.rates)} if order.rates else found
