"""What of a quota is used, and when there is more, in the numbers that are shown to people. Pure."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

from qctl.quota.foreign import Foreign
from qctl.quota.policy import Limit, Window
from qctl.quota.window import LimitReading, Reading, free_at, free_units


@dataclass(frozen=True, slots=True)
class Counted:
    """A limit, and the units of ours that count against it: more than it admits only after it was lowered.

    foreign: what others have spent of it; None: nothing, as far as is known. others_units: what of that is taken into
    account now. resets_ns: when the next window of a fixed limit begins; None: not known.
    """

    limit: Limit
    units: int
    foreign: Foreign | None = None
    others_units: int = 0
    resets_ns: int | None = None

    @property
    def room_units(self) -> int:
        """What it still admits us; negative after it was lowered, or when others have spent of it."""
        return self.limit.units - self.units - self.others_units


@dataclass(frozen=True, slots=True)
class Account:
    """A quota at one moment, as one process sees it.

    binding: the limit that admits the least, the one that shows; limits: all that are shown. What counts is what was
    spent, what running tasks have reserved and what other processes have leased, but not lease_units, which this
    process has leased and not used. returns_ns: while nothing may be spent when a unit may be, else when the first
    units that count against `binding` return; None: nothing counts, or it depends on what is leased.
    blocked_until_ns: None when the upstream has not said so.
    """

    binding: Counted
    limits: tuple[Counted, ...]
    lease_units: int
    dry: bool
    returns_ns: int | None
    blocked_until_ns: int | None


def account(reading: Reading, *, lease_units: int, shown_ns: Container[int], now_ns: int) -> Account:
    """The numbers of a quota at `now_ns`.

    lease_units: what this process has leased and not used. shown_ns: the periods of the limits that somebody stated;
    others come from pacing, and are shown only if there are no such.
    """
    lease_units = max(0, min(lease_units, reading.leased_units))
    out_units = reading.leased_units - lease_units
    stated = [part for part in reading.limits if _is_stated(part.limit, shown_ns)] or list(reading.limits)
    idle = not reading.leased_units
    counted = [_counted(part, out_units, idle=idle, now_ns=now_ns) for part in stated]
    # Of two that admit equally little, the one that will do so for longer.
    binding, part = min(
        zip(counted, stated, strict=True),
        key=lambda pair: (max(0, pair[0].room_units), -_next_ns(pair[1], out_units, idle=idle, now_ns=now_ns)),
    )
    dry = free_units(reading, now_ns) + lease_units <= 0
    blocked_ns = reading.blocked_until_ns
    return Account(
        binding=binding,
        limits=tuple(counted),
        lease_units=lease_units,
        dry=dry,
        returns_ns=free_at(reading, 1, now_ns) if dry else part.next_return(now_ns),
        blocked_until_ns=blocked_ns if blocked_ns > now_ns else None,
    )


def _is_stated(limit: Limit, shown_ns: Container[int]) -> bool:
    return limit.window is not Window.PACED and limit.period_ns in shown_ns


def _counted(part: LimitReading, out_units: int, *, idle: bool, now_ns: int) -> Counted:
    foreign = part.foreign
    opens_ns = part.reset.opens_ns if part.limit.window is Window.FIXED else None
    return Counted(
        part.limit,
        part.used(now_ns) + out_units,
        foreign=foreign if foreign and foreign.hi_units and now_ns < foreign.until_ns else None,
        others_units=part.kept_off(now_ns, idle=idle),
        resets_ns=opens_ns if opens_ns is not None and opens_ns > now_ns else None,
    )


def _next_ns(part: LimitReading, out_units: int, *, idle: bool, now_ns: int) -> int:
    """When this limit admits a unit; `now_ns` also where that depends on what is leased."""
    room = part.limit.units - out_units - 1
    return part.admits_at(room, now_ns, idle=idle) if room >= 0 else now_ns
