"""What a worker process says of itself once a second: the values, and how they are written (`docs/telemetry.md`)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from qctl.broker.message import utc
from qctl.control.event import VERSION

#: A process's reading; one that would be larger leaves out consumers, and says how many. It also has to fit into the
#: pipe to the supervisor.
MAX_READING_BYTES = 48 << 10
#: More consumers than ever fit into one.
MAX_CONSUMERS = MAX_READING_BYTES // 300
#: Readings of one host that are this much older than its newest tell nothing about the same moment. In the log they
#: may be five seconds apart, since that often a process reports to its supervisor.
SAME_MOMENT_S = 7.0


@dataclass(frozen=True, slots=True)
class Hold:
    """One cause for which a consumer is held. words: the cause and what of, for people; until_s: None is not known."""

    cause: str
    words: str
    until_s: float | None = None


@dataclass(frozen=True, slots=True)
class Tag:
    """One subscription: its consumer tag, its queue and its own state."""

    tag: str
    queue: str
    state: str


@dataclass(frozen=True, slots=True)
class Counts:
    """Tasks by how they ended, since the process started."""

    acked: int = 0
    retried: int = 0
    deferred: int = 0
    dead: int = 0
    given_back: int = 0


@dataclass(frozen=True, slots=True)
class ConsumerReading:
    """A consumer of one process.

    why: of its state, "" where there is nothing to say. by, claimed_by, reason, until_s: of the pause, else None.
    running: tasks; waiting: delivered and not started. rate_per_s: tasks acknowledged, over about ten seconds.
    """

    name: str
    queue: str
    state: str
    why: str = ""
    since_s: float | None = None
    by: str | None = None
    claimed_by: str | None = None
    reason: str | None = None
    until_s: float | None = None
    holds: tuple[Hold, ...] = ()
    tags: tuple[Tag, ...] = ()
    running: int = 0
    waiting: int = 0
    concurrency: int = 0
    prefetch: int = 0
    counts: Counts = Counts()
    rate_per_s: float = 0.0


@dataclass(frozen=True, slots=True)
class LimitReading:
    """One limit of a quota, and the units that count against it."""

    units: int
    period_s: float
    used: int


@dataclass(frozen=True, slots=True)
class OverrideReading:
    """A `quota set` that holds at present. rates: as the operator wrote them."""

    rates: tuple[str, ...]
    by: str | None = None
    reason: str | None = None
    until_s: float | None = None
    at_s: float | None = None


@dataclass(frozen=True, slots=True)
class QuotaReading:
    """A quota of the host, seen by one process; `used`, `limit`, `period_s` are of the limit that binds first.

    used: units that count against the limit: spent in the window, reserved by running tasks, or in the hands of other
    processes; at most `limit`. leased: units in this process's own hands and not used: not in `used`. over: what
    counts beyond the limit, which a lowered limit leaves behind. returns_at_s: while it is dry when a unit may be used
    again, else when the first used units return; None: nothing is used, or it depends on what is leased.
    """

    name: str
    used: int
    limit: int
    period_s: float
    over: int = 0
    leased: int = 0
    returns_at_s: float | None = None
    blocked_until_s: float | None = None
    limits: tuple[LimitReading, ...] = ()
    override: OverrideReading | None = None

    @property
    def dry(self) -> bool:
        """Nothing may be spent now."""
        return self.used >= self.limit or self.blocked_until_s is not None


@dataclass(frozen=True, slots=True)
class Reading:
    """One process of a host at `at_s`, the wall clock of its machine. omitted: consumers that did not fit in."""

    at_s: float
    host: str
    index: int
    pid: int
    machine: str
    started_at_s: float
    heartbeat_s: float
    consumers: tuple[ConsumerReading, ...] = ()
    quotas: tuple[QuotaReading, ...] = ()
    ledger_id: str = ""
    ledger_fault: str | None = None
    omitted: int = 0

    def to_json(self) -> dict[str, Any]:
        """As fields of JSON."""
        return {
            "v": VERSION,
            "at": utc(self.at_s),
            "host": self.host,
            "index": self.index,
            "pid": self.pid,
            "machine": self.machine,
            "started_at": utc(self.started_at_s),
            "heartbeat_s": self.heartbeat_s,
            "consumers": [_consumer_to_json(one) for one in self.consumers],
            "quotas": [_quota_to_json(one) for one in self.quotas],
            "ledger": {"id": self.ledger_id, "fault": self.ledger_fault},
            "omitted": self.omitted,
        }

    def body(self) -> bytes:
        """As it travels."""
        return _encode(self.to_json())

    def fitting(self) -> Reading:
        """This reading, if need be without some of its consumers, so that its body has at most MAX_READING_BYTES."""
        found = _keeping(self, MAX_CONSUMERS)
        while (size_bytes := len(found.body())) > MAX_READING_BYTES:
            count = len(found.consumers)
            if count:
                found = _keeping(found, min(count - 1, count * MAX_READING_BYTES // size_bytes))
            else:
                found = replace(found, quotas=found.quotas[: len(found.quotas) // 2])
        return found


def _keeping(reading: Reading, count: int) -> Reading:
    """With no more consumers than that; those that consume go first."""
    omitted = len(reading.consumers) - count
    if omitted <= 0:
        return reading
    ordered = sorted(reading.consumers, key=lambda one: one.state == "consuming")
    return replace(reading, consumers=tuple(ordered[:count]), omitted=reading.omitted + omitted)


@dataclass(frozen=True, slots=True)
class Goodbye:
    """A process, or with index None a whole host, has ended in order. user: who says so, verified ("" before)."""

    at_s: float
    host: str
    index: int | None = None
    user: str = ""

    def body(self) -> bytes:
        """As it travels."""
        return _encode({"v": VERSION, "at": utc(self.at_s), "host": self.host, "goodbye": True, "index": self.index})


@dataclass(frozen=True, slots=True)
class HostReading:
    """An entry of the telemetry log: a host and the last reading of each of its processes. user: as in a Goodbye."""

    at_s: float
    host: str
    machine: str
    pid: int
    processes: tuple[Reading, ...] = ()
    user: str = ""

    def body(self) -> bytes:
        """As it travels."""
        fields = {"v": VERSION, "at": utc(self.at_s), "host": self.host, "machine": self.machine, "pid": self.pid}
        return _encode({**fields, "processes": [one.to_json() for one in self.processes]})


@dataclass(frozen=True, slots=True)
class Mark:
    """An entry by which somebody who reads the telemetry log knows its end. It means nothing to others."""

    nonce: str

    def body(self) -> bytes:
        """As it travels."""
        return _encode({"v": VERSION, "mark": self.nonce})


def host_quotas(readings: Iterable[Reading]) -> tuple[QuotaReading, ...]:
    """The quotas of one host, from the readings of its processes; in the words of the newest.

    What each process has leased and not used is taken out of `used`, and is in `leased`. Readings that are
    SAME_MOMENT_S older than the newest do not count: the process may be gone, its lease with it. For a second it may be
    off by a lease or two, which are at most 2 % of the limit each.
    """
    ordered = sorted(readings, key=lambda reading: reading.at_s, reverse=True)
    fresh = [reading for reading in ordered if reading.at_s > ordered[0].at_s - SAME_MOMENT_S]
    found: dict[str, QuotaReading] = {}
    leased: dict[str, int] = {}
    for reading in fresh:
        for quota in reading.quotas:
            found.setdefault(quota.name, quota)
            leased[quota.name] = leased.get(quota.name, 0) + quota.leased
    return tuple(_less(quota, leased[name] - quota.leased) for name, quota in found.items())


def _less(quota: QuotaReading, units: int) -> QuotaReading:
    """With `units` that were taken for used and are in the hands of other processes."""
    if not units:
        return quota
    counted = max(0, quota.used + quota.over - units)
    limits = tuple(replace(one, used=max(0, one.used - units)) for one in quota.limits)
    return replace(
        quota,
        used=min(counted, quota.limit),
        over=max(0, counted - quota.limit),
        leased=quota.leased + units,
        limits=limits,
    )


# To JSON


def _encode(fields: Mapping[str, Any]) -> bytes:
    return json.dumps(fields, separators=(",", ":"), allow_nan=False).encode()


def _utc(instant_s: float | None) -> str | None:
    return None if instant_s is None else utc(instant_s)


def _consumer_to_json(one: ConsumerReading) -> dict[str, Any]:
    counts = one.counts
    return {
        "name": one.name,
        "queue": one.queue,
        "state": one.state,
        "why": one.why,
        "since": _utc(one.since_s),
        "by": one.by,
        "as": one.claimed_by,
        "reason": one.reason,
        "until": _utc(one.until_s),
        "holds": [{"cause": hold.cause, "words": hold.words, "until": _utc(hold.until_s)} for hold in one.holds],
        "tags": [{"tag": tag.tag, "queue": tag.queue, "state": tag.state} for tag in one.tags],
        "running": one.running,
        "waiting": one.waiting,
        "concurrency": one.concurrency,
        "prefetch": one.prefetch,
        "counts": {
            "acked": counts.acked,
            "retried": counts.retried,
            "deferred": counts.deferred,
            "dead": counts.dead,
            "given_back": counts.given_back,
        },
        "rate_per_s": round(one.rate_per_s, 3),
    }


def _quota_to_json(one: QuotaReading) -> dict[str, Any]:
    override = one.override
    return {
        "name": one.name,
        "used": one.used,
        "limit": one.limit,
        "period_s": one.period_s,
        "over": one.over,
        "leased": one.leased,
        "returns_at": _utc(one.returns_at_s),
        "blocked_until": _utc(one.blocked_until_s),
        "limits": [{"units": part.units, "period_s": part.period_s, "used": part.used} for part in one.limits],
        "override": override
        and {
            "rates": list(override.rates),
            "by": override.by,
            "reason": override.reason,
            "until": _utc(override.until_s),
            "at": _utc(override.at_s),
        },
    }
