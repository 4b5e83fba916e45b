"""Quotas in words: what somebody else spends of one, by the API's own count, and how its limits move. Pure."""

from __future__ import annotations

from collections.abc import Callable

from qctl.control.quota_reading import FIXED, PACED, SLIDING, ForeignReading
from qctl.ops.status import QuotaRow
from qctl.units import Rate, parse_rate

SOMEBODY_ELSE = "someone else"


def shown(foreign: ForeignReading | None) -> ForeignReading | None:
    """What is worth a person's attention: more than a trifle, and known since when."""
    return foreign if foreign is not None and foreign.units > 0 and foreign.since_s is not None else None


def amount(foreign: ForeignReading) -> str:
    """`212`, or `212 to 260` where calls under way may be counted in it or not."""
    return _from_to(foreign.units, foreign.most)


def _from_to(least: int, most: int) -> str:
    return f"{least}" if least == most else f"{least} to {most}"


def by_somebody_else(foreign: ForeignReading, limit_units: int | None, at: Callable[[float], str]) -> str:
    """`the API counts 812 of 1000 used; this host spent 600; 212 by someone else, since 14:02:07 CET`.

    limit_units: of our limit. Where the API's own is lower, what is missing of ours may be nobody's: that is said. at:
    an instant in words.
    """
    ours = limit_units or 0
    theirs = ours if foreign.limit is None else foreign.limit
    parts = []
    if theirs and foreign.remaining is not None:
        parts.append(f"the API counts {max(0, theirs - foreign.remaining)} of {theirs} used")
    parts.append(f"this host spent {foreign.ours}")
    if theirs < ours:
        parts.append(f"its limit is lower than the {ours} of the inventory")
    # What is missing of ours, as a part of theirs.
    least, most = (max(0, units + theirs - ours) for units in (foreign.units, foreign.most))
    if most:
        since = f", since {at(foreign.since_s)}" if foreign.since_s is not None else ""
        parts.append(f"{_from_to(least, most)} by {SOMEBODY_ELSE}{since}")
    return "; ".join(parts)


def in_short(foreign: ForeignReading, limit_units: int | None, at: Callable[[float], str]) -> str:
    """The same for a table: `212 since 14:02:07 CET; API 812/1000, here 600`."""
    since = f" since {at(foreign.since_s)}" if foreign.since_s is not None else ""
    theirs = foreign.limit if foreign.limit is not None else limit_units
    counted = ""
    if theirs is not None and foreign.remaining is not None:
        counted = f"API {max(0, theirs - foreign.remaining)}/{theirs}, "
    return f"{amount(foreign)}{since}; {counted}here {foreign.ours}"


def pace_per_s(row: QuotaRow) -> float | None:
    """Units a second that a paced quota admits, in the long run; None for any other, and for what cannot be read."""
    return min((rate.units / (rate.period_ns / 1e9) for rate in _paced(row)), default=None)


def burst_units(row: QuotaRow) -> int | None:
    """Units that a paced quota admits at once: no more than the least of its limits; None for any other."""
    return min([row.burst_units, *(rate.units for rate in _paced(row))]) if row.window == PACED else None


def _paced(row: QuotaRow) -> list[Rate]:
    """The limits of a paced quota; none of any other, and none where one cannot be read."""
    try:
        return [parse_rate(rate) for rate in row.rates] if row.window == PACED else []
    except ValueError:
        return []


def window_words(row: QuotaRow, at: Callable[[float], str]) -> str:
    """How its limits move: `fixed, resets 15:00:00 CET`, `paced, 5.6/s, burst 4`, `sliding`."""
    if row.window == FIXED:
        return f"{FIXED}, resets {at(row.resets_at_s)}" if row.resets_at_s is not None else FIXED
    pace = pace_per_s(row)
    if pace is not None:
        return f"{PACED}, {pace:.3g}/s, burst {burst_units(row)}"
    return row.window or SLIDING
