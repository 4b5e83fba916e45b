"""Cells that several views share: states, instants, ages, numbers, what is left of a quota. Pure.

Numbers stand plain, their unit is in the column's title; what is not known is `-`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache

from qctl.ops.spending import by_somebody_else, in_short, shown
from qctl.ops.status import BLOCKED, COUNTED, ConsumerRow, HostRow, QuotaRow, Seen, Source, State
from qctl.ops.when import span
from qctl.tui.bars import bar, bar_style, state_mark
from qctl.tui.cells import EMPTY, UNKNOWN, Cell, Column, one
from qctl.tui.scene import Scene
from qctl.tui.text import Drawing, safe, width_of

#: Who said nothing for so long is late: telemetry comes every second, the management API's answers every five.
LATE_S = 8.0
#: Younger than this is the present.
PRESENT_S = 3.0
#: A quota that is gone within this needs somebody soon.
SOON_S = 600.0
#: The time to its end decides which quota presses most within this.
PRESSING_S = 3_600.0
#: Widths of columns that are the same in several views.
STATE_WIDTH, MOMENT_WIDTH, RATE_WIDTH, AGE_WIDTH, RUNS_OUT_WIDTH = 18, 8, 8, 6, 13
#: The states by how much they need somebody.
NEED = {
    State.DOWN: 0,
    State.UNKNOWN: 1,
    State.HELD: 2,
    State.MIXED: 3,
    State.PAUSED: 4,
    State.DRAINING: 5,
    State.CONSUMING: 6,
}
_DIGITS = re.compile(r"(\d{1,18})")


@lru_cache(32_768)
def natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sorts `web-2` before `web-10`."""
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part.casefold()) for part in _DIGITS.split(name))


def widest(names: Iterable[str], *, least: int, most: int) -> int:
    """The cells that a column of names takes."""
    return min(max(max(map(_cells, names), default=0), least), most)


def _cells(name: str) -> int:
    return len(name) if name.isascii() and name.isprintable() else width_of(safe(name))


def padded(name: str, width: int) -> str:
    """A name in exactly `width` cells."""
    shown = safe(name, width=width)
    return shown + " " * (width - width_of(shown))


@dataclass(frozen=True, slots=True)
class Beside:
    """Words, and a drawing in the room that they leave."""

    words: Cell
    drawing: Drawing

    def draw(self, width: int) -> Cell:
        """In `width` cells."""
        taken = sum(width_of(text) for text, _ in self.words)
        return (*self.words, *self.drawing.draw(max(0, width - taken)))


# Instants and lengths of time


def brief(seconds: float) -> str:
    """A length of time in whole seconds, so that it is calm to look at: `3s`, `42s`, `3m12s`."""
    whole = max(0.0, seconds)
    return f"{int(whole)}s" if whole < 60 else span(whole)


def about(seconds: float) -> str:
    """An estimate of a length of time: no seconds where they say nothing, `~8m30s`, `~24m`, `~3h16m`."""
    whole = max(0.0, seconds)
    return f"~{round(whole / 60)}m" if 600 <= whole < 3_570 else f"~{brief(whole)}"


def moment(at_s: float | None, scene: Scene) -> str:
    """`14:00:07`, with the day where that is another; "" for None."""
    if at_s is None:
        return ""
    try:
        then, now = (datetime.fromtimestamp(each, UTC).astimezone(scene.zone) for each in (at_s, scene.now_s))
    except (OverflowError, OSError, ValueError):
        return "?"
    return f"{then:%H:%M:%S}" if then.date() == now.date() else f"{then:%b %d %H:%M}"


def age(seen: Seen | None, scene: Scene) -> Cell:
    """How old a row is: the present, so long, or late."""
    if seen is None:
        return UNKNOWN
    age_s = scene.now_s - seen.at_s
    if age_s < PRESENT_S:
        return one("now", "dim")
    return one(brief(age_s), "warn" if age_s >= LATE_S else "dim")


def age_s(seen: Seen | None) -> float | None:
    """What rows are sorted by: the latest word."""
    return None if seen is None else -seen.at_s


# Numbers


def per_s(value: float | None, *, estimated: bool = False, style: str = "") -> Cell:
    """A rate: one digit behind the point while that says something."""
    if value is None:
        return UNKNOWN
    text = f"{value:.0f}" if abs(value) >= 1_000 else f"{value:.1f}"
    if text in ("0.0", "-0.0"):
        return one("0", "dim")
    return one(f"~{text}", "estimate") if estimated else one(text, style)


