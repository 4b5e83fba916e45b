"""The future by the workers' own rules: in simulated time, so that hours take milliseconds."""

from __future__ import annotations

import time
from typing import Any

import pytest

from qctl.quota.forecast import Burnt, Crew, Emptied, Forecast, Taken, Taker, Waiting
from qctl.quota.page import History, Stock
from qctl.quota.policy import NS_PER_S, Limit, Policy, Window, enforced
from qctl.quota.simulate import simulate
from qctl.quota.upstream import Span

S = NS_PER_S
HOUR = 3_600 * S
LONG = 10_000 * HOUR
FOR_EVER = 1 << 61


def stock(units: int, period_s: float, window: Window = Window.SLIDING, burst: int = 1, **history: Any) -> Stock:
    """A quota `api` of one limit; history: of what counts against it."""
    policy = Policy("api", (Limit(units, round(period_s * S)),), window, burst)
    kinds = (Window.SLIDING, Window.FIXED)
    return Stock("api", tuple(History(one, **(history if one.window in kinds else {})) for one in enforced(policy)))


def taker(name: str = "timeline", *, run_s: float = 0.05, slots: int = 8, cost: int = 1, **more: Any) -> Taker:
    """A consumer that takes 160 tasks a second from its queue, if nothing holds it."""
    given = {"queues": {name: 0}, "cost": {"api": cost} if cost else {}, "prefetch": 2 * slots, **more}
    return Taker(name=name, slots=slots, run_ns=round(run_s * S), **given)


def crew(host: str, quota: Stock, *takers: Taker) -> Crew:
    """A host."""
    return Crew(host, takers or (taker(),), (quota,))


def go(*crews: Crew, tasks: int, until_ns: int = LONG, **more: Any) -> Forecast:
    """The end of a queue `timeline`."""
    return simulate(crews, [Waiting("timeline", tasks)], until_ns=until_ns, **more)


def empty_s(found: Forecast) -> float:
    """When the first queue is empty."""
    at_ns = found.queues[0].empty_ns
    assert at_ns is not None
    return at_ns / S


class TestUses:
    def test_parts_of_a_unit_that_tasks_use_add_up(self) -> None:
        # given a single slot, whose tasks end one by one, and of which each uses a quarter of the unit it must have
        found = go(crew("one", stock(100, 10), taker(slots=1, run_s=0.1, uses={"api": 0.25})), tasks=42)

        assert found.quotas[0].units == 10


class TestHours:
    def test_two_hosts_spend_exactly_what_they_may_in_the_first_hour(self) -> None:
        # given 120,000 tasks, and 20,000 an hour on one host and 100,000 on the other
        found = go(crew("small", stock(20_000, 3_600)), crew("large", stock(100_000, 3_600)), tasks=120_000)

        # then both spend all they have, in less than the hour, and nothing is left
        assert [(one.host, one.hour_units, one.units) for one in found.quotas] == [
            ("small", 20_000, 20_000),
            ("large", 100_000, 100_000),
        ]
        assert found.queues == (Emptied("timeline", found.end_ns, 0),)
        assert found.end_ns < HOUR

    def test_what_is_more_waits_for_the_next_window_and_no_longer(self) -> None:
        # given more than an hour's worth
        found = go(crew("small", stock(20_000, 3_600)), crew("large", stock(100_000, 3_600)), tasks=240_000)

        # then the first hour has its share to the unit, and the rest is spent as soon as that returns
        assert [one.hour_units for one in found.quotas] == [20_000, 100_000]
        small, large = found.quotas
        assert small.out_ns == 20_000 / 160 * S
        assert small.returns_ns is not None
        assert HOUR < small.returns_ns < HOUR * 1.002
        assert HOUR + large.out_ns < found.end_ns < (HOUR + large.out_ns) * 1.01  # type: ignore[operator]

    @pytest.mark.parametrize("hosts", [10, 500])
    def test_a_large_fleet_takes_seconds_and_ends_together(self, hosts: int) -> None:
        # given sixty thousand tasks a host, which are half of them limited to twenty thousand an hour
        crews = [crew(f"web-{n}", stock(20_000 if n % 2 else 100_000, 3_600)) for n in range(hosts)]
        began_s = time.process_time()
        found = go(*crews, tasks=60_000 * hosts)

        # then it is computed at once, each host spends what it may, and all end within a moment of each other
        assert time.process_time() - began_s < 10
        assert {one.hour_units for one in found.quotas} == {20_000, 100_000}
        lasts = [one.last_ns for one in found.takers if one.tasks > 20_000]
        assert len(lasts) == hosts // 2
        assert max(lasts) - min(lasts) < S  # type: ignore[type-var, operator]


