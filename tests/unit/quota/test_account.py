"""The numbers of a quota that people are shown: never over the limit by nature, and dry when nothing may be spent."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import assume, given
from hypothesis import strategies as st

from qctl.quota.account import account
from qctl.quota.foreign import Foreign
from qctl.quota.policy import Limit, Window
from qctl.quota.reset import NEVER_NS, Reset
from qctl.quota.upstream import Span
from qctl.quota.window import LimitReading, Reading, Spent, free_units

S = 10**9
NOW_NS = 100 * S
limits = st.builds(
    Limit, st.integers(0, 40), st.integers(1, 100).map(lambda s: s * S), st.sampled_from([Window.SLIDING, Window.FIXED])
)
instants = st.integers(50 * S, 200 * S)
resets = st.builds(
    lambda since, lo, more, spread: Reset(min(since, lo), Span(lo, lo + more), True, spread),
    *(st.one_of(st.just(NEVER_NS), instants), instants, st.integers(0, 9 * S), st.integers(0, S)),
)
others = st.builds(
    lambda lo, more, until, after: Foreign(lo, lo + more, until, until + after, 0, 0, 0),
    *(st.integers(0, 9), st.integers(0, 5), instants, st.integers(0, 10 * S)),
)
rows = st.lists(st.tuples(st.integers(50 * S, 300 * S), st.integers(1, 9)), max_size=8)


@st.composite
def readings(
    draw: st.DrawFn, *, more_units: int = 0, instants_ns: tuple[int, ...] = (0, NOW_NS, NOW_NS + S)
) -> Reading:
    """A quota as a ledger may have it; a lowered limit may be over. more_units: added to each limit."""
    parts = draw(st.lists(st.tuples(limits, rows), min_size=1, max_size=3, unique_by=lambda part: part[0].period_ns))
    return Reading(
        "twitter",
        tuple(
            LimitReading(
                replace(limit, units=limit.units + more_units),
                Spent.of(sorted(spent)),
                draw(resets),
                foreign=draw(st.one_of(st.none(), others)),
            )
            for limit, spent in parts
        ),
        leased={"me": draw(st.integers(0, 20)), "other": draw(st.integers(0, 20))},
        blocked_until_ns=draw(st.sampled_from(instants_ns)),
    )


def _all(reading: Reading) -> set[int]:
    return {part.limit.period_ns for part in reading.limits}


@given(readings(), st.integers(0, 20))
def test_what_counts_is_what_is_spent_and_out_but_not_what_lies_here(reading: Reading, left: int) -> None:
    mine = min(left, reading.leased["me"])

    found = account(reading, lease_units=mine, shown_ns=_all(reading), now_ns=NOW_NS)

    assert found.lease_units == mine
    assert [one.units + mine for one in found.limits] == list(reading.used(NOW_NS))
    assert found.binding in found.limits
    assert max(0, found.binding.room_units) == min(max(0, one.room_units) for one in found.limits)


@given(readings())
def test_all_used_means_that_nothing_may_be_spent(reading: Reading) -> None:
    # given a process that holds no lease
    found = account(reading, lease_units=0, shown_ns=_all(reading), now_ns=NOW_NS)

    # then it is dry exactly when the limit shown is used up, by others too, or the upstream said no
    assert found.dry == (free_units(reading, NOW_NS) <= 0)
    assert found.dry == (found.binding.room_units <= 0 or found.blocked_until_ns is not None)
    assert (found.blocked_until_ns is not None) == (reading.blocked_until_ns > NOW_NS)


@given(readings())
def test_a_dry_quota_says_the_first_moment_at_which_a_unit_may_be_spent(reading: Reading) -> None:
    found = account(reading, lease_units=0, shown_ns=_all(reading), now_ns=NOW_NS)
    assume(found.dry)

    if found.returns_ns is None:
        # It depends on what is leased, or can never be.
        assert min(part.limit.units for part in reading.limits) <= reading.leased_units
    else:
        assert free_units(reading, found.returns_ns) >= 1
        assert free_units(reading, found.returns_ns - 1) <= 0


@given(readings(more_units=200, instants_ns=(0, NOW_NS)))
def test_another_quota_says_when_the_first_units_return(reading: Reading) -> None:
    found = account(reading, lease_units=0, shown_ns=_all(reading), now_ns=NOW_NS)
    assert not found.dry
    part = next(part for part in reading.limits if part.limit == found.binding.limit)

    if found.returns_ns is None:
        assert part.used(NOW_NS) == 0
    else:
        assert found.returns_ns > NOW_NS
        assert part.used(found.returns_ns) < part.used(found.returns_ns - 1) == part.used(NOW_NS)


@given(readings())
def test_limits_that_only_pace_are_not_shown(reading: Reading) -> None:
    stated = {reading.limits[0].limit.period_ns}

    found = account(reading, lease_units=0, shown_ns=stated, now_ns=NOW_NS)
    unknown = account(reading, lease_units=0, shown_ns=(), now_ns=NOW_NS)

    assert [one.limit for one in found.limits] == [reading.limits[0].limit]
    # But they count: what may be spent is a matter of all of them.
    assert found.dry == (free_units(reading, NOW_NS) <= 0)
    assert len(unknown.limits) == len(reading.limits)


def test_of_two_limits_that_are_used_up_the_one_that_lasts_longer_shows() -> None:
    # given a quarter of an hour and an hour, both used up
    quarter, hour = Limit(300, 900 * S), Limit(1_000, 3_600 * S)
    parts = (LimitReading(quarter, Spent.of([(110 * S, 300)])), LimitReading(hour, Spent.of([(400 * S, 1_000)])))
    reading = Reading("twitter", parts)

    for order in (parts, parts[::-1]):
        found = account(Reading("twitter", order), lease_units=0, shown_ns=_all(reading), now_ns=NOW_NS)

        assert (found.binding.limit, found.returns_ns) == (hour, 400 * S)


def test_a_lowered_limit_shows_what_is_over() -> None:
    reading = Reading("twitter", (LimitReading(Limit(10, 60 * S), Spent.of([(110 * S, 8), (120 * S, 7)])),))

    found = account(reading, lease_units=0, shown_ns={60 * S}, now_ns=NOW_NS)

    assert (found.binding.units, found.binding.room_units, found.dry) == (15, -5, True)
    assert found.returns_ns == 110 * S


def test_the_bucket_of_a_paced_quota_is_not_shown_but_counts() -> None:
    # given one call a second, the last just made, and nearly all of the hour's left
    hour = Limit(3_600, 3_600 * S)
    bucket = LimitReading(Limit(1, S, Window.PACED), empty_ns=NOW_NS + S)
    reading = Reading("twitter", (bucket, LimitReading(hour, Spent.of([(3_700 * S, 1)]))))

    found = account(reading, lease_units=0, shown_ns={S, 3_600 * S}, now_ns=NOW_NS)

    assert [one.limit for one in found.limits] == [hour]
    assert (found.binding.units, found.dry, found.returns_ns) == (1, True, NOW_NS + S)


def test_what_others_have_spent_is_not_ours_and_leaves_less() -> None:
    foreign = Foreign(30, 33, NOW_NS + S, NOW_NS + S, 0, 0, 0)
    part = LimitReading(Limit(100, 60 * S), Spent.of([(110 * S, 20)]), foreign=foreign)

    idle = account(Reading("twitter", (part,)), lease_units=0, shown_ns={60 * S}, now_ns=NOW_NS)
    busy = account(Reading("twitter", (part,), leased={"me": 2}), lease_units=0, shown_ns={60 * S}, now_ns=NOW_NS)
    later = account(Reading("twitter", (part,)), lease_units=0, shown_ns={60 * S}, now_ns=NOW_NS + S)

    assert (idle.binding.units, idle.binding.room_units, idle.binding.foreign) == (20, 50, foreign)
    assert (busy.binding.units, busy.binding.room_units) == (22, 45)
    assert (later.binding.room_units, later.binding.foreign) == (80, None)


def test_a_fixed_limit_says_when_its_next_window_begins() -> None:
    reset = Reset(NEVER_NS, Span(NOW_NS + S, NOW_NS + 2 * S), True, S // 10)
    part = LimitReading(Limit(100, 60 * S, Window.FIXED), Spent.of([(150 * S, 100)]), reset)

    found = account(Reading("twitter", (part,)), lease_units=0, shown_ns={60 * S}, now_ns=NOW_NS)

    assert (found.dry, found.returns_ns, found.binding.resets_ns) == (True,) + (NOW_NS + 2 * S + S // 10,) * 2
