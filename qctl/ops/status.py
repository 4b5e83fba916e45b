"""What a fleet looks like at one moment, as values: hosts, consumers, quotas, queues, and how old each of them is.

`picture` makes them from what was heard, `why` puts them into words. None is unknown, everywhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from qctl.control.quota_reading import SLIDING, CostReading, ForeignReading


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
    is unknown, and then so are the numbers. rate_per_s: tasks acknowledged; put_off_per_s: that come back later.
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
    put_off_per_s: float = 0.0

    @property
    def address(self) -> str:
        """`HOST/CONSUMER`."""
        return f"{self.host}/{self.consumer}"


@dataclass(frozen=True, slots=True)
class QuotaRow:
    """A quota on a host. rates: the limits that hold; used, limit and period: of the one that is nearest to its end.

    spend_per_s: settled a second lately; spend_estimated: nobody says that, so it is what consumers finish, at what
    their tasks are expected to cost. exhausted_rate: the limit that is used up at exhausted_at_s, which may be another
    than that of used_units. held: a consumer waits for it, as what is left does not pay its task; held_until_s: about
    until when. estimated: so are the units used, by the broker's own counters, since nothing is heard of the host's
    ledger. window: how its limits move; resets_at_s: when a fixed one begins anew; burst_units: of a paced one.
    foreign: what somebody else has spent of it, which is not in used_units. costs: what tasks were seen to use of it.
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
    window: str = SLIDING
    resets_at_s: float | None = None
    burst_units: int = 1
    foreign: ForeignReading | None = None
    costs: tuple[CostReading, ...] = ()
    spend_estimated: bool = True
    exhausted_rate: str = ""
    held: bool = False
    held_until_s: float | None = None

    @property
    def address(self) -> str:
        """`HOST/QUOTA`."""
        return f"{self.host}/{self.quota}"

    @property
    def foreign_units(self) -> int:
        """What somebody else has spent, for certain, of the limit that is nearest to its end."""
        return self.foreign.units if self.foreign is not None and self.foreign.period_s == self.period_s else 0

    @property
    def dry(self) -> bool:
        """Nothing is left of it, or less than who waits for it needs."""
        return self.held or self.spent

    @property
    def spent(self) -> bool:
        """Nothing is left of it."""
        if self.used_units is None or self.limit_units is None:
            return False
        return self.used_units + self.foreign_units >= self.limit_units

    @property
    def back_at_s(self) -> float | None:
        """When there is something of it again, or enough for who waits; of one that is not gone, when units return."""
        return self.blocked_until_s or self.held_until_s or self.returns_at_s


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
