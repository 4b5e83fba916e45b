"""Which limit of a quota an API speaks of. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from qctl.quota.policy import Limit, Window
from qctl.quota.upstream import Told


def limit_of(told: Told, limits: Iterable[Limit]) -> Limit | None:
    """Which limit of a quota this is about: by its period, else by its units, else the only one, else the only one that
    its reset fits in. None where it cannot be told.

    Of a paced quota it is the one with the nearest units, the bucket where none are said: what remains of a rate, taken
    for what remains of a bucket, says nothing, but the other way round it would look like spending of somebody else.
    """
    among = sorted(limits, key=lambda limit: limit.period_ns)
    rates = [limit for limit in among if limit.window is not Window.PACED]
    if told.period_ns is not None:
        return next((limit for limit in rates if limit.period_ns == told.period_ns), None)
    said_units = told.limit_units
    if (same := next((limit for limit in (*rates, *among) if limit.units == said_units), None)) is not None:
        return same
    if told.exact or not among:
        return None
    if len(rates) < len(among):
        return min(among, key=lambda limit: limit.units if said_units is None else abs(limit.units - said_units))
    if len(rates) == 1:
        return rates[0]
    if told.reset is None:
        return None
    ahead_ns = told.reset.lo_ns - told.received_ns
    fitting = [limit for limit in rates if ahead_ns <= limit.period_ns]
    return fitting[0] if len(fitting) == 1 else None