def count(value: int | None) -> Cell:
    """A number of things; nought is of a second rank."""
    return UNKNOWN if value is None else one(value, "" if value else "dim")


def share(part: int | None, whole: int | None) -> Cell:
    """`3/8`."""
    if part is None:
        return UNKNOWN
    return ((str(part), "" if part else "dim"), (f"/{'?' if whole is None else whole}", "dim"))


def total(values: Iterable[float | None]) -> float | None:
    """The sum of what is known, None where nothing is."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def at_least(cell: Cell, values: Iterable[float | None]) -> Cell:
    """A sum of these values, `4.0+` where one of them is not known."""
    unknown = cell != UNKNOWN and any(value is None for value in values)
    return (*cell, ("+", "dim")) if unknown else cell


# States


def off_since_s(since_s: float | None, seen: Seen | None) -> float | None:
    """Since when something is off: what is silent since its last word; for the rest a young row is no young state."""
    return since_s if seen is None or seen.source is not Source.LOG else max(since_s or 0.0, seen.at_s)


def state(
    its: State, scene: Scene, *, why: str = "", by: str = "", since_s: float | None = None, until_s: float | None = None
) -> Cell:
    """A state in shape and word with what matters most of it: `◐ held 14:00:07`, `⏸ paused by oncall`, `✗ down 42s`."""
    mark, style = state_mark(its)
    more = ""
    match its:
        case State.HELD:
            more = moment(until_s, scene)
        case State.PAUSED:
            more = f"by {by}" if by else ""
        case State.DOWN | State.UNKNOWN:
            more = why if why == BLOCKED else brief(scene.now_s - since_s) if since_s is not None else ""
    return ((f"{mark} ", style), (str(its), style if its is not State.CONSUMING else ""), (more and f" {more}", style))


def mixed(row: HostRow) -> Cell:
    """The states of a host's consumers, counted: `◑ 1 held 2 consuming`."""
    worst = min(row.counts, key=lambda its: NEED.get(its, 9), default=State.UNKNOWN)
    counted = [
        (f" {number} {its}", "" if its is State.CONSUMING else state_mark(its)[1])
        for its in COUNTED
        if (number := row.counts.get(its))
    ]
    return ((state_mark(State.MIXED)[0], state_mark(worst)[1]), *counted)


def consumer_state(row: ConsumerRow, scene: Scene) -> Cell:
    """A consumer's state with who paused it, or until when it is held."""
    return state(
        row.state,
        scene,
        why=row.why,
        by=", ".join(dict.fromkeys(pause.by for pause in row.pauses if pause.by)),
        since_s=row.since_s,
        until_s=min((hold.until_s for hold in row.holds if hold.until_s is not None), default=None),
    )


# Quotas


@dataclass(frozen=True, slots=True)
class Gauge:
    """A quota as a cell: its name, a bar as wide as there is room for, and `USED/LIMIT` in plain digits.

    foreign: what somebody else has spent of it, which is gone as well.
    """

    name: str
    name_width: int
    used: int | None
    limit: int | None
    digits_width: int
    estimated: bool = False
    foreign: int = 0

    def draw(self, width: int) -> Cell:
        """In `width` cells; the bar goes first where there are few, the digits never."""
        digits = used_of(self.used, self.limit, estimated=self.estimated, foreign=self.foreign)
        named = f"{padded(self.name, self.name_width)} " if self.name_width else ""
        room = width - width_of(named) - self.digits_width - 1
        if self.used is None or self.limit is None:
            drawn: Cell = (("─" * max(room, 0), "faint"),)
            style = "dim"
        else:
            gone = self.used + self.foreign
            drawn = bar(gone, self.limit, room) if room > 0 else EMPTY
            style = bar_style(gone, self.limit)
        return ((named, "dim"), *drawn, (f" {digits:>{self.digits_width}}", "" if style == "bar" else style))


def used_of(used: int | None, limit: int | None, *, estimated: bool = False, foreign: int = 0) -> str:
    """`19812/20000`, or `~19812/20000`; `600+212/1000` where somebody else has spent 212."""
    known = "-" if used is None else f"~{used}" if estimated else used
    return f"{known}{f'+{foreign}' if foreign else ''}/{'-' if limit is None else limit}"


