"""The only clock that the ledger trusts: time since boot, sleep included, and which boot it was.

The wall clock may be set, forwards and backwards, by anyone; the boot clock only ever runs, on all processors alike. It
starts anew at a reboot, so an instant means something only together with its boot's id.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qctl.errors import StateError

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
#: A process in a time namespace of its own has another boot clock than its host, by a constant.
_OFFSETS = Path("/proc/self/timens_offsets")


@dataclass(frozen=True, slots=True)
class Clock:
    """`now_ns()`: nanoseconds since boot. `boot_id()`: which boot. Tests pass their own."""

    now_ns: Callable[[], int]
    boot_id: Callable[[], str]


def boot_clock() -> Clock:
    """This machine's clock. Raises StateError where there is none (workers run on Linux)."""
    clock_id = getattr(time, "CLOCK_BOOTTIME", None)
    if clock_id is None or not _BOOT_ID.exists():
        raise StateError("this machine has no boot-time clock with a boot id", hint="Run workers on Linux.")
    boot_id = _BOOT_ID.read_text(encoding="ascii").strip() + _offset()
    read = time.clock_gettime_ns
    return Clock(now_ns=lambda: read(clock_id), boot_id=lambda: boot_id)


def _offset() -> str:
    try:
        lines = [line.split() for line in _OFFSETS.read_text(encoding="ascii").splitlines()]
    except OSError:
        return ""
    return "".join(
        f"+{seconds}.{ns}" for name, seconds, ns in lines if name == "boottime" and (seconds, ns) != ("0", "0")
    )
