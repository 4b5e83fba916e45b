"""What the console shows at one moment, as values, and what it says about its screen to whoever makes them.

A source makes a `Snapshot` about once a second, in a thread of its own; the newest wins. `Focus` goes the other way: a
source asks the management API for what is on screen and for nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from qctl.errors import QctlError
from qctl.ops.events import Happened
from qctl.ops.status import QueueRow, Seen, State, Status

#: Events that are kept, the newest.
MAX_EVENTS = 1_000
#: Queues in one page; the broker gives at most as many at once.
PAGE_ROWS = 500


class View(StrEnum):
    """The views, in the order of their number keys."""

    HOSTS = "hosts"
    QUEUES = "queues"
    CONSUMERS = "consumers"
    QUOTAS = "quotas"
    DEAD = "dead letters"
    EVENTS = "events"


@dataclass(frozen=True, slots=True)
class Focus:
    """What is on screen. page, sort, descending, match, invert: of the list, where the broker sorts and pages it.

    sort: a column's id; match: a plain text, found anywhere in a name. opened: the key of the row whose detail is
    open, "" for none.
    """

    view: View = View.HOSTS
    page: int = 1
    sort: str = ""
    descending: bool = False
    match: str = ""
    invert: bool = False
    opened: str = ""


class Health(StrEnum):
    """How a source is."""

    OK = "ok"
    CONNECTING = "connecting"
    STALE = "stale"
    FAILED = "failed"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class SourceState:
    """One source of what is shown: `broker`, `workers`, `control log`, `management API`.

    at_s: when it last said something; words: what is wrong with it, one sentence, with what to do.
    """

    name: str
    health: Health
    at_s: float | None = None
    words: str = ""


@dataclass(frozen=True, slots=True)
class TagRow:
    """One subscription, by its consumer tag. by: who paused it; until_s: when that, or the hold, may be over."""

    tag: str
    host: str
    consumer: str
    queue: str
    state: State
    why: str = ""
    since_s: float | None = None
    by: str = ""
    until_s: float | None = None
    running: int | None = None
    waiting: int | None = None
    rate_per_s: float | None = None
    seen: Seen | None = None

    @property
    def address(self) -> str:
        """`HOST/CONSUMER`."""
        return f"{self.host}/{self.consumer}"


@dataclass(frozen=True, slots=True)
class Page:
    """Which part of a view's list the rows are. total: rows in all, by the broker, after its filter."""

    number: int = 1
    pages: int = 1
    total: int = 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All there is to show. status.queues: the page of queues that is on screen, or was; dead: queues of dead letters.

    events: the newest last, at most MAX_EVENTS. sources: how each source is.
    """

    at_s: float
    status: Status
    tags: tuple[TagRow, ...] = ()
    page: Page = Page()
    dead: tuple[QueueRow, ...] = ()
    events: tuple[Happened, ...] = ()
    sources: tuple[SourceState, ...] = ()


class Source(Protocol):
    """What makes snapshots. All methods are called from the console's thread and return at once.

    error: why it has given up for good; `show` is called once more then.
    """

    error: QctlError | None

    def start(self, show: Callable[[Snapshot], None]) -> None:
        """Begin; `show` may be called from any thread, about once a second."""

    def look_at(self, focus: Focus) -> None:
        """What is on screen from now on."""

    def refresh(self) -> None:
        """Ask anew now, and not only when it is time."""

    def stop(self) -> None:
        """End; returns within two seconds."""
