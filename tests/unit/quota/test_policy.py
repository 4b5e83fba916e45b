"""Which sliding limits stand for a policy."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qctl.quota.policy import Limit, Policy, Window, enforced

S = 10**9


def test_sliding_and_fixed_are_enforced_as_they_stand() -> None:
    limits = (Limit(20_000, 3600 * S), Limit(300, 900 * S))

    for window in (Window.SLIDING, Window.FIXED):
        assert enforced(Policy("api", limits, window)) == (Limit(300, 900 * S), Limit(20_000, 3600 * S))


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
    gaps_ns=st.lists(st.integers(0, 2 * S), min_size=1, max_size=60),
)
def test_paced_admits_nothing_that_a_leaky_bucket_refuses(units: int, burst: int, gaps_ns: list[int]) -> None:
    # Given the sliding limits that stand for a paced policy, and a caller who uses them up as soon as it may
    period_ns = 10 * S
    limits = enforced(Policy("api", (Limit(units, period_ns),), Window.PACED, burst_units=burst))
    calls: list[int] = []
    now_ns = 0
    level = 0.0
    for gap_ns in gaps_ns:
        now_ns += gap_ns
        # When they admit a call
        if all(sum(1 for at in calls if at > now_ns - limit.period_ns) < limit.units for limit in limits):
            # Then a bucket that leaks `units` a period has room for it
            passed = now_ns - calls[-1] if calls else 0
            level = max(0.0, level - passed * units / period_ns) + 1
            assert level <= burst + 1e-6
            calls.append(now_ns)
