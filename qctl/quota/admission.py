"""Who may go on, who waits, who is held, and when a held consumer comes back. Pure decisions as values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum, StrEnum

from qctl.quota.policy import NS_PER_S, Window
from qctl.quota.window import LimitReading, Reading, free_at, free_units

#: A held consumer comes back for a run of at least this part of its limit, or of a second's work, whichever is less.
RUN_DIVISOR = 20
#: After this long it comes back for a single task: on a trickle, a twentieth of the limit may never be free at once.
SINGLE_AFTER_NS = NS_PER_S


class Cause(StrEnum):
    """Why a consumer is held."""

    QUOTA = "quota"
    BLOCKED = "blocked"
    LEDGER = "ledger"
    WITHDRAWN = "withdrawn"


@dataclass(frozen=True, slots=True)
class Pay:
    """It can be paid for now."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Try again at `until_ns`, or when something is given back before."""

    until_ns: int


@dataclass(frozen=True, slots=True)
class Hold:
    """Give back what is held and stop consuming. `until_ns`: when one task is expected to be payable; None: unknown."""

    quota: str | None
    cause: Cause
    until_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a consumer stands: consuming, or held and why."""

    held: Hold | None = None

    @property
    def consuming(self) -> bool:
        """Whether nothing in the ledger keeps it from consuming."""
        return self.held is None


class Return(Enum):
    """What a held consumer may come back for."""

    NOT_YET = 0
    TASK = 1
    RUN = 2


@dataclass(frozen=True, slots=True)
class Purse:
    """What one consumer of one process can pay from, for one quota.

    left_units: in the process's memory, not set aside for another. ahead_units: claimed by others before it.
    """

    reading: Reading
    left_units: int = 0
    ahead_units: int = 0

    def payable(self, now_ns: int) -> int:
        """Units that can be paid at `now_ns` if nothing that is out comes back."""
        return self.left_units + max(0, free_units(self.reading, now_ns) - self.ahead_units)

    def payable_at(self, units: int, now_ns: int) -> int | None:
        """When `units` can be paid; None when that depends on what is out."""
        if units <= self.left_units:
            return now_ns
        return free_at(self.reading, units - self.left_units + self.ahead_units, now_ns)

    def payable_if_returned(self, units: int, now_ns: int, by_ns: int) -> bool:
        """Whether `units` can be paid by `by_ns` if all comes back that is out: leases, and what tasks do not use.

        A window shorter than that time can be spent more than once in it, and a bucket runs out all the while.
        """
        if self.reading.blocked_until_ns > by_ns:
            return False
        most_units = min(
            part.limit.units - part.used(by_ns) - part.kept_off(by_ns, idle=True) + part.returns_by(now_ns, by_ns)
            for part in self.reading.limits
        )
        return most_units - self.ahead_units >= units


@dataclass(frozen=True, slots=True)
class Need:
    """`cost_units` for the next task, `backlog_units` (at least the cost) for all that the process holds."""

    quota: str
    cost_units: int
    backlog_units: int
    purse: Purse


def decide(needs: Sequence[Need], *, now_ns: int, deadline_ns: int) -> Pay | Wait | Hold:
    """Pay, wait or hold; `deadline_ns` is the first failed try + hold_after. The worst of the quotas decides:

    | the next task  | all that the process holds                          | then                                  |
    |----------------|-----------------------------------------------------|---------------------------------------|
    | is payable now | any                                                 | Pay                                   |
    | is not         | payable by the deadline, the deadline is ahead      | Wait until the task is payable        |
    | is not         | payable by then if all that is out comes back       | Wait until then, or until the deadline |
    | is not         | not even then, or the deadline is past              | Hold                                  |
    """
    worst: Pay | Wait | Hold = Pay()
    for need in needs:
        purse = need.purse
        if purse.payable(now_ns) >= need.cost_units:
            continue
        soon_ns = purse.payable_at(need.cost_units, now_ns)
        all_ns = purse.payable_at(need.backlog_units, now_ns)
        in_time = all_ns is not None and all_ns <= deadline_ns
        if now_ns < deadline_ns and (in_time or purse.payable_if_returned(need.backlog_units, now_ns, deadline_ns)):
            verdict: Wait | Hold = Wait(deadline_ns if soon_ns is None else min(soon_ns, deadline_ns))
        else:
            verdict = Hold(need.quota, _cause(purse.reading, now_ns), soon_ns)
        worst = _worse(worst, verdict)
    return worst


def may_return(needs: Sequence[Need], runs: Sequence[int], *, now_ns: int, held_since_ns: int) -> Return:
    """What a held consumer could come back for now; `runs` are the units of a sensible run in each quota.

    | payable in every quota | held for | comes back for |
    |------------------------|----------|----------------|
    | cost and run           | any      | a run          |
    | cost                   | >= 1 s   | one task       |
    | cost                   | < 1 s    | not yet        |
    | less                   | any      | not yet        |
    """
    payable = [need.purse.payable(now_ns) for need in needs]
    if any(units < need.cost_units for units, need in zip(payable, needs, strict=True)):
        return Return.NOT_YET
    if all(units >= run for units, run in zip(payable, runs, strict=True)):
        return Return.RUN
    return Return.TASK if now_ns - held_since_ns >= SINGLE_AFTER_NS else Return.NOT_YET


def one_by_one(reading: Reading, now_ns: int) -> bool:
    """Whether only a single task may be leased at a time: the API is tried out, or only the answer to a call that goes
    alone tells whether there is more."""
    return reading.probing(now_ns) or any(
        part.kept_off(now_ns, idle=False) > part.kept_off(now_ns, idle=True) for part in reading.limits
    )


def only_paced(needs: Sequence[Need], *, now_ns: int, by_ns: int) -> bool:
    """Whether nothing but buckets keeps a task waiting, and they will have run out far enough by `by_ns`.

    A bucket that others keep full never has room to be seen from outside, yet a task that stood in line would be paid:
    so that is no reason to hold a consumer that has no task in line.
    """
    windows = [
        replace(need.purse, reading=replace(need.purse.reading, limits=_windows(need.purse.reading))) for need in needs
    ]
    return all(
        not purse.reading.probing(now_ns)
        and purse.payable(now_ns) >= need.cost_units
        and need.purse.payable_if_returned(need.cost_units, now_ns, by_ns)
        for need, purse in zip(needs, windows, strict=True)
    )


def _windows(reading: Reading) -> tuple[LimitReading, ...]:
    return tuple(part for part in reading.limits if part.limit.window is not Window.PACED)


def sensible_run(reading: Reading, *, cost_units: int, rate_per_s: float) -> int:
    """Units worth coming back for: a twentieth of the tightest limit or a second of work, at least one task."""
    twentieth = min(part.limit.units for part in reading.limits) // RUN_DIVISOR
    return max(cost_units, min(twentieth, int(rate_per_s)))


def _cause(reading: Reading, now_ns: int) -> Cause:
    return Cause.BLOCKED if now_ns < reading.blocked_until_ns else Cause.QUOTA


def _worse(one: Pay | Wait | Hold, other: Wait | Hold) -> Wait | Hold:
    """A hold beats a wait; of two of a kind the one that lasts longer wins, unknown being longest."""
    if isinstance(one, Pay):
        return other
    if isinstance(one, Hold) != isinstance(other, Hold):
        return one if isinstance(one, Hold) else other
    lasts = [float("inf") if it.until_ns is None else it.until_ns for it in (one, other)]
    return one if lasts[0] >= lasts[1] else other


def return_at(needs: Sequence[Need], runs: Sequence[int], *, now_ns: int, held_since_ns: int) -> int | None:
    """When `may_return` will say yes, if nothing comes back before; None: not by the passing of time alone."""
    tasks = [need.purse.payable_at(need.cost_units, now_ns) for need in needs]
    for_run = [need.purse.payable_at(run, now_ns) for need, run in zip(needs, runs, strict=True)]
    found = []
    if None not in tasks:
        found.append(max([held_since_ns + SINGLE_AFTER_NS, *(at for at in tasks if at is not None)]))
    if None not in for_run:
        found.append(max(at for at in for_run if at is not None))
    return min(found, default=None)
