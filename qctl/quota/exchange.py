"""What a process and the ledger say to each other in one transaction: values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from qctl.quota.upstream import Told
from qctl.quota.window import Reading

#: Settled units by the instant of their settlement, for each quota.
Settled = Mapping[str, Mapping[int, int]]


@dataclass(frozen=True, slots=True)
class Want:
    """Units that `consumer` needs, all or none. `claim`: stand in line for what is missing."""

    consumer: str
    cost: Mapping[str, int]
    claim: bool = True


@dataclass(frozen=True, slots=True)
class Exchange:
    """What a process tells the ledger and wants from it.

    held: all units still in its hands after this, by quota: in memory or with running tasks; what it does not name, it
    does not hold. settled, doubtful: units spent since the last exchange; a doubtful one may be counted upstream up to
    the linger later. wants: served in order. top_up: what is left in memory of the quotas to lease ahead of need.
    unclaim: consumers that no longer wait. told: what the upstream's answers said of a quota's limits. running: units
    of `held` that are with running tasks. served: the latest instant at which a call was sent that was answered and not
    refused, by quota; exact, not rounded as those of settlements are. look: readings are wanted whatever is granted.
    """

    held: Mapping[str, int] = field(default_factory=dict)
    settled: Settled = field(default_factory=dict)
    doubtful: Settled = field(default_factory=dict)
    wants: tuple[Want, ...] = ()
    top_up: Mapping[str, int] = field(default_factory=dict)
    unclaim: tuple[str, ...] = ()
    told: Mapping[str, Sequence[Told]] = field(default_factory=dict)
    running: Mapping[str, int] = field(default_factory=dict)
    served: Mapping[str, int] = field(default_factory=dict)
    look: bool = False


@dataclass(frozen=True, slots=True)
class Response:
    """The answer. void: nothing was done, since the ledger does not know what the process holds (it is a new file, or
    took it for dead): its leases are void, and it must state anew what runs. granted: one per want. leased: units of
    each top-up. epochs: of every quota. readings: of every quota, when a want was refused or a
    look was wanted."""

    void: bool = False
    granted: tuple[bool, ...] = ()
    leased: Mapping[str, int] = field(default_factory=dict)
    epochs: Mapping[str, int] = field(default_factory=dict)
    readings: Mapping[str, Reading] = field(default_factory=dict)
