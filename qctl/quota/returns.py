"""When what counts against a limit is free again, told in a few numbers. Pure."""

from __future__ import annotations

from itertools import pairwise

from qctl.quota.window import LimitReading

#: Parts that what counts is told in: each is off by half of itself at most, either way.
PARTS = 32


def returns(part: LimitReading, now_ns: int, *, parts: int = PARTS) -> tuple[tuple[int, int], ...]:
    """(instant, units) in ascending order, at most `parts` of them; all the units that are spent, nothing that is out.

    The instant is that at which the middle one of these units is free again.
    """
    used = part.used(now_ns)
    found: dict[int, int] = {}
    edges = [used * number // parts for number in range(parts + 1)]
    for before, after in pairwise(edges):
        if after > before:
            middle = (before + after + 1) // 2
            at_ns = part.falls_to(used - middle, now_ns)
            found[at_ns] = found.get(at_ns, 0) + after - before
    return tuple(found.items())
