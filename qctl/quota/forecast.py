"""What a simulation is given and what it says: hosts, their consumers, queues; and what will be of them. Values.

Instants are nanoseconds of whatever clock the caller reads; only the distances between them matter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from qctl.quota.page import Stock
from qctl.quota.policy import NS_PER_S


@dataclass(frozen=True, slots=True)
class Waiting:
    """A queue: so many `tasks` waited at `at_ns`, in it or in workers that had not started them; more come at
    `in_per_s`. What is started before `at_ns` is gone from `tasks` already.
    """

    queue: str
    tasks: int
    in_per_s: float = 0.0
    at_ns: int = 0


@dataclass(frozen=True, slots=True)
class Taker:
    """A consumer in one process of a host.

    queues: from which it takes, each with the instant from which on it may: the end of a pause. cost: units by quota
    that a task must be able to have; uses: what it turns out to use on the average, at most that, where it is less.
    run_ns: how long a task keeps its slot. prefetch: deliveries that it has at most, running ones included. running:
    tasks that run at the start, each halfway through. index: of the process.
    """

    name: str
    queues: Mapping[str, int]
    cost: Mapping[str, int]
    slots: int
    run_ns: int
    prefetch: int = 0
    running: int = 0
    index: int = 0
    uses: Mapping[str, float] = field(default_factory=dict)

    @property
    def place(self) -> str:
        """Who it is on its host: in line for quota each process stands for itself."""
        return f"{self.name}/{self.index}"

    @property
    def rate_per_s(self) -> float:
        """Tasks a second with all slots at work."""
        return self.slots * NS_PER_S / self.run_ns


@dataclass(frozen=True, slots=True)
class Crew:
    """A host, from `at_ns` on: its consumers, and its quotas as its ledger told of them then."""

    host: str
    takers: tuple[Taker, ...]
    quotas: tuple[Stock, ...] = ()
    at_ns: int = 0


@dataclass(frozen=True, slots=True)
class Emptied:
    """A queue. empty_ns: when the last of its tasks was done, None: not until the end; left_tasks: not started then."""

    queue: str
    empty_ns: int | None
    left_tasks: int


@dataclass(frozen=True, slots=True)
class Taken:
    """A consumer in a process: tasks it has done, in the first hour and in all; when the last ended, None for none."""

    host: str
    consumer: str
    index: int
    tasks: int
    hour_tasks: int
    last_ns: int | None


@dataclass(frozen=True, slots=True)
class Burnt:
    """A quota of a host: units spent in the first hour and in all. out_ns: when it first held somebody; returns_ns:
    when a task could be paid again after that.
    """

    host: str
    quota: str
    units: int
    hour_units: int
    out_ns: int | None
    returns_ns: int | None


@dataclass(frozen=True, slots=True)
class Forecast:
    """What happens until `end_ns`: every queue is empty then, or nothing can happen any more, or a bound is reached:
    `bounded`, of time or of events.
    """

    end_ns: int
    queues: tuple[Emptied, ...]
    takers: tuple[Taken, ...]
    quotas: tuple[Burnt, ...]
    events: int
    bounded: bool
