"""The quotas of a host, and what its tasks cost, from what each of its processes says. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from qctl.control.quota_reading import CostReading, QuotaReading
from qctl.control.reading import Reading

#: Readings of one host that are this much older than its newest tell nothing about the same moment. In the log they
#: may be five seconds apart, since that often a process reports to its supervisor.
SAME_MOMENT_S = 7.0


def host_quotas(readings: Iterable[Reading]) -> tuple[QuotaReading, ...]:
    """The quotas of one host, from the readings of its processes; in the words of the newest.

    What each process has leased and not used is taken out of `used`, and is in `leased`. Readings that are
    SAME_MOMENT_S older than the newest do not count: the process may be gone, its lease with it. For a second it may be
    off by a lease or two, which are at most 2 % of the limit each.
    """
    found: dict[str, QuotaReading] = {}
    leased: dict[str, int] = {}
    for reading in _of_one_moment(readings):
        for quota in reading.quotas:
            found.setdefault(quota.name, quota)
            leased[quota.name] = leased.get(quota.name, 0) + quota.leased
    return tuple(_less(quota, leased[name] - quota.leased) for name, quota in found.items())


def _less(quota: QuotaReading, units: int) -> QuotaReading:
    """With `units` that were taken for used and are in the hands of other processes."""
    if not units:
        return quota
    counted = max(0, quota.used + quota.over - units)
    limits = tuple(replace(one, used=max(0, one.used - units)) for one in quota.limits)
    return replace(
        quota,
        used=min(counted, quota.limit),
        over=max(0, counted - quota.limit),
        leased=quota.leased + units,
        limits=limits,
    )


def host_costs(readings: Iterable[Reading]) -> tuple[CostReading, ...]:
    """What the tasks of one host were seen to cost.

    Of several processes that saw tasks of a type, p50 is the one in the middle, each weighing as much as it has seen,
    and p95 the largest; the mean is weighed likewise. Readings count as for `host_quotas`.
    """
    found: dict[tuple[str, str, str], list[CostReading]] = {}
    for reading in _of_one_moment(readings):
        for cost in reading.costs:
            found.setdefault((cost.consumer, cost.type, cost.quota), []).append(cost)
    return tuple(together(costs) for costs in found.values())


def together(costs: Sequence[CostReading]) -> CostReading:
    """Several readings of one type's cost as one, in the declaration of the first; there is one at least."""
    if len(costs) == 1:
        return costs[0]
    tasks = sum(cost.tasks for cost in costs)
    seen, middle = 0, 0
    for cost in sorted(costs, key=lambda cost: cost.p50):
        seen, middle = seen + cost.tasks, cost.p50
        if 2 * seen >= tasks:
            break
    means = [(cost.mean, cost.tasks) for cost in costs if cost.mean is not None]
    weight = sum(tasks for _, tasks in means)
    return replace(
        costs[0],
        tasks=tasks,
        p50=middle,
        p95=max(cost.p95 for cost in costs),
        mean=sum(mean * tasks for mean, tasks in means) / weight if weight else None,
        gave_up=sum(cost.gave_up for cost in costs),
    )


def _of_one_moment(readings: Iterable[Reading]) -> list[Reading]:
    """The newest first, without those that tell of another moment."""
    ordered = sorted(readings, key=lambda reading: reading.at_s, reverse=True)
    return [reading for reading in ordered if reading.at_s > ordered[0].at_s - SAME_MOMENT_S]
