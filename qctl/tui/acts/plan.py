"""What an act is before it is confirmed and what is shown of it afterwards, as values; and what forms take."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from qctl.errors import UsageError
from qctl.inventory.model import Inventory
from qctl.ops.status import Seen
from qctl.ops.until import parse_until
from qctl.ops.when import clock
from qctl.ops.wording import MAX_REASON_CHARS
from qctl.tui.cells import Cell
from qctl.tui.snapshot import Snapshot, View
from qctl.units import parse_duration

#: Characters of several names that have to be typed in production; longer than this they would not be read but copied.
MAX_TYPED_CHARS = 40
#: Rows of what is proven that are shown, and kept.
MAX_ROWS = 500
#: Characters of one field of a form; longer payloads are for `qctl enqueue --file`.
MAX_FIELD_CHARS = 8_000


@dataclass(frozen=True, slots=True)
class Where:
    """What acts are carried out on. connect_timeout_s: how long its broker is tried."""

    inventory: Inventory
    connect_timeout_s: float = 10.0

    @property
    def is_production(self) -> bool:
        """Whether acts want a name typed."""
        return self.inventory.environment == "production"


@dataclass(frozen=True, slots=True)
class Selection:
    """What an act is about: the view, the keys of its marked rows or of the one at the cursor, and the newest that is
    known of them.
    """

    view: View
    keys: tuple[str, ...]
    snapshot: Snapshot


@dataclass(frozen=True, slots=True)
class Field:
    """Something to fill in. placeholder: what may stand there, and what its absence means."""

    id: str
    label: str
    placeholder: str = ""
    value: str = ""
    required: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """A line of what is proven. why: what explains it, "" for nothing."""

    cells: tuple[Cell, ...]
    why: str = ""


@dataclass(frozen=True, slots=True)
class Shown:
    """What is true of an act at this moment. right: the columns of numbers; left_out: rows beyond those that are here.

    summary: "" until there is something to sum up. notes: sentences about what could not be found out. is_good: nothing
    of it needs looking after.
    """

    titles: tuple[str, ...] = ()
    rows: tuple[Row, ...] = ()
    right: frozenset[int] = frozenset()
    notes: tuple[str, ...] = ()
    summary: str = ""
    is_good: bool = True
    left_out: int = 0

    def bounded(self) -> Shown:
        """The same with MAX_ROWS rows at most: acts put first what is in doubt."""
        if len(self.rows) <= MAX_ROWS:
            return self
        return replace(self, rows=self.rows[:MAX_ROWS], left_out=len(self.rows) - MAX_ROWS)


class Act(Protocol):
    """Something that was confirmed. `shown` is true at any moment, also after an error or an interrupt."""

    @property
    def doing(self) -> str:
        """What is being waited for, a few words."""

    @property
    def is_given(self) -> bool:
        """Whether something of it may hold, or may have been done, already."""

    def shown(self) -> Shown:
        """What is true now."""

    async def run(self) -> None:
        """Do it. Raises QctlError."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What would be done. targets: what it concerns, each in a line; more: what else; warnings: what it would stop.

    typed: what has to be typed in production. verb: what the button says. start: makes the act; what is to last for a
    time lasts from then on.
    """

    what: str
    verb: str
    targets: tuple[str, ...]
    typed: str
    start: Callable[[], Act]
    more: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Draft:
    """An act that somebody is about to give: its fields, and the plan that follows from what is filled in.

    plan(values): by the fields' ids; raises QctlError where they make none.
    """

    title: str
    plan: Callable[[Mapping[str, str]], Plan]
    fields: tuple[Field, ...] = ()


REASON = Field("reason", "Reason", "shown to everybody who looks")
LASTS = Field("lasts", "Until", "10m, or 14:00; empty: until it is taken back")


def reason_of(values: Mapping[str, str]) -> str | None:
    """The reason that was given. Raises UsageError."""
    reason = values.get(REASON.id, "").strip()
    if len(reason) > MAX_REASON_CHARS:
        raise UsageError(f"a reason is at most {MAX_REASON_CHARS} characters")
    return reason or None


def lasts(values: Mapping[str, str], now_s: float) -> tuple[float | None, float | None]:
    """When it ends, wall clock, and how long it lasts where that was given instead; None, None: for good.

    Raises UsageError.
    """
    text = values.get(LASTS.id, "").strip()
    if not text:
        return None, None
    try:
        if ":" in text:
            return parse_until(text, now_s).timestamp(), None
        duration_s = parse_duration(text)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if duration_s <= 0:
        raise UsageError("a duration is above 0")
    return None, duration_s


def of_when(seen: Seen | None, before: str) -> str:
    """The instant at which something was true, after `before`; "" where nobody knows.

    No age: a question stands there for as long as somebody thinks, and an instant stays true.
    """
    return "" if seen is None else f"{before} {clock(seen.at_s, now_s=time.time())}"


def typed_name(shown: str, names: int, otherwise: str) -> str:
    """What has to be typed in production: the name, however long; `otherwise` where names are too many to type."""
    return shown if names == 1 or len(shown) <= MAX_TYPED_CHARS else otherwise
