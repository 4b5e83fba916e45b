"""Durations, rates, counts and sizes: parse and print.

The one place that knows how `20000/h`, `250ms` and `1MiB` are written. Durations are seconds as float in the code
(`_s`), windows are whole nanoseconds (`_ns`) because the ledger adds them up.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

NS_PER_S = 1_000_000_000
#: Largest number of units a limit may have; keeps every sum well inside SQLite's 64-bit integers.
MAX_UNITS = 10**12
#: Longest duration accepted anywhere, a bound against typing errors.
MAX_DURATION_S = 366 * 86_400.0

_UNIT_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_DURATION = re.compile(r"(\d{1,12})(ms|s|m|h|d)", re.ASCII)
_RATE = re.compile(r"(\d{1,13})/(\d{0,9})(s|m|h|d)", re.ASCII)
_SIZE = re.compile(r"(\d{1,12})(B|KiB|MiB|GiB)?", re.ASCII)
_SIZE_BYTES = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


@dataclass(frozen=True, slots=True)
class Rate:
    """At most `units` in each `period_ns`. Prints as it is written in the inventory: `20000/h`, `300/15m`."""

    units: int
    period_ns: int

    def __str__(self) -> str:
        period = format_duration(self.period_ns / NS_PER_S)
        return f"{self.units}/{period[1:] if period in ('1s', '1m', '1h', '1d') else period}"

    @property
    def per_second(self) -> float:
        """Units a second, averaged over the period."""
        return self.units * NS_PER_S / self.period_ns


def parse_duration(text: str) -> float:
    """Seconds of `250ms`, `30s`, `15m`, `1h` or `1d`. Raises ValueError saying what was expected."""
    found = _DURATION.fullmatch(text.strip())
    if not found:
        raise ValueError(f"expected a duration such as 250ms, 30s, 15m, 1h or 1d, found {text!r}")
    seconds = int(found[1]) * _UNIT_MS[found[2]] / 1000
    if seconds > MAX_DURATION_S:
        raise ValueError(f"a duration is at most 366d, found {text!r}")
    return seconds


def format_duration(seconds: float) -> str:
    """The shortest exact spelling of a duration in whole milliseconds: 90.0 is `90s`, 900.0 `15m`, 0.25 `250ms`."""
    milliseconds = round(seconds * 1000)
    for unit in ("d", "h", "m", "s"):
        if milliseconds and milliseconds % _UNIT_MS[unit] == 0:
            return f"{milliseconds // _UNIT_MS[unit]}{unit}"
    return f"{milliseconds}ms" if milliseconds else "0s"


def parse_rate(text: str) -> Rate:
    """A rate `N/PERIOD`, PERIOD being s, m, h, d or a count of them. Raises ValueError saying what was expected."""
    found = _RATE.fullmatch(text.strip())
    if not found:
        raise ValueError(f"expected a rate N/PERIOD such as 20000/h or 900/15m, found {text!r}")
    units, count = int(found[1]), int(found[2] or 1)
    period_ms = count * _UNIT_MS[found[3]]
    if not 1 <= units <= MAX_UNITS:
        raise ValueError(f"a limit is between 1 and 10^12 units, found {text!r}")
    if period_ms <= 0 or period_ms / 1000 > MAX_DURATION_S:
        raise ValueError(f"a period is between 1s and 366d, found {text!r}")
    return Rate(units, period_ms * 1_000_000)


def parse_size(text: str) -> int:
    """Bytes of `64KiB`, `1MiB` or a plain number. Raises ValueError saying what was expected."""
    found = _SIZE.fullmatch(text.strip())
    if not found:
        raise ValueError(f"expected a size such as 64KiB or 1MiB, found {text!r}")
    return int(found[1]) * _SIZE_BYTES[found[2] or "B"]


def format_size(size_bytes: int) -> str:
    """The shortest exact spelling of a size: 1048576 is `1MiB`, 1000 is `1000B`."""
    for unit in ("GiB", "MiB", "KiB"):
        if size_bytes and size_bytes % _SIZE_BYTES[unit] == 0:
            return f"{size_bytes // _SIZE_BYTES[unit]}{unit}"
    return f"{size_bytes}B"
