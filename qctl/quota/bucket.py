"""Arithmetic of leaky buckets, which `paced` limits are. Pure, in whole nanoseconds.

A bucket is one number, `empty_ns`: when it has run empty if nothing is added. A unit counts as in it from its
reservation on (as leased), and runs out from its settlement on. Those who count it earlier see it run out earlier, so
the bucket here is never emptier than theirs, whatever the latency. What is entered out of order only makes it fuller.
"""

from __future__ import annotations

from collections.abc import Mapping

from qctl.quota.policy import Limit


def added(empty_ns: int, units_at: Mapping[int, int], limit: Limit) -> int:
    """When the bucket runs empty after units were settled, by instant."""
    for instant_ns, units in sorted(units_at.items()):
        empty_ns = max(empty_ns, instant_ns) + units * limit.interval_ns
    return empty_ns


def level(empty_ns: int, limit: Limit, now_ns: int) -> int:
    """Units in the bucket at `now_ns`; one that has begun to run out is in it."""
    return -(-max(0, empty_ns - now_ns) // limit.interval_ns)


def falls_to(units: int, empty_ns: int, limit: Limit, now_ns: int) -> int:
    """The earliest instant, not before `now_ns`, at which at most `units` are in the bucket, if nothing is added."""
    return max(now_ns, empty_ns - units * limit.interval_ns)
