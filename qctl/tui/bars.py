"""Small drawings of one line: a bar for what is used of a limit, a sparkline for what was, a mark for a state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qctl.ops.status import State
from qctl.tui.cells import UNKNOWN, Cell

#: From this share on a quota needs somebody soon.
NEAR_END = 0.8
_FULL, _HALF, _TRACK = "━", "╸", "─"
# The highest leaves a gap to the line above.
_LEVELS = "▁▂▃▄▅▆▇"

_MARKS: dict[State, tuple[str, str]] = {
    State.CONSUMING: ("●", "ok"),
    State.HELD: ("◐", "held"),
    State.PAUSED: ("⏸", "paused"),
    State.DOWN: ("✗", "bad"),
    State.DRAINING: ("◌", "dim"),
    State.UNKNOWN: ("?", "dim"),
    State.MIXED: ("◑", ""),
}


def state_mark(state: State) -> tuple[str, str]:
    """A state's shape, one cell wide, and the style of its word."""
    return _MARKS[state]


def bar_style(used: float, limit: float) -> str:
    """What a used share means: plenty is left, its end is near, or nothing is left."""
    if used >= limit:
        return "held"
    return "warn" if used >= NEAR_END * limit else "bar"


def bar(used: float | None, limit: float | None, width: int) -> Cell:
    """What is used of a limit, in `width` cells; `-` where that is not known.

    A bar is full only when nothing is left, and empty only when nothing is used.
    """
    if used is None or limit is None:
        return UNKNOWN
    if used >= limit:
        return ((_FULL * width, bar_style(used, limit)),)
    steps = 2 * width
    filled = 0 if used <= 0 else min(max(round(used / limit * steps), 1), steps - 1)
    drawn = _FULL * (filled // 2) + _HALF * (filled % 2)
    return ((drawn, bar_style(used, limit)), (_TRACK * (width - len(drawn)), "faint"))


def sparkline(values: Sequence[float | None], width: int, *, top: float | None = None) -> Cell:
    """The newest `width` values, the last at the right; unknown ones are gaps, nought is a line at the bottom.

    top: the value that is as high as can be drawn, by default the highest shown.
    """
    shown = list(values[-width:]) if width > 0 else []
    known = [value for value in shown if value is not None]
    highest = max([*known, 0.0]) if top is None else top
    drawn = "".join(" " if value is None else _level(value, highest) for value in shown)
    return ((" " * (width - len(drawn)) + drawn, "bar"),)


def _level(value: float, highest: float) -> str:
    if not value > 0 or not highest > 0:
        return _LEVELS[0]
    share = value / highest
    if not share < 1:
        return _LEVELS[-1]
    # What is more than nothing stands above the line of nought.
    return _LEVELS[1 + int(share * (len(_LEVELS) - 2) + 0.5)]


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar as a cell of a table, as wide as its column."""

    used: float | None
    limit: float | None

    def draw(self, width: int) -> Cell:
        """The bar."""
        return bar(self.used, self.limit, width)


@dataclass(frozen=True, slots=True)
class Spark:
    """A sparkline as a cell of a table, as wide as its column."""

    values: tuple[float | None, ...]
    top: float | None = None

    def draw(self, width: int) -> Cell:
        """The sparkline."""
        return sparkline(self.values, width, top=self.top)
