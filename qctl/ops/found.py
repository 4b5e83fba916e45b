"""All that was heard of a fleet, before anybody says what it means: `sources` fills it, `picture` reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from qctl.control.desired import Desired
from qctl.control.host_answer import HostAnswer
from qctl.control.reading import Goodbye, HostReading, Reading

#: What would take longer is not foretold.
MAX_FORESIGHT_S = 366 * 86_400.0


class Silence(Enum):
    """Why there is no answer of a supervisor."""

    ABSENT = "no supervisor has the name now"
    SILENT = "somebody has the name and does not answer"
    UNASKED = "it could not be asked"


@dataclass(frozen=True, slots=True)
class Heard:
    """A live reading, and the instant, by this machine's clock, at which it was heard."""

    reading: Reading
    at_s: float


@dataclass(frozen=True, slots=True)
class Depth:
    """Tasks of a queue that nobody has; None with the reason why that is not known. at_s: when the queue said so."""

    ready: int | None
    why: str = ""
    at_s: float | None = None


@dataclass(frozen=True, slots=True)
class Flow:
    """What the management API says of a queue, each None where it says nothing."""

    unacked: int | None = None
    in_per_s: float | None = None
    out_per_s: float | None = None
    ready: int | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """All that was learnt by `at_s`. last: of each host the newest in the log; looked_back_s: how far that was read.

    deaf: why nobody can be heard at present, "" when who speaks is heard. before: what a host said before its goodbye.
    known: hosts that are shown also when they are silent. listed: the hosts of which the broker lists a connection,
    None where it was not asked or does not say. desired None: the control log could not be read.
    """

    at_s: float
    blocked: bool = False
    deaf: str = ""
    live: tuple[Heard, ...] = ()
    last: Mapping[str, HostReading | Goodbye] = field(default_factory=dict)
    looked_back_s: float = 0.0
    before: Mapping[str, HostReading] = field(default_factory=dict)
    known: tuple[str, ...] = ()
    supervisors: Mapping[str, HostAnswer | Silence] = field(default_factory=dict)
    listed: frozenset[str] | None = None
    desired: Desired | None = None
    depths: Mapping[str, Depth] = field(default_factory=dict)
    flows: Mapping[str, Flow] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