def gauge(row: QuotaRow, *, name_width: int, digits_width: int) -> Gauge:
    """A quota as a cell; name_width 0: without its name."""
    return Gauge(row.quota, name_width, row.used_units, limit_of(row), digits_width, row.estimated, others(row))


def others(row: QuotaRow) -> int:
    """What somebody else has spent of the limit that shows, where that is worth a word."""
    return row.foreign_units if shown(row.foreign) else 0


def limit_of(row: QuotaRow) -> int | None:
    """The limit that is nearest to its end; of a silent host the first there is, as far as it can be read."""
    if row.limit_units is not None or not row.rates:
        return row.limit_units
    digits = row.rates[0].partition("/")[0]
    return int(digits) if digits.isdecimal() and len(digits) < 16 else None


def digits(rows: Iterable[QuotaRow]) -> int:
    """The cells that the longest `USED/LIMIT` takes."""
    return max(
        (len(used_of(row.used_units, limit_of(row), estimated=row.estimated, foreign=others(row))) for row in rows),
        default=3,
    )


def fraction(row: QuotaRow | None) -> float | None:
    """What share of a quota is used."""
    if row is None or row.used_units is None or not row.limit_units:
        return None
    return (row.used_units + others(row)) / row.limit_units


def ends_s(row: QuotaRow, now_s: float) -> float | None:
    """Seconds until a quota is gone: 0 where it is, None where it lasts or nothing is known."""
    if row.fault or row.dry or (row.blocked_until_s is not None and row.blocked_until_s > now_s):
        return 0.0
    return None if row.exhausted_at_s is None else max(0.0, row.exhausted_at_s - now_s)


def pressing(row: QuotaRow, now_s: float) -> tuple[int, float]:
    """Sorts quotas by how soon they are gone; those that last are all alike, so that they keep their places."""
    end_s = ends_s(row, now_s)
    if row.fault:
        return 0, 0.0
    if end_s is None or end_s > PRESSING_S:
        return 2, 0.0
    return 1, end_s


def runs_out(row: QuotaRow | None, scene: Scene) -> Cell:
    """When a quota is gone, or back: `~3m12s`, `back 14:00:07`, `lasts`."""
    if row is None:
        return EMPTY
    if row.fault:
        return one("ledger fault", "bad")
    if row.blocked_until_s is not None and row.blocked_until_s > scene.now_s:
        return one(f"back {moment(row.blocked_until_s, scene)}", "held")
    if row.dry:
        unsaid = "used up" if row.spent else "too little"
        return one(f"back {moment(row.back_at_s, scene)}" if row.back_at_s is not None else unsaid, "held")
    if row.exhausted_at_s is not None:
        left_s = row.exhausted_at_s - scene.now_s
        return one(about(left_s), "warn" if left_s < SOON_S else "")
    if row.used_units is not None and row.spend_per_s is not None:
        return one("lasts", "dim")
    return UNKNOWN


def limits(rates: Iterable[str], width: int) -> str:
    """`20/s, 100/30s, 5000/h`, or as many of them as `width` has room for: part of a number is another number."""
    said = list(rates)
    whole = ", ".join(said)
    if len(whole) <= width:
        return whole
    while said and len(", ".join(said)) + len(", …") > width:
        said.pop()
    return ", ".join([*said, "…"])


def somebody_else(row: QuotaRow, scene: Scene) -> str:
    """What somebody else has spent, with the API's numbers; "" where that is not known."""
    foreign = shown(row.foreign)
    return by_somebody_else(foreign, row.limit_units, lambda at_s: moment(at_s, scene)) if foreign else ""


def others_in_short(row: QuotaRow, scene: Scene) -> str:
    """The same, as short as a table wants it."""
    foreign = shown(row.foreign)
    return in_short(foreign, row.limit_units, lambda at_s: moment(at_s, scene)) if foreign else ""


def state_column() -> Column:
    """The column of states, sorted by how much they need somebody."""
    return Column("state", "STATE", STATE_WIDTH, flex=3, sort=lambda row: NEED.get(row.state, 9))


def age_column() -> Column:
    """The column that says how old a row is."""
    return Column("heard", "HEARD", AGE_WIDTH, right=True, rank=1, sort=lambda row: age_s(row.seen))