class TestWindows:
    def test_a_sliding_limit_admits_again_a_window_after_each_call(self) -> None:
        found = go(crew("web-1", stock(200, 20)), tasks=1_000)

        # five windows' worth: four times twenty seconds, and then the last two hundred
        assert empty_s(found) == pytest.approx(80 + 1.25, rel=0.01)

    def test_a_fixed_limit_begins_anew_when_the_api_does(self) -> None:
        # given that the API's window ends in seven seconds
        ends = Span(7 * S, 7 * S)
        found = go(crew("web-1", stock(200, 20, Window.FIXED, resets=ends)), tasks=1_000)

        # then four resets later it is nearly over
        assert empty_s(found) == pytest.approx(7 + 60 + 1.25, rel=0.01)

    def test_windows_that_nobody_saw_are_counted_on(self) -> None:
        # given a host that is paused over three resets, at 7, 27 and 47
        paused = taker(queues={"timeline": 60 * S})
        found = go(crew("web-1", stock(200, 20, Window.FIXED, resets=Span(7 * S, 7 * S)), paused), tasks=400)

        # then half is done at once, and half after the next reset
        assert empty_s(found) == pytest.approx(67 + 1.25, rel=0.01)

    def test_a_paced_limit_begins_with_a_burst_and_no_more(self) -> None:
        # given four at once, and then five and a half a second
        found = go(crew("web-1", stock(20_000, 3_600, Window.PACED, burst=4)), tasks=40)

        assert 36 / 5.56 < empty_s(found) < 36 / 5.56 + 4

    def test_a_fixed_limit_of_which_nothing_is_told_slides(self) -> None:
        fixed = go(crew("web-1", stock(200, 20, Window.FIXED)), tasks=1_000)

        assert fixed.end_ns == go(crew("web-1", stock(200, 20)), tasks=1_000).end_ns

    @pytest.mark.parametrize(("units", "period_s", "tasks"), [(560, 20, 1_680), (20_000, 3_600, 20_000)])
    def test_a_paced_limit_is_spent_evenly_and_whole(self, units: int, period_s: float, tasks: int) -> None:
        # given bursts of four, whether the units are counted one by one or by the grain
        found = go(crew("web-1", stock(units, period_s, Window.PACED, burst=4)), tasks=tasks)

        assert empty_s(found) == pytest.approx(tasks / units * period_s, rel=0.01)

    def test_what_was_spent_before_is_free_again_when_it_was_said_to_be(self) -> None:
        # given a limit that is used up, half of it until the fifth second, half until the ninth
        rows = ((5 * S, 100), (9 * S, 100))
        found = go(crew("web-1", stock(200, 20, rows=rows)), tasks=150)

        # then it begins held, and the last fifty are done after the ninth
        (burnt,) = found.quotas
        assert (burnt.out_ns, burnt.returns_ns) == (0, 5 * S)
        assert 9 * S < found.end_ns < 9.5 * S

    def test_the_tightest_of_several_limits_and_quotas_decides(self) -> None:
        # given a task that costs one of `api` and three of `db`
        db = Stock("db", (History(Limit(30, 10 * S)),))
        found = simulate(
            [Crew("web-1", (taker(cost=1, queues={"timeline": 0}, run_s=0.1),), (stock(1_000, 10),))],
            [Waiting("timeline", 40)],
            until_ns=LONG,
        )
        both = simulate(
            [
                Crew(
                    "web-1",
                    (Taker("timeline", {"timeline": 0}, {"api": 1, "db": 3}, 8, S // 10, 16),),
                    (stock(1_000, 10), db),
                )
            ],
            [Waiting("timeline", 40)],
            until_ns=LONG,
        )

        # then ten tasks go in ten seconds
        assert empty_s(found) < 1
        assert empty_s(both) == pytest.approx(30, rel=0.03)


class TestTakers:
    def test_slots_and_seconds_bound_what_quotas_do_not(self) -> None:
        # eight at once, half a second each
        assert empty_s(go(crew("web-1", stock(10**6, 3_600), taker(run_s=0.5)), tasks=160)) == 10

    def test_tasks_that_run_at_the_start_keep_their_slots_and_are_waited_for(self) -> None:
        found = go(crew("web-1", stock(10**6, 3_600), taker(run_s=10, slots=2, running=2)), tasks=2)

        # halfway through at the start, then two more
        assert empty_s(found) == 15
        assert found.takers == (Taken("web-1", "timeline", 0, 4, 4, 15 * S),)

    def test_a_pause_with_an_end_keeps_a_host_away_until_then(self) -> None:
        paused = taker(queues={"timeline": 30 * S})
        alone = go(crew("web-1", stock(10**6, 3_600), paused), tasks=16)

        assert 30 < empty_s(alone) < 31

    def test_a_host_that_is_paused_for_ever_leaves_all_to_the_other(self) -> None:
        found = go(
            crew("web-1", stock(100, 20), taker(queues={"timeline": FOR_EVER})),
            crew("web-2", stock(100, 20)),
            tasks=300,
        )

        assert [one.tasks for one in found.takers] == [0, 300]

    def test_where_all_are_paused_for_ever_nothing_happens_and_it_ends(self) -> None:
        found = go(crew("web-1", stock(100, 20), taker(queues={"timeline": FOR_EVER})), tasks=300)

        assert (found.queues, found.bounded) == ((Emptied("timeline", None, 300),), True)

    def test_what_can_never_be_paid_is_never_done_and_keeps_nobody_from_being(self) -> None:
        # given a consumer whose task costs more than there ever is, beside a cheap one
        dear, cheap = taker("dear", cost=101), taker()
        found = simulate(
            [crew("web-1", stock(100, 20), dear, cheap)], [Waiting("dear", 5), Waiting("timeline", 300)], until_ns=LONG
        )

        assert [(one.queue, one.left_tasks) for one in found.queues] == [("dear", 5), ("timeline", 0)]
        assert not found.bounded

    def test_a_dear_task_among_a_flood_of_cheap_ones_has_its_turn(self) -> None:
        # given a task for fifty of a hundred units, which comes when others have spent them, among thousands for one
        dear, flood = taker("dear", cost=50, slots=1, queues={"dear": 5 * S}), taker()
        found = simulate(
            [crew("web-1", stock(100, 20), flood, dear)],
            [Waiting("timeline", 1_000), Waiting("dear", 1)],
            until_ns=LONG,
        )

        # then it is done within the second window, and not behind all of them
        ends = {one.queue: one.empty_ns for one in found.queues}
        assert ends["dear"] is not None
        assert ends["dear"] < 41 * S < 150 * S < ends["timeline"]  # type: ignore[operator]

    def test_what_lies_in_a_host_that_cannot_pay_goes_to_one_that_can_within_hold_after(self) -> None:
        # given a host that can pay for ten tasks, beside one that can pay for all, and thirty tasks
        found = go(crew("web-1", stock(10, 20)), crew("web-2", stock(100, 20)), tasks=30)

        # then nothing waits for the quota of the first to return
        assert empty_s(found) < 1.5
        assert found.takers[0].tasks <= 10

    def test_each_process_of_a_host_has_its_own_slots_and_they_share_the_quota(self) -> None:
        one, two = taker(run_s=1.0), taker(run_s=1.0, index=1)
        found = simulate([Crew("web-1", (one, two), (stock(100, 20),))], [Waiting("timeline", 160)], until_ns=LONG)

        assert [each.tasks for each in found.takers] == pytest.approx([80, 80], abs=8)
        assert found.quotas[0].out_ns is not None
        assert 20 < empty_s(found) < 27

    def test_a_consumer_without_a_quota_never_notices(self) -> None:
        free = taker("free", cost=0)
        found = simulate(
            [crew("web-1", stock(10, 3_600), taker(), free)],
            [Waiting("free", 1_600), Waiting("timeline", 20)],
            until_ns=LONG,
        )

        ends = {one.queue: one.empty_ns for one in found.queues}
        assert ends["free"] == pytest.approx(10 * S, rel=0.02)
        assert ends["timeline"] > HOUR  # type: ignore[operator]

    def test_of_two_queues_both_are_emptied(self) -> None:
        both = taker(queues={"timeline": 0, "timeline@web-1": 0})
        found = simulate(
            [crew("web-1", stock(10**6, 3_600), both)],
            [Waiting("timeline", 80), Waiting("timeline@web-1", 80)],
            until_ns=LONG,
        )

        assert [one.left_tasks for one in found.queues] == [0, 0]
        assert found.takers[0].tasks == 160


class TestQueues:
    def test_one_that_is_empty_is_empty_now(self) -> None:
        assert go(crew("web-1", stock(10, 1)), tasks=0).queues == (Emptied("timeline", 0, 0),)

    def test_one_that_nobody_takes_from_is_never_empty_and_not_waited_for(self) -> None:
        found = simulate(
            [crew("web-1", stock(10, 1))], [Waiting("timeline", 10), Waiting("nobody's", 3)], until_ns=LONG
        )

        assert found.queues[1] == Emptied("nobody's", None, 3)
        assert found.end_ns < S

    def test_what_comes_in_is_done_too(self) -> None:
        # given sixteen a second against a hundred and sixty that can be done
        found = simulate(
            [crew("web-1", stock(10**6, 3_600))], [Waiting("timeline", 1_440, in_per_s=16.0)], until_ns=LONG
        )

        assert empty_s(found) == pytest.approx(10, rel=0.03)
        assert found.takers[0].tasks == pytest.approx(1_600, rel=0.03)

    def test_one_that_grows_is_shown_for_as_long_as_is_asked(self) -> None:
        found = simulate(
            [crew("web-1", stock(100, 20))],
            [Waiting("timeline", 100, in_per_s=50.0)],
            until_ns=LONG,
            unawaited={"timeline"},
            least_ns=50 * S,
        )

        assert found.queues[0].empty_ns is None
        assert 40 * S < found.end_ns <= 50 * S
        assert found.quotas == (Burnt("web-1", "api", 300, 300, *(found.quotas[0].out_ns, found.quotas[0].returns_ns)),)

    def test_a_bound_ends_it_and_is_said(self) -> None:
        assert go(crew("web-1", stock(1, 3_600)), tasks=100, max_events=20).bounded
        late = go(crew("web-1", stock(1, 3_600)), tasks=100, until_ns=10 * HOUR)
        assert (late.bounded, late.end_ns) == (True, 10 * HOUR)

    def test_what_a_host_took_before_the_queue_was_looked_at_is_not_taken_from_it_again(self) -> None:
        # given a host that told of itself half a second before the queue did
        early = Crew("web-1", (taker(queues={"timeline": -S}),), (stock(10**6, 3_600),), at_ns=-S // 2)
        found = simulate([early], [Waiting("timeline", 160)], until_ns=LONG)

        # then the hundred and sixty of the queue are done a second after, and eighty were before
        assert empty_s(found) == pytest.approx(1.0, abs=0.06)
        assert found.takers[0].tasks == pytest.approx(240, abs=16)
