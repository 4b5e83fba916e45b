"""A quota of a host as `simulate` wants it: which limits stand for it, and what counts of them at the start. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from qctl.control.quota_reading import LimitReading, QuotaReading
from qctl.inventory.model import Quota
from qctl.ops.plan_question import Rates
from qctl.quota.page import LONG_AGO_NS, History, Stock
from qctl.quota.policy import Limit, Policy, Window, enforced
from qctl.quota.upstream import Span
from qctl.units import NS_PER_S


def stock(policy: Policy, reading: QuotaReading | None, *, running_units: int, at_ns: int, now_s: float) -> Stock:
    """What counts of a quota, as a reading told it at `at_ns`; running_units: reserved by tasks that run, left out."""
    told = {round(one.period_s * NS_PER_S): one for one in reading.limits} if reading else {}
    blocked_s = reading.blocked_until_s if reading else None
    shift_ns = at_ns - round(now_s * NS_PER_S)
    return Stock(
        policy.name,
        tuple(_history(limit, told, reading, running_units, at_ns, shift_ns) for limit in enforced(policy)),
        blocked_until_ns=round(blocked_s * NS_PER_S) + shift_ns if blocked_s is not None else LONG_AGO_NS,
    )


def used_of(stock: Stock, running_units: int) -> tuple[int, int]:
    """Units that count at the instant 0, and the limit: of the one that binds first."""
    counted = [
        (running_units + sum(units for until_ns, units in one.rows if until_ns > 0), one.limit.units)
        for one in stock.limits
        if one.limit.window is not Window.PACED
    ]
    return min(counted, key=lambda one: one[1] - one[0])


def _history(
    limit: Limit,
    told: Mapping[int, LimitReading],
    reading: QuotaReading | None,
    running_units: int,
    at_ns: int,
    shift_ns: int,
) -> History:
    if limit.window is Window.PACED or reading is None or not told:
        return History(limit, empty_ns=at_ns)
    one = told.get(limit.period_ns)
    if one is None:
        return History(limit, tuple(_carried_over(limit, told, running_units, at_ns)))
    rows = list(_rows(one, limit, running_units, at_ns))
    foreign = reading.foreign
    if foreign is not None and foreign.units and round(foreign.period_s * NS_PER_S) == limit.period_ns:
        until_ns = at_ns + limit.kept_ns if foreign.until_s is None else round(foreign.until_s * NS_PER_S) + shift_ns
        rows.append((until_ns, foreign.units))
    resets = None
    if limit.window is Window.FIXED and one.resets_at_s is not None:
        resets_ns = round(one.resets_at_s * NS_PER_S) + shift_ns
        resets = Span(resets_ns, resets_ns)
    return History(limit, tuple(rows), resets)


def _rows(one: LimitReading, limit: Limit, running_units: int, at_ns: int) -> Iterator[tuple[int, int]]:
    """What is spent of a limit, by when it is free again; what is not written down yet was spent just now."""
    told = sum(units for _, units in one.returns)
    yield from ((at_ns + round(in_s * NS_PER_S), units) for in_s, units in one.returns)
    if (just_now := one.used - told - running_units) > 0:
        yield at_ns + limit.kept_ns, just_now


def _carried_over(
    limit: Limit, told: Mapping[int, LimitReading], running_units: int, at_ns: int
) -> Iterator[tuple[int, int]]:
    """The history of the longest period that is told of, under another one. Where that asks for more than anybody
    remembers, what was possible counts as spent, as in the ledger."""
    period_ns, one = max(told.items())
    before = Limit(one.units, period_ns)
    for expires_ns, units in _rows(one, before, running_units, at_ns):
        yield expires_ns - before.kept_ns + limit.kept_ns, units
    for number in range(1, min(limit.period_ns // period_ns + 1, max(1, limit.units // max(1, one.units)) + 1)):
        yield at_ns - number * period_ns + limit.kept_ns, one.units


def policy_of(name: str, rates: Rates, quota: Quota | None, reading: QuotaReading | None) -> Policy:
    window = Window(quota.window.value) if quota else _window(reading)
    burst = quota.burst if quota else reading.burst if reading else 1
    return Policy(name, tuple(Limit(rate.units, rate.period_ns) for rate in rates), window, burst)


def _window(reading: QuotaReading | None) -> Window:
    try:
        return Window(reading.window) if reading else Window.SLIDING
    except ValueError:
        return Window.SLIDING


def least(policy: Policy) -> int:
    """The most that a task can ever have of a quota."""
    return min(limit.units for limit in enforced(policy))
