"""Instants as people and programs read them. Inside they are seconds since 1970, as float."""

from __future__ import annotations

from datetime import UTC, datetime, tzinfo

from qctl.broker.message import utc


def iso(at_s: float | None) -> str | None:
    """As in JSON: UTC, in whole milliseconds, `2026-11-22T21:00:00.123Z`; None for an instant out of this calendar."""
    if at_s is None:
        return None
    try:
        return utc(at_s)
    except (OverflowError, OSError, ValueError):
        return None


def instant(text: str | None) -> float | None:
    """What `iso` wrote, or somebody else as ISO 8601 with a zone; None for anything else."""
    try:
        moment = datetime.fromisoformat(text or "")
        return moment.timestamp() if moment.tzinfo else None
    except (ValueError, OverflowError):
        return None


def clock(at_s: float, *, now_s: float, zone: tzinfo | None = None) -> str:
    """As in a sentence: `14:00:07 CET`, with its day when that is not today's. zone None: this machine's."""
    try:
        moment, today = (datetime.fromtimestamp(each_s, UTC).astimezone(zone) for each_s in (at_s, now_s))
    except (OverflowError, OSError, ValueError):
        return "an instant that is out of this calendar"
    day = "" if moment.date() == today.date() else f"{moment:%Y-%m-%d} "
    return f"{day}{moment:%H:%M:%S %Z}"


def span(seconds: float) -> str:
    """A length of time at a glance: `0.4s`, `12s`, `3m12s`, `2h05m`, `9d04h`."""
    if seconds < 0:
        return f"-{span(-seconds)}"
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3_600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86_400:
        return f"{whole // 3_600}h{whole % 3_600 // 60:02d}m"
    return f"{whole // 86_400}d{whole % 86_400 // 3_600:02d}h"


def local(at_s: float, *, zone: tzinfo | None = None) -> str:
    """As in a list: day, time and zone, `2026-11-22 14:00:07 CET`. zone None: this machine's."""
    try:
        return f"{datetime.fromtimestamp(at_s, UTC).astimezone(zone):%Y-%m-%d %H:%M:%S %Z}"
    except (OverflowError, OSError, ValueError):
        return "?"


def precise(at_s: float, *, zone: tzinfo | None = None) -> str:
    """A clock to the millisecond, `14:00:07.123`. zone None: this machine's."""
    try:
        return f"{datetime.fromtimestamp(at_s, UTC).astimezone(zone):%H:%M:%S.%f}"[:-3]
    except (OverflowError, OSError, ValueError):
        return "?"
