"""Which limits stand for a policy, and that they keep to it."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qctl.quota import bucket
from qctl.quota.policy import Limit, Policy, Window, enforced
from qctl.quota.window import LimitReading, Spent, expiry

S = 10**9


def test_sliding_and_fixed_are_enforced_as_they_stand() -> None:
    limits = (Limit(20_000, 3600 * S), Limit(300, 900 * S))

    for window in (Window.SLIDING, Window.FIXED):
        assert enforced(Policy("api", limits, window)) == (
            Limit(300, 900 * S, window),
            Limit(20_000, 3600 * S, window),
        )


def test_paced_is_a_sliding_limit_and_a_bucket_of_the_slowest_rate() -> None:
    limits = (Limit(20_000, 3600 * S), Limit(300, 900 * S))

    assert enforced(Policy("api", limits, Window.PACED, burst_units=4)) == (
        Limit(4, 12 * S, Window.PACED),
        Limit(300, 900 * S),
        Limit(20_000, 3600 * S),
    )


def test_a_bucket_as_large_as_its_limit_is_left_out() -> None:
    limit = Limit(5, 10 * S)

    assert enforced(Policy("api", (limit,), Window.PACED, burst_units=5)) == (limit,)
    assert enforced(Policy("api", (Limit(0, S),), Window.PACED)) == (Limit(0, S),)


def test_of_two_limits_of_one_period_the_tighter_holds() -> None:
    assert enforced(Policy("api", (Limit(5, S), Limit(3, S)))) == (Limit(3, S),)


def test_a_policy_needs_a_limit_and_a_limit_a_period() -> None:
    with pytest.raises(ValueError, match="at least one limit"):
        Policy("api", ())
    with pytest.raises(ValueError, match="period"):
        Limit(1, 0)


@given(
    units=st.integers(1, 50),
    burst=st.integers(1, 8),
    calls=st.lists(
        st.tuples(st.integers(0, 2 * S), st.integers(0, 3 * S), st.integers(0, 100)), min_size=1, max_size=60
    ),
)
def test_paced_admits_nothing_that_a_leaky_bucket_refuses(
    units: int, burst: int, calls: list[tuple[int, int, int]]
) -> None:
    # Given the limits that stand for a paced policy, and calls that may each be counted at any instant until they end
    limits = enforced(Policy("api", (Limit(units, 10 * S),), Window.PACED, burst_units=burst))
    parts = {limit: LimitReading(limit) for limit in limits}
    counted: list[int] = []
    running: list[int] = []
    now_ns = 0
    for gap_ns, latency_ns, per_cent in calls:
        now_ns += gap_ns
        # When those that have ended are settled, and another is admitted
        for end_ns in sorted(it for it in running if it <= now_ns):
            running.remove(end_ns)
            parts = {limit: entered(part, end_ns) for limit, part in parts.items()}
        if all(limit.units - part.used(now_ns) - len(running) >= 1 for limit, part in parts.items()):
            running.append(now_ns + latency_ns)
            counted.append(now_ns + latency_ns * per_cent // 100)
    # Then a bucket that leaks `units` a period has room for each where it is counted
    level, before_ns = Fraction(0), 0
    for at_ns in sorted(counted):
        level = max(Fraction(0), level - Fraction((at_ns - before_ns) * units, 10 * S)) + 1
        before_ns = at_ns
        assert level <= burst


def entered(part: LimitReading, at_ns: int) -> LimitReading:
    """With one more unit settled at that instant."""
    if part.limit.window is Window.PACED:
        return replace(part, empty_ns=bucket.added(part.empty_ns, {at_ns: 1}, part.limit))
    rows = [(it, 1) for it in (*part.spent.expiries, expiry(at_ns, part.limit))]
    return replace(part, spent=Spent.of(sorted(rows)))
