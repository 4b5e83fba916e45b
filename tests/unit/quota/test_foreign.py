"""What others have spent, from what remains: an interval that contains the truth, and is believed no longer than it is
worth."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qctl.quota import Limit, Window
from qctl.quota.foreign import SPREAD_NS, UNSAID_MAX_NS, UNSAID_NS, Foreign, blocked_until, heard, report, spread_ns
from tests.unit.quota.model import S

LIMIT = Limit(1000, 20 * S)
#: Of the first answer; each is heard 100 ms after its call was sent.
T0 = 1000 * S
ROUND_TRIP_NS = S // 10


def answer(before: Foreign | None = None, *, remaining: int, ours: tuple[int, int], **others: Any) -> Foreign:
    """An answer that says what remains; ours: the least and the most that it can have counted of us."""
    sent_ns = others.pop("sent_ns", T0)
    return heard(
        before,
        **{
            "limit": LIMIT,
            "window": Window.SLIDING,
            "remaining_units": remaining,
            "limit_units": 1000,
            "least_units": ours[0],
            "most_units": ours[1],
            "sent_ns": sent_ns,
            "received_ns": sent_ns + ROUND_TRIP_NS,
            "now_ns": sent_ns + ROUND_TRIP_NS,
            "reset_ns": None,
            **others,
        },
    )


def kept_off(found: Foreign, *, after_ns: int = 0, idle: bool = False) -> int:
    return found.kept_off(found.received_ns + after_ns, idle=idle)


# -- the interval


@given(
    st.integers(0, 1000),
    st.integers(0, 1000),
    st.integers(0, 1000),
    st.integers(0, 1000),
    st.sampled_from(list(Window)),
)
def test_the_truth_lies_in_the_interval(theirs: int, settled: int, flying: int, counted: int, window: Window) -> None:
    # Given that the API has counted theirs, all of ours that was settled, and some of the calls that are under way
    seen_of_ours = settled + min(counted, flying)
    remaining = max(0, LIMIT.units - theirs - seen_of_ours)
    theirs = min(theirs, max(0, LIMIT.units - seen_of_ours))  # what it refused it has not counted
    found = answer(remaining=remaining, ours=(settled, settled + flying), window=window)

    assert found.lo_units <= theirs
    if window is Window.FIXED or found.lo_units:
        assert theirs <= found.hi_units


def test_with_nothing_under_way_both_ends_meet() -> None:
    found = answer(remaining=600, ours=(100, 100), window=Window.FIXED, reset_ns=T0 + 5 * S)

    assert (found.lo_units, found.hi_units) == (300, 300)


def test_in_the_steady_flow_of_a_sliding_window_nothing_is_kept_off_for_calls_under_way() -> None:
    # Nobody else has spent, and of our eight calls under way the API may have counted any
    found = answer(remaining=100, ours=(892, 900))

    assert (kept_off(found), kept_off(found, idle=True)) == (0, 0)


def test_once_others_were_seen_in_a_sliding_window_the_calls_under_way_may_be_theirs_for_two_windows() -> None:
    seen = answer(remaining=500, ours=(492, 495))
    assert (seen.lo_units, seen.hi_units) == (5, 8)

    soon = answer(seen, remaining=500, ours=(492, 500), sent_ns=T0 + 2 * LIMIT.kept_ns - S)
    late = answer(seen, remaining=500, ours=(492, 500), sent_ns=T0 + 2 * LIMIT.kept_ns + S)

    assert (soon.lo_units, soon.hi_units) == (0, 8)
    assert (late.lo_units, late.hi_units) == (0, 0)


def test_an_upstream_with_a_smaller_limit_binds_as_if_others_had_spent_the_difference() -> None:
    found = answer(remaining=0, limit_units=400, ours=(400, 400))

    assert LIMIT.units - 400 - kept_off(found) == 0


def test_an_upstream_with_a_larger_limit_binds_nothing() -> None:
    assert kept_off(answer(remaining=4600, limit_units=5000, ours=(400, 400))) == 0


def test_what_grew_lately_is_taken_to_go_on_growing_until_the_next_call_is_counted() -> None:
    # Given others who spend 100 a second
    found = answer(remaining=900, ours=(0, 0))
    for second in range(1, 6):
        found = answer(found, remaining=900 - 100 * second, ours=(0, 0), sent_ns=T0 + second * S)
    assert found.lo_units == 600

    # Then some twenty more are likely in the time of two round trips, give or take a few
    assert 16 <= found.hi_units - found.lo_units <= 16 + 20

    # and what does not grow any more gets no margin for long
    for second in range(6, 18):
        found = answer(found, remaining=400, ours=(0, 0), sent_ns=T0 + second * S)
    assert (found.lo_units, found.hi_units) == (600, 600)


def test_all_that_is_found_in_a_bucket_is_new_since_what_was_found_is_in_ours() -> None:
    # Given others who put five a second into a bucket of eight, which the ledger's bucket has seen
    bucket = {"limit": Limit(8, S // 2, Window.PACED), "window": Window.PACED}
    found = answer(remaining=7, ours=(0, 0), **bucket)
    for tenth in range(2, 60, 2):
        found = answer(found, remaining=7, ours=(0, 0), sent_ns=T0 + tenth * S // 10, **bucket)

    # Then one more is likely by the next call, and two would be no surprise
    assert found.lo_units == 1
    assert 2 <= found.hi_units - found.lo_units <= 3


def test_however_fast_others_are_half_of_a_bucket_is_not_kept_off_for_what_may_come() -> None:
    bucket = {"limit": Limit(4, S // 5, Window.PACED), "window": Window.PACED}
    found = answer(remaining=3, ours=(0, 0), **bucket)
    for tenth in range(1, 60):
        found = answer(found, remaining=2, ours=(0, 0), sent_ns=T0 + tenth * S // 10, **bucket)

    assert found.lo_units == 2
    assert found.hi_units - found.lo_units == 2


def test_what_is_seen_for_the_first_time_is_no_growth_and_others_never_have_more_than_all() -> None:
    nothing = answer(remaining=1000, ours=(0, 0))
    found = answer(nothing, remaining=400, ours=(0, 0), sent_ns=T0 + S)
    assert (found.lo_units, found.hi_units) == (600, 600)

    found = answer(found, remaining=10, ours=(0, 0), sent_ns=T0 + 2 * S)
    assert (found.lo_units, found.hi_units) == (990, 1000)


# -- within a window, and beyond


def test_of_calls_that_were_under_way_together_the_one_that_proves_most_counts() -> None:
    fixed = {"window": Window.FIXED, "reset_ns": T0 + 10 * S}
    first = answer(remaining=500, ours=(200, 200), **fixed)

    # The second was sent before the first was answered, and may have been counted before it
    second = answer(first, remaining=510, ours=(200, 260), sent_ns=T0 + ROUND_TRIP_NS - 1, **fixed)

    assert first.lo_units == second.lo_units == 300


def test_however_many_calls_overlap_what_one_answer_says_is_gone_with_a_call_that_was_sent_after_it() -> None:
    # Given a steady flow, each call sent before the last was answered, and one answer out of a mind of its own
    fixed = {"window": Window.FIXED, "reset_ns": T0 + 10 * S}
    found = None
    for call in range(10):
        remaining = 20 if call == 3 else 1000 - call
        found = answer(found, remaining=remaining, ours=(call, call), sent_ns=T0 + call * ROUND_TRIP_NS // 2, **fixed)
        # Then it is believed by those alone that may have been counted before it
        assert (found.lo_units > 900) == (call in (3, 4))


def test_an_overtaken_answer_of_a_fixed_window_may_prove_that_more_was_spent_and_nothing_else() -> None:
    fixed = {"window": Window.FIXED, "reset_ns": T0 + 10 * S}
    newer = answer(remaining=500, ours=(300, 310), sent_ns=T0 + S, **fixed)
    assert (newer.lo_units, newer.hi_units) == (190, 200)

    older = answer(newer, remaining=520, ours=(100, 110), **fixed)

    assert (older.lo_units, older.hi_units) == (370, 370)
    assert answer(newer, remaining=900, ours=(0, 100), **fixed) == newer


def test_a_new_fixed_window_begins_without_what_others_spent_in_the_last() -> None:
    first = answer(remaining=0, ours=(0, 0), window=Window.FIXED, reset_ns=T0 + S)
    assert kept_off(first) == 1000

    assert kept_off(first, after_ns=S) == 0
    second = answer(first, remaining=990, ours=(0, 10), window=Window.FIXED, sent_ns=T0 + 2 * S, reset_ns=T0 + 21 * S)
    assert second.lo_units == 0


def test_in_a_sliding_window_an_answer_that_was_overtaken_says_nothing() -> None:
    newer = answer(remaining=900, ours=(100, 100), sent_ns=T0 + S)

    assert answer(newer, remaining=0, ours=(0, 0)) == newer


def test_it_is_forgotten_a_window_after_the_last_answer_and_until_another_the_first_task_goes_alone() -> None:
    # Given an API of which others had spent everything, and that nobody has asked since
    found = answer(remaining=0, ours=(0, 0))

    assert kept_off(found, after_ns=LIMIT.kept_ns - 1, idle=True) == 1000
    assert kept_off(found, after_ns=LIMIT.kept_ns, idle=True) == 0
    assert kept_off(found, after_ns=LIMIT.kept_ns) == 1000
    # and for no longer than another window, lest an API that says nothing more be held for ever
    assert kept_off(found, after_ns=2 * LIMIT.kept_ns) == 0


def test_the_steps_say_what_is_kept_off_at_each_instant_to_come() -> None:
    found = answer(remaining=0, ours=(0, 0))
    now_ns = found.received_ns

    for idle in (True, False):
        steps = found.steps(now_ns, idle=idle)
        assert steps[0][0] == now_ns
        assert steps[-1][1] == 0
        for at_ns, units in steps:
            assert found.kept_off(at_ns, idle=idle) == units
    assert found.steps(found.doubt_ns, idle=False) == ((found.doubt_ns, 0),)


# -- what people are told


def test_spending_of_others_is_lasting_after_three_answers_and_some_time_and_not_after_one_that_says_otherwise() -> (
    None
):
    found, lasting = None, []
    for second in range(5):
        found = answer(found, remaining=500, ours=(0, 0), sent_ns=T0 + second * S)
        lasting.append(found.lasting(LIMIT))
    assert lasting == [False, False, False, True, True]

    found = answer(found, remaining=1000, ours=(0, 0), sent_ns=T0 + 6 * S)
    assert not found.lasting(LIMIT)
    assert found.since_ns is None


def test_a_hundredth_of_a_limit_is_a_trifle_that_never_lasts() -> None:
    found = None
    for second in range(10):
        found = answer(found, remaining=990, ours=(0, 0), sent_ns=T0 + second * S)
    assert found is not None
    assert (found.lo_units, found.since_ns, found.lasting(LIMIT)) == (10, None, False)


def test_a_report_is_of_the_limit_that_others_take_most_of_and_ends_when_it_is_forgotten() -> None:
    small, large = Limit(100, S), Limit(1000, 20 * S)
    half = answer(limit=small, remaining=50, ours=(0, 0))
    tenth = answer(limit=large, remaining=900, ours=(0, 0))
    parts = [(small, half), (large, tenth)]

    found = report("api", parts, T0 + ROUND_TRIP_NS)
    assert found is not None
    assert (found.quota, found.limit, found.lo_units, found.remaining_units) == ("api", small, 50, 50)
    later = report("api", parts, half.until_ns)
    assert later is not None
    assert later.limit == large
    assert report("api", parts, tenth.until_ns) is None
    assert report("api", [(large, None)], T0) is None


# -- refusals


@pytest.mark.parametrize(("refusals", "pause_s"), [(0, 5), (1, 10), (2, 20), (3, 20), (60, 20)])
def test_a_refusal_without_a_word_is_waited_for_longer_each_time_up_to_a_period(refusals: int, pause_s: int) -> None:
    until_ns = blocked_until(T0, said_ns=None, refusals=refusals, period_ns=20 * S, chance=0.0)

    assert until_ns - T0 == pause_s * S
    assert UNSAID_NS == 5 * S


@pytest.mark.parametrize(("refusals", "pause_s"), [(0, 1), (1, 5), (2, 10), (3, 20), (60, 20)])
def test_who_refuses_again_after_what_was_said_is_waited_for_longer_each_time(refusals: int, pause_s: int) -> None:
    until_ns = blocked_until(T0, said_ns=T0 + S, refusals=refusals, period_ns=20 * S, chance=0.0)

    assert until_ns - T0 == pause_s * S
    # but never shorter than it says, and a word that came late shortens nothing
    assert blocked_until(T0, said_ns=T0 + 90 * S, refusals=refusals, period_ns=20 * S, chance=0.0) == T0 + 90 * S
    assert blocked_until(T0, said_ns=T0 - S, refusals=refusals, period_ns=20 * S, chance=0.0) >= T0


def test_an_outage_does_not_cost_a_day_although_the_window_does() -> None:
    day_ns = 86_400 * S
    for said_ns in (None, T0):
        until_ns = blocked_until(T0, said_ns=said_ns, refusals=12, period_ns=day_ns, chance=0.0)
        assert until_ns == T0 + UNSAID_MAX_NS
    # What the API says itself holds
    assert blocked_until(T0, said_ns=T0 + day_ns, refusals=12, period_ns=day_ns, chance=0.0) == T0 + day_ns


def test_many_hosts_that_wait_for_one_instant_come_back_one_after_the_other() -> None:
    # However long the period, within a second; of a short one within a small part
    resumed = [blocked_until(T0, said_ns=T0 + S, refusals=0, period_ns=3600 * S, chance=i / 10) for i in range(11)]

    assert resumed[0] == T0 + S
    assert [later - sooner for sooner, later in pairwise(resumed)] == [SPREAD_NS // 10] * 10
    assert spread_ns(2 * S, 1.0) == S // 100
