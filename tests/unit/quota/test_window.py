"""The arithmetic of windows, against a list of units and their instants."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qctl.quota.policy import BUCKETS, LINGER_NS, Limit
from qctl.quota.window import Claim, LimitReading, Reading, Spent, bucket_end, expiry, free_at, free_units

S = 10**9
limits = st.builds(Limit, st.integers(0, 40), st.integers(10**6, 100 * S))
instants = st.integers(0, 200 * S)


@given(limits, instants)
def test_an_instant_is_rounded_up_by_less_than_a_bucket(limit: Limit, at_ns: int) -> None:
    end_ns = bucket_end(at_ns, limit)

    assert at_ns <= end_ns < at_ns + limit.bucket_ns
    assert end_ns % limit.bucket_ns == 0


@given(limits, instants)
def test_a_unit_counts_for_a_period_and_little_longer(limit: Limit, at_ns: int) -> None:
    kept_ns = expiry(at_ns, limit) - at_ns

    # Never less than the period and 200 ppm, and at most a bucket more.
    assert kept_ns * 1_000_000 >= limit.period_ns * 1_000_200
    assert kept_ns <= limit.period_ns * 1_000_200 // 1_000_000 + 1 + limit.bucket_ns


@given(limits)
def test_a_history_is_short(limit: Limit) -> None:
    assert limit.bucket_ns >= 10**6
    assert limit.period_ns <= limit.bucket_ns * BUCKETS
    assert limit.linger_ns <= min(LINGER_NS, limit.period_ns)
    assert 1 <= limit.lease_units <= max(1, limit.units * 2 // 100)


@given(
    st.lists(st.tuples(instants, st.integers(1, 9)), max_size=30),
    instants,
    st.integers(0, 100),
)
def test_spent_units_match_the_list(rows: list[tuple[int, int]], now_ns: int, target: int) -> None:
    spent = Spent.of(sorted(rows))

    def used(at_ns: int) -> int:
        return sum(units for expires_ns, units in rows if expires_ns > at_ns)

    assert spent.used(now_ns) == used(now_ns)
    falls_ns = spent.falls_to(target, now_ns)
    assert falls_ns >= now_ns
    assert used(falls_ns) <= target
    assert falls_ns == now_ns or used(falls_ns - 1) > target


def _reading(parts: list[tuple[Limit, list[int]]], leased: int, blocked_until_ns: int) -> Reading:
    return Reading(
        quota="api",
        limits=tuple(LimitReading(limit, Spent.of(sorted((at, 1) for at in expiries))) for limit, expiries in parts),
        leased={"p": leased},
        blocked_until_ns=blocked_until_ns,
    )


@given(
    st.lists(st.tuples(limits, st.lists(instants, max_size=30)), min_size=1, max_size=3),
    st.integers(0, 20),
    st.one_of(st.just(0), instants),
    instants,
    st.integers(1, 50),
)
def test_free_at_is_the_first_instant_at_which_that_much_is_free(
    parts: list[tuple[Limit, list[int]]], leased: int, blocked_until_ns: int, now_ns: int, wanted: int
) -> None:
    reading = _reading(parts, leased, blocked_until_ns)

    def free(at_ns: int) -> int:
        if at_ns < blocked_until_ns:
            return 0
        return min(limit.units - leased - sum(1 for at in expiries if at > at_ns) for limit, expiries in parts)

    at_ns = free_at(reading, wanted, now_ns)

    assert free_units(reading, now_ns) == free(now_ns)
    if at_ns is None:
        assert free(10**15) < wanted
    else:
        assert at_ns >= now_ns
        assert free(at_ns) >= wanted
        assert at_ns == now_ns or free(at_ns - 1) < wanted


def test_older_claims_go_first_and_all_claims_before_who_has_none() -> None:
    claims = (
        Claim(seq=1, process="p", consumer="a", units=5, expires_ns=100),
        Claim(seq=2, process="q", consumer="a", units=7, expires_ns=100),
        Claim(seq=3, process="p", consumer="b", units=11, expires_ns=50),
    )
    reading = Reading(quota="api", limits=(), claims=claims)

    assert reading.ahead("p", "a", now_ns=0) == 0
    assert reading.ahead("q", "a", now_ns=0) == 5
    assert reading.ahead("p", "b", now_ns=0) == 12
    assert reading.ahead("r", "a", now_ns=0) == 23
    # An expired claim neither stands before others nor keeps its own place.
    assert reading.ahead("r", "a", now_ns=50) == 12
    assert reading.ahead("p", "b", now_ns=50) == 12
