"""The end of a command that ends by itself, as an operator says it."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, tzinfo

from qctl.units import MAX_DURATION_S

_CLOCK = re.compile(r"(\d{1,2}):(\d\d)(?::(\d\d))?", re.ASCII)
EXPECTED = "expected a time such as 14:00, 2026-11-23T14:00 or 2026-11-23T14:00Z"


def parse_until(text: str, now_s: float, zone: tzinfo | None = None) -> datetime:
    """The instant that is meant, with its zone. `14:00` is the next time that it is so on the operator's clock.

    zone: the operator's, in which times are that name none; None: this machine's. Raises ValueError for what is no
    time, has passed or is more than a year ahead.
    """
    text, now = text.strip(), datetime.fromtimestamp(now_s, UTC).astimezone(zone)
    if found := _CLOCK.fullmatch(text):
        until = _next(now, zone, *(int(part or 0) for part in found.groups()))
    else:
        try:
            given = datetime.fromisoformat(text)
        except ValueError:
            raise ValueError(f"{EXPECTED}, found {text[:40]!r}") from None
        if len(text) < len("2026-11-23T14"):
            raise ValueError(f"{EXPECTED}: a day alone has no time, found {text!r}")
        until = given if given.tzinfo is not None else _local(given, zone)
    try:
        ahead_s = (until - now).total_seconds()
    except OverflowError:
        raise ValueError(f"{EXPECTED}, found {text!r}") from None
    if ahead_s <= 0:
        raise ValueError(f"{text} has passed: it is {now:%Y-%m-%d %H:%M:%S %Z} now")
    if ahead_s > MAX_DURATION_S:
        raise ValueError(f"{text} is more than a year ahead")
    return until


def _next(now: datetime, zone: tzinfo | None, hour: int, minute: int, second: int) -> datetime:
    """The next time that a clock in the operator's zone shows this."""
    try:
        today = now.replace(tzinfo=None, hour=hour, minute=minute, second=second, microsecond=0)
    except ValueError:
        raise ValueError(f"{EXPECTED}, found {hour}:{minute:02d}") from None
    if today > now.replace(tzinfo=None) and (until := _local(today, zone)) > now:
        return until
    return _local(today + timedelta(days=1), zone)


def _local(naive: datetime, zone: tzinfo | None) -> datetime:
    """What a clock shows in a zone, by the rules that hold there on that day; ValueError where it never shows it."""
    try:
        local = naive.replace(tzinfo=zone) if zone is not None else naive.astimezone()
        shown = local.astimezone(UTC).astimezone(zone)
    except (OverflowError, OSError, ValueError):
        raise ValueError(f"{EXPECTED}, found {naive.isoformat()!r}") from None
    if shown.replace(tzinfo=None) != naive:
        raise ValueError(f"{naive:%Y-%m-%d %H:%M:%S} is never: the clock is put forward over it")
    return local
