"""What a worker process says of itself once a second: the values, and how they are written (`docs/telemetry.md`)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from qctl.broker.message import utc
from qctl.control.event import VERSION
from qctl.control.quota_reading import CostReading, QuotaReading, utc_or_none

#: A process's reading; one that would be larger leaves out consumers, and says how many. It also has to fit into the
#: pipe to the supervisor.
MAX_READING_BYTES = 48 << 10
#: More consumers than ever fit into one.
MAX_CONSUMERS = MAX_READING_BYTES // 300


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
    running: tasks; waiting: delivered and not started. rate_per_s: tasks acknowledged, over about ten seconds;
    put_off_per_s: those that failed or could not be paid, and come back later. run_s: how long a task runs, as a moving
    mean; None: none has.
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
    run_s: float | None = None
    put_off_per_s: float = 0.0


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
    costs: tuple[CostReading, ...] = ()
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
            "quotas": [one.to_json() for one in self.quotas],
            "costs": [one.to_json() for one in self.costs],
            "ledger": {"id": self.ledger_id, "fault": self.ledger_fault},
            "omitted": self.omitted,
        }

    def body(self) -> bytes:
        """As it travels."""
        return _encode(self.to_json())

    def fitting(self) -> Reading:
        """This reading, so that its body has at most MAX_READING_BYTES: if need be without what tasks cost, without
        when units return, then without some of its consumers."""
        found = _keeping(self, MAX_CONSUMERS)
        while (size_bytes := len(found.body())) > MAX_READING_BYTES:
            count = len(found.consumers)
            if found.costs:
                found = replace(found, costs=())
            elif any(part.returns for one in found.quotas for part in one.limits):
                found = replace(found, quotas=tuple(one.without_returns() for one in found.quotas))
            elif count:
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


# To JSON


def _encode(fields: Mapping[str, Any]) -> bytes:
    return json.dumps(fields, separators=(",", ":"), allow_nan=False).encode()


def _consumer_to_json(one: ConsumerReading) -> dict[str, Any]:
    counts = one.counts
    return {
        "name": one.name,
        "queue": one.queue,
        "state": one.state,
        "why": one.why,
        "since": utc_or_none(one.since_s),
        "by": one.by,
        "as": one.claimed_by,
        "reason": one.reason,
        "until": utc_or_none(one.until_s),
        "holds": [{"cause": hold.cause, "words": hold.words, "until": utc_or_none(hold.until_s)} for hold in one.holds],
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
        "put_off_per_s": round(one.put_off_per_s, 3),
        "run_s": None if one.run_s is None else round(one.run_s, 6),
    }
