"""What a worker process says of quotas: what is used of each, who else spends it, and what tasks were seen to cost."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from qctl.broker.message import utc

SLIDING, FIXED, PACED = "sliding", "fixed", "paced"


@dataclass(frozen=True, slots=True)
class LimitReading:
    """One limit of a quota, and the units that count against it.

    resets_at_s: of a fixed window, when the API begins the next one, where that is known. returns: what is spent of it
    is free again: (seconds from the reading's own instant, units), ascending.
    """

    units: int
    period_s: float
    used: int
    resets_at_s: float | None = None
    returns: tuple[tuple[float, int], ...] = ()


@dataclass(frozen=True, slots=True)
class OverrideReading:
    """A `quota set` that holds at present. rates: as the operator wrote them."""

    rates: tuple[str, ...]
    by: str | None = None
    reason: str | None = None
    until_s: float | None = None
    at_s: float | None = None


@dataclass(frozen=True, slots=True)
class ForeignReading:
    """Units of a quota that somebody else has spent, by what the API says: its count less this host's.

    units: at least so many, most: at most, since calls under way may be counted in it or not. limit, remaining: as the
    API says, None where it does not. ours: what counts of this host; period_s: of the limit that is meant. since_s:
    when it was first so; until_s: it is forgotten then at the latest. lasting: it is no passing doubt.
    """

    units: int
    most: int
    ours: int
    period_s: float
    limit: int | None = None
    remaining: int | None = None
    since_s: float | None = None
    until_s: float | None = None
    lasting: bool = False

    def to_json(self) -> dict[str, Any]:
        """As fields of JSON."""
        return {
            "units": self.units,
            "most": self.most,
            "ours": self.ours,
            "period_s": self.period_s,
            "limit": self.limit,
            "remaining": self.remaining,
            "since": utc_or_none(self.since_s),
            "until": utc_or_none(self.until_s),
            "lasting": self.lasting,
        }


@dataclass(frozen=True, slots=True)
class CostReading:
    """What the tasks of one type were seen to use of one quota, beside what the inventory declares; all in units.

    type: of the messages, "" where they have none. tasks: how many were seen since the process started; p50, p95: half
    of the last of them, and 95 of 100, used no more than that; mean: what one of the last used, None: nobody says.
    gave_up: how many of `tasks` the host could not pay to their end; they count with what they would have needed next.
    """

    consumer: str
    type: str
    quota: str
    declared: int
    tasks: int
    p50: int
    p95: int
    mean: float | None = None
    gave_up: int = 0

    def to_json(self) -> dict[str, Any]:
        """As fields of JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class QuotaReading:
    """A quota of the host, seen by one process; `used`, `limit`, `period_s` are of the limit that binds first.

    used: units that count against the limit: spent in the window, reserved by running tasks, or in the hands of other
    processes; at most `limit`. leased: units in this process's own hands and not used: not in `used`. over: what
    counts beyond the limit, which a lowered limit leaves behind. spend_per_s: units a second that all processes of the
    host settled lately; None: it does not say. returns_at_s: while it is dry when a unit may be used
    again, else when the first used units return; None: nothing is used, or it depends on what is leased. window: how
    its limits move; burst: of a paced one. foreign: what somebody else has spent of it, which is not in `used`.
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
    window: str = SLIDING
    burst: int = 1
    foreign: ForeignReading | None = None
    spend_per_s: float | None = None

    @property
    def dry(self) -> bool:
        """Nothing may be spent now."""
        return self.used + self.foreign_of(self.period_s) >= self.limit or self.blocked_until_s is not None

    def foreign_of(self, period_s: float) -> int:
        """What somebody else has spent, for certain, of the limit with this period."""
        return self.foreign.units if self.foreign is not None and self.foreign.period_s == period_s else 0

    def without_returns(self) -> QuotaReading:
        """The same, but for when what is spent returns."""
        return replace(self, limits=tuple(replace(one, returns=()) for one in self.limits))

    def to_json(self) -> dict[str, Any]:
        """As fields of JSON."""
        override = self.override
        return {
            "name": self.name,
            "used": self.used,
            "limit": self.limit,
            "period_s": self.period_s,
            "over": self.over,
            "leased": self.leased,
            "returns_at": utc_or_none(self.returns_at_s),
            "blocked_until": utc_or_none(self.blocked_until_s),
            "limits": [
                {
                    "units": one.units,
                    "period_s": one.period_s,
                    "used": one.used,
                    "resets_at": utc_or_none(one.resets_at_s),
                    "returns": [[round(in_s, 3), units] for in_s, units in one.returns],
                }
                for one in self.limits
            ],
            "override": override
            and {
                "rates": list(override.rates),
                "by": override.by,
                "reason": override.reason,
                "until": utc_or_none(override.until_s),
                "at": utc_or_none(override.at_s),
            },
            "window": self.window,
            "burst": self.burst,
            "foreign": self.foreign and self.foreign.to_json(),
            "spend_per_s": None if self.spend_per_s is None else round(self.spend_per_s, 3),
        }


def utc_or_none(instant_s: float | None) -> str | None:
    """An instant as it travels."""
    return None if instant_s is None else utc(instant_s)
