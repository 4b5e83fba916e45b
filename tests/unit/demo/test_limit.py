"""The API's limit: at most N granted in any window, and as many as that whenever they are asked for."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qctl.demo.limit import SlidingLimit


def test_given_a_spent_limit_when_one_window_has_passed_then_the_next_call_is_granted_and_not_a_nanosecond_before() -> (
    None
):
    limit = SlidingLimit(limit_units=2, window_ns=100)

    rulings = [limit.call(at_ns).granted for at_ns in (0, 10, 20, 99, 100, 109, 110)]

    assert rulings == [True, True, False, False, True, False, True]


def test_given_a_refusal_when_told_the_reset_then_it_is_when_the_oldest_granted_call_leaves_the_window() -> None:
    limit = SlidingLimit(limit_units=1, window_ns=100)
    limit.call(7)

    refused = limit.call(50)

    assert (refused.granted, refused.remaining_units, refused.reset_in_ns) == (False, 0, 57)


@given(
    limit_units=st.integers(1, 6),
    window_ns=st.integers(1, 50),
    gaps_ns=st.lists(st.integers(0, 30), max_size=80),
)
def test_a_call_is_granted_exactly_when_fewer_than_the_limit_were_granted_in_the_window_that_ends_with_it(
    limit_units: int, window_ns: int, gaps_ns: list[int]
) -> None:
    limit = SlidingLimit(limit_units=limit_units, window_ns=window_ns)
    granted: list[int] = []
    now_ns = 0
    for gap_ns in gaps_ns:
        now_ns += gap_ns
        in_window = sum(now_ns - window_ns < at_ns <= now_ns for at_ns in granted)

        ruling = limit.call(now_ns)

        assert ruling.granted == (in_window < limit_units)
        if ruling.granted:
            granted.append(now_ns)
            in_window += 1
        assert ruling.remaining_units == limit_units - in_window
        assert 0 < ruling.reset_in_ns <= window_ns
