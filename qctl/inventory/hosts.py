"""Host names: the ranges in the inventory, such as `web-[03-40]`."""

from __future__ import annotations

import re

from qctl.inventory.leaves import NAME, not_a_name

#: Hosts one inventory may have.
MAX_HOSTS = 10_000
TOO_MANY = f"an inventory has at most {MAX_HOSTS:,} hosts"

_RANGE = re.compile(r"([^\[\]]*)\[(\d{1,9})-(\d{1,9})\]([^\[\]]*)", re.ASCII)


def expand(pattern: str, *, most: int = MAX_HOSTS) -> tuple[str, ...]:
    """The names, ascending, that a key of `hosts` stands for. Raises ValueError saying what was expected.

    `web-[03-40]` keeps its zeros: web-03, web-04, ..., web-40.
    """
    if "[" not in pattern and "]" not in pattern:
        names: tuple[str, ...] = (pattern,)
        if most < 1:
            raise ValueError(TOO_MANY)
    else:
        found = _RANGE.fullmatch(pattern)
        if not found:
            raise ValueError("expected one range of numbers in a host's name, such as web-[03-40]")
        before, low, high, after = found.groups()
        if low.startswith("0") and len(low) > 1 and len(low) != len(high):
            raise ValueError("expected both ends of the range with the same number of digits, such as [03-40]")
        if int(high) < int(low):
            raise ValueError("expected the smaller end of the range first, such as [03-40]")
        if int(high) - int(low) >= most:
            raise ValueError(TOO_MANY)
        width = len(low) if low.startswith("0") else 0
        names = tuple(f"{before}{number:0{width}d}{after}" for number in range(int(low), int(high) + 1))
    if not NAME.fullmatch(names[-1]):
        raise ValueError(not_a_name("host", names[-1]))
    return names
