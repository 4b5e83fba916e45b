"""The values that a process's units in memory are made of: pools, prices, grants, and those who wait.

A pool is changed by the till alone, under its lock; a grant belongs to its task, and is changed by the till as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from qctl.quota.admission import Hold

#: Units of one quota, by pool: what a task costs or has reserved.
Lines = tuple[tuple["Pool", int], ...]


class Pool:
    """One quota in one process."""

    __slots__ = (
        "doubtful",
        "earmarks",
        "epoch",
        "grain_ns",
        "left",
        "low",
        "pending",
        "quota",
        "restate",
        "running",
        "said_lasts",
        "said_units",
        "served_ns",
        "set_aside",
        "slot",
        "taken",
        "thirsty",
        "urgent",
        "view",
    )

    def __init__(self, quota: str, slot: int, view: memoryview, grain_ns: int) -> None:
        self.quota = quota
        #: Where the shared page has the quota's epoch; leases of another epoch are void.
        self.slot, self.view, self.epoch = slot, view, -1
        self.grain_ns = grain_ns
        #: Units to spend, of which some are set aside for those who wait and for earmarks.
        self.left = self.set_aside = 0
        self.running = 0
        #: At or below this many left, lease more.
        self.low = -1
        self.thirsty = False
        #: Units ever taken: who did not take lately is idle.
        self.taken = 0
        self.pending: dict[int, int] = {}
        self.doubtful: dict[int, int] = {}
        #: Units leased for a consumer that is coming back.
        self.earmarks: dict[str, int] = {}
        #: The ledger has more as leased than is here: it should hear so soon.
        self.restate = False
        #: The least that the API said since `Till.listen` that remains; less than none: it refused.
        self.said_units: int | None = None
        #: That holds for what is being leased for a task as well: nothing returns by the passing of time.
        self.said_lasts = False
        #: The latest instant at which a call was sent, or a task begun, that was answered and not refused.
        self.served_ns = 0
        #: Somebody waits for what settlements bring: the ledger should hear of each at once.
        self.urgent = False

    @property
    def valid(self) -> bool:
        """Whether what is left may be spent: no limit was changed and no block set since it was leased."""
        return bool(self.view[self.slot] == self.epoch)


class Tally:
    """Tasks admitted of one consumer."""

    __slots__ = ("tasks",)

    def __init__(self) -> None:
        self.tasks = 0


class Priced:
    """What a task of `consumer` costs, made ready for taking. Reusable; made by Leases.register and Leases.price."""

    __slots__ = ("consumer", "lines", "tally")

    def __init__(self, consumer: str, lines: Lines, tally: Tally) -> None:
        self.consumer = consumer
        self.lines = lines
        self.tally = tally

    @property
    def cost(self) -> dict[str, int]:
        """Units by quota."""
        return {pool.quota: units for pool, units in self.lines}


class Grant:
    """Units reserved for one task, until it is settled. Belongs to that task."""

    __slots__ = ("begun_ns", "booked", "era", "lines", "open", "priced")

    def __init__(self, priced: Priced, era: int, begun_ns: int = 0) -> None:
        self.priced = priced
        self.lines = priced.lines
        #: Which limits it was reserved under: what comes back from older ones goes to the ledger, not to a next task.
        self.era = era
        self.open = True
        #: 0: paid from memory, so that nobody has asked whether the API serves again.
        self.begun_ns = begun_ns
        #: Quotas of which answered calls were booked.
        self.booked: tuple[str, ...] = ()

    def reserved(self, quota: str) -> int:
        """Units of `quota` that the task may still spend."""
        return sum(units for pool, units in self.lines if pool.quota == quota)


@dataclass(slots=True, eq=False)
class Waiter:
    """Someone who could not be paid from memory. `grant`: a running task that needs more; it is never held."""

    priced: Priced
    done: Callable[[Grant | Hold], None]
    since_ns: int
    grant: Grant | None = None
    #: When to ask the ledger (again).
    try_ns: int = 0
    #: When the ledger last refused it; None: before, nobody knows.
    refused_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Statement:
    """What goes into an exchange: see ledger.Exchange."""

    held: Mapping[str, int]
    running: Mapping[str, int]
    settled: Mapping[str, Mapping[int, int]]
    doubtful: Mapping[str, Mapping[int, int]]


def added(lines: Lines, more: Lines) -> Lines:
    """Both together."""
    units = dict(lines)
    for pool, extra in more:
        units[pool] = units.get(pool, 0) + extra
    return tuple(units.items())


def merge(book: dict[int, int], units_at: Mapping[int, int]) -> None:
    """Put these into the book."""
    for instant_ns, units in units_at.items():
        book[instant_ns] = book.get(instant_ns, 0) + units
