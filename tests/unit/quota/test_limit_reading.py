"""What counts of one limit of each kind and when there is more, against lists of units and fractions."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from qctl.quota import bucket
from qctl.quota.foreign import Foreign
from qctl.quota.policy import Limit, Window
from qctl.quota.reset import NEVER_NS, Reset
from qctl.quota.upstream import Span
from qctl.quota.window import LimitReading, Reading, Spent, free_at, free_units

S = 10**9
instants = st.integers(0, 40 * S)
spans = st.tuples(instants, st.integers(0, 3 * S)).map(lambda pair: Span(pair[0], sum(pair)))
others = st.builds(
    lambda lo, more, until, after: Foreign(lo, lo + more, until, until + after, 0, 0, 0),
    *(st.integers(0, 9), st.integers(0, 5), instants, st.integers(0, 10 * S)),
)


@st.composite
def fixed_limits(draw: st.DrawFn) -> LimitReading:
    limit = Limit(draw(st.integers(0, 20)), 10 * S, Window.FIXED)
    rows = draw(st.lists(st.tuples(instants, st.integers(1, 5)), max_size=12))
    since_ns = draw(st.one_of(st.just(NEVER_NS), instants))
    spread_ns = draw(st.integers(0, S))
    reset = Reset(since_ns, draw(st.one_of(st.none(), spans.filter(lambda it: it.lo_ns >= since_ns))), False, spread_ns)
    spent = Spent.of(sorted((at_ns + limit.kept_ns, units) for at_ns, units in rows))
    return LimitReading(limit, spent, reset, foreign=draw(st.one_of(st.none(), others)))


@st.composite
def paced_limits(draw: st.DrawFn) -> LimitReading:
    limit = Limit(draw(st.integers(1, 20)), 10 * S, Window.PACED)
    return LimitReading(limit, empty_ns=draw(instants), foreign=draw(st.one_of(st.none(), others)))


readings = st.one_of(fixed_limits(), paced_limits())


def count(part: LimitReading, now_ns: int) -> int:
    """Units that count, by the definition."""
    if part.limit.window is Window.PACED:
        return -(-max(0, part.empty_ns - now_ns) // part.limit.interval_ns)
    begins_ns = part.reset.since_ns
    if part.reset.next and now_ns >= part.reset.next.hi_ns + part.reset.spread_ns:
        begins_ns = part.reset.next.lo_ns
    through = (0, *part.spent.through)
    rows = [(at, n - m) for at, m, n in zip(part.spent.expiries, through, through[1:], strict=False)]
    return sum(n for at, n in rows if at > now_ns and at - part.limit.kept_ns >= begins_ns)


def others_have(part: LimitReading, now_ns: int, *, idle: bool) -> int:
    """Units that others have spent, beside what of it is in a bucket already."""
    if part.foreign is None:
        return 0
    counted = part.foreign.lo_units if part.limit.window is Window.PACED else 0
    return max(0, part.foreign.kept_off(now_ns, idle=idle) - counted)


@given(readings, instants, st.integers(0, 25))
def test_what_counts_and_when_it_has_fallen(part: LimitReading, now_ns: int, units: int) -> None:
    falls_ns = part.falls_to(units, now_ns)

    assert part.used(now_ns) == count(part, now_ns)
    assert falls_ns >= now_ns
    assert count(part, falls_ns) <= units
    assert falls_ns == now_ns or count(part, falls_ns - 1) > units


@given(readings, instants)
def test_returns_are_all_that_counts_each_at_its_first_instant(part: LimitReading, now_ns: int) -> None:
    left, before_ns = count(part, now_ns), now_ns

    assert part.next_return(now_ns) == next((at_ns for at_ns, _ in part.returns(now_ns)), None)
    for at_ns, units in part.returns(now_ns):
        assert units > 0
        assert at_ns > before_ns
        assert count(part, at_ns - 1) == left
        left, before_ns = left - units, at_ns
        assert count(part, at_ns) == left
    assert left == 0


@given(st.lists(readings, min_size=1, max_size=3), st.integers(0, 8), instants, instants, st.integers(1, 12))
def test_free_at_is_the_first_instant_whatever_the_kind_and_others_spend(
    parts: list[LimitReading], leased: int, probing_until_ns: int, now_ns: int, wanted: int
) -> None:
    reading = Reading("api", tuple(parts), leased={"p": leased} if leased else {}, probing_until_ns=probing_until_ns)

    def free(at_ns: int) -> int:
        if leased and at_ns < probing_until_ns:
            return 0
        return min(
            part.limit.units - leased - count(part, at_ns) - others_have(part, at_ns, idle=not leased) for part in parts
        )

    at_ns = free_at(reading, wanted, now_ns)

    assert free_units(reading, now_ns) == free(now_ns)
    if at_ns is None:
        assert free(10**15) < wanted
    else:
        assert at_ns >= now_ns
        assert free(at_ns) >= wanted
        assert at_ns == now_ns or free(at_ns - 1) < wanted


@given(
    st.integers(1, 12),
    st.integers(1, 20 * S),
    st.lists(st.tuples(st.integers(0, S), st.integers(1, 3)), min_size=1, max_size=20),
)
def test_a_bucket_is_as_full_as_what_was_put_in_has_not_run_out(
    units: int, period_ns: int, puts: list[tuple[int, int]]
) -> None:
    limit = Limit(units, period_ns, Window.PACED)
    interval_ns = limit.interval_ns

    # Given an exact bucket that loses a unit an interval
    level, now_ns, empty_ns = Fraction(0), 0, 0
    for gap_ns, count_units in puts:
        now_ns += gap_ns
        level = max(Fraction(0), level - Fraction(gap_ns, interval_ns)) + count_units
        empty_ns = bucket.added(empty_ns, {now_ns: count_units}, limit)

        assert bucket.level(empty_ns, limit, now_ns) == -(-level // 1)
    # And the interval is the period's part, stretched, and rounded up by less than a nanosecond
    assert 0 <= interval_ns - Fraction(limit.kept_ns, units) < 1


@given(st.lists(st.tuples(st.integers(0, 9 * S), st.integers(1, 3)), min_size=2, max_size=12))
def test_what_is_entered_out_of_order_makes_a_bucket_only_fuller(puts: list[tuple[int, int]]) -> None:
    limit = Limit(3, 2 * S, Window.PACED)
    in_order = late = 0
    for at_ns, units in sorted(puts):
        in_order = bucket.added(in_order, {at_ns: units}, limit)
    for at_ns, units in puts:
        late = bucket.added(late, {at_ns: units}, limit)

    assert late >= in_order
