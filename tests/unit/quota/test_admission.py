"""Pay, wait, hold, return: the truth tables."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qctl.quota.admission import (
    Cause,
    Hold,
    Need,
    Pay,
    Purse,
    Return,
    Wait,
    decide,
    may_return,
    return_at,
    sensible_run,
)
from qctl.quota.policy import Limit
from qctl.quota.window import LimitReading, Reading, Spent

MS = 10**6
S = 10**9
NOW = 1000 * S


def reading(
    *, limit: int = 100, period_ns: int = 3600 * S, spent: list[tuple[int, int]] | None = None, leased: int = 0,
    blocked_until_ns: int = 0,
) -> Reading:  # fmt: skip
    """spent: rows (ns from now until free again, units)."""
    rows = [(NOW + in_ns, units) for in_ns, units in spent or []]
    return Reading(
        quota="api",
        limits=(LimitReading(Limit(limit, period_ns), Spent.of(rows)),),
        leased={"other": leased},
        blocked_until_ns=blocked_until_ns,
    )


def need(read: Reading, *, cost: int = 1, backlog: int = 0, left: int = 0, ahead: int = 0) -> Need:
    return Need("api", cost, max(cost, backlog), Purse(read, left_units=left, ahead_units=ahead))


def verdict(*needs: Need, hold_after_ns: int = S) -> Pay | Wait | Hold:
    return decide(needs, now_ns=NOW, deadline_ns=NOW + hold_after_ns)


def test_what_costs_nothing_is_paid() -> None:
    assert verdict() == Pay()


def test_what_is_free_is_paid_even_if_the_rest_cannot_be() -> None:
    assert verdict(need(reading(spent=[(60 * S, 99)]), backlog=500)) == Pay()


def test_what_is_left_in_memory_is_paid_when_the_ledger_has_nothing() -> None:
    assert verdict(need(reading(spent=[(60 * S, 98)], leased=2), cost=2, left=2)) == Pay()


def test_a_short_wait_is_waited_for_if_all_that_is_held_can_be_paid() -> None:
    soon = reading(spent=[(300 * MS, 10), (900 * MS, 90)])

    assert verdict(need(soon, backlog=100)) == Wait(NOW + 300 * MS)


def test_it_holds_if_all_that_is_held_cannot_be_paid_in_time() -> None:
    soon = reading(spent=[(300 * MS, 10), (60 * S, 90)])

    assert verdict(need(soon, backlog=11)) == Hold("api", Cause.QUOTA, NOW + 300 * MS)


def test_it_holds_at_once_when_the_window_is_gone() -> None:
    assert verdict(need(reading(spent=[(60 * S, 100)]))) == Hold("api", Cause.QUOTA, NOW + 60 * S)


def test_what_others_have_out_may_come_back_until_the_deadline() -> None:
    out = reading(spent=[(60 * S, 90)], leased=10)

    assert verdict(need(out, backlog=10)) == Wait(NOW + S)
    assert verdict(need(out, backlog=11)) == Hold("api", Cause.QUOTA, NOW + 60 * S)
    assert verdict(need(out, backlog=10), hold_after_ns=0) == Hold("api", Cause.QUOTA, NOW + 60 * S)


def test_claims_of_others_are_not_there_to_be_paid_from() -> None:
    assert verdict(need(reading(spent=[(60 * S, 90)]), cost=5, ahead=5)) == Pay()
    assert verdict(need(reading(spent=[(60 * S, 90)]), cost=5, ahead=6)) == Hold("api", Cause.QUOTA, NOW + 60 * S)


def test_a_block_of_the_upstream_is_named_as_the_cause() -> None:
    blocked = reading(blocked_until_ns=NOW + 30 * S)

    assert verdict(need(blocked)) == Hold("api", Cause.BLOCKED, NOW + 30 * S)


def test_a_cost_beyond_the_limit_is_held_without_an_end() -> None:
    assert verdict(need(reading(limit=3), cost=4)) == Hold("api", Cause.QUOTA, None)


def test_a_window_shorter_than_the_wait_is_spent_more_than_once_in_it() -> None:
    paced = reading(limit=1, period_ns=100 * MS, leased=1)

    assert verdict(need(paced, backlog=5)) == Wait(NOW + S)
    assert isinstance(verdict(need(paced, backlog=50)), Hold)


def test_of_several_quotas_the_worst_decides() -> None:
    free, soon = reading(), reading(spent=[(300 * MS, 100)])
    gone, later = reading(spent=[(60 * S, 100)]), reading(spent=[(90 * S, 100)])

    assert verdict(need(free), need(soon)) == Wait(NOW + 300 * MS)
    assert verdict(need(gone), need(soon)) == Hold("api", Cause.QUOTA, NOW + 60 * S)
    assert verdict(need(gone), need(later), need(free)) == Hold("api", Cause.QUOTA, NOW + 90 * S)


def back(read: Reading, *, run: int, held_ns: int, cost: int = 1) -> Return:
    return may_return([need(read, cost=cost)], [run], now_ns=NOW, held_since_ns=NOW - held_ns)


def test_a_held_consumer_comes_back_for_a_run_at_once_and_for_a_task_after_a_second() -> None:
    five_free = reading(spent=[(60 * S, 95)])

    assert back(five_free, run=5, held_ns=0) is Return.RUN
    assert back(five_free, run=6, held_ns=S - 1) is Return.NOT_YET
    assert back(five_free, run=6, held_ns=S) is Return.TASK
    assert back(five_free, run=6, cost=6, held_ns=60 * S) is Return.NOT_YET


def test_a_sensible_run_is_a_twentieth_or_a_second_of_work_and_at_least_a_task() -> None:
    big = reading(limit=20_000)

    assert sensible_run(big, cost_units=1, rate_per_s=1e9) == 1000
    assert sensible_run(big, cost_units=1, rate_per_s=30.5) == 30
    assert sensible_run(big, cost_units=7, rate_per_s=0.0) == 7
    assert sensible_run(reading(limit=10), cost_units=1, rate_per_s=100.0) == 1


@given(
    spent=st.lists(st.tuples(st.integers(1, 5 * S), st.integers(1, 30)), max_size=8).map(sorted),
    cost=st.integers(1, 5),
    run=st.integers(5, 40),
    held_ns=st.integers(0, 2 * S),
)
def test_return_at_foretells_may_return(spent: list[tuple[int, int]], cost: int, run: int, held_ns: int) -> None:
    needs = [need(reading(spent=spent), cost=cost)]

    at_ns = return_at(needs, [run], now_ns=NOW, held_since_ns=NOW - held_ns)

    if at_ns is None:
        later_ns = NOW + 100 * S
        assert may_return(needs, [run], now_ns=later_ns, held_since_ns=NOW - held_ns) is Return.NOT_YET
        return
    first_ns = max(at_ns, NOW)
    assert may_return(needs, [run], now_ns=first_ns, held_since_ns=NOW - held_ns) is not Return.NOT_YET
    if first_ns > NOW:
        assert may_return(needs, [run], now_ns=first_ns - 1, held_since_ns=NOW - held_ns) is Return.NOT_YET
