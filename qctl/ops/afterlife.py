"""What is done with dead letters, and what is true of it: replay or drop, which, and how many. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from qctl.ops.dead import Letters
from qctl.units import Rate


class Act(StrEnum):
    """What is done with dead letters."""

    REPLAY = "replay"
    DROP = "drop"


@dataclass(frozen=True, slots=True)
class Order:
    """What is wanted. queue: `NAME.dead`. total: how many letters; keys: theirs, None for the first `total` there are.

    rate: replay no faster.
    """

    act: Act
    queue: str
    total: int
    keys: frozenset[str] | None = None
    rate: Rate | None = None

    @property
    def gap_s(self) -> float:
        """Seconds from one letter to the next; 0: as fast as it goes."""
        return 0.0 if self.rate is None else self.rate.period_ns / 1e9 / self.rate.units


def chosen(act: Act, found: Letters, *, rate: Rate | None = None) -> Order:
    """An order for exactly the letters that a look has found."""
    return Order(act, found.queue, len(found.letters), frozenset(one.key for one in found.letters), rate)


@dataclass(frozen=True, slots=True)
class Report:
    """What is true. done: letters that are out of the queue, or will be when it is back.

    maybe_twice: may be tasks and dead letters at once, or tasks twice, or dropped and there: nobody knows what the
    broker did when it was lost. stays: could not be published, and are where they were.
    """

    act: Act
    queue: str
    done: int
    total: int
    maybe_twice: int
    stays: int
    seconds: float

    @property
    def words(self) -> str:
        """`replayed 7312 of 10000; 3 of them may be there twice`, of dropped ones `may still lie there`."""
        verb = "replayed" if self.act is Act.REPLAY else "dropped"
        still = "may be there twice" if self.act is Act.REPLAY else "may still lie there"
        twice = f"; {self.maybe_twice} of them {still}" if self.maybe_twice else ""
        stays = f"; {self.stays} cannot be published again and stay" if self.stays else ""
        return f"{verb} {self.done} of {self.total}{twice}{stays}"
