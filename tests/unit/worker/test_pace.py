"""How many deliveries to hold: enough for the slots, and no more than a paced quota pays for in time."""

from __future__ import annotations

import pytest

from qctl.quota import Limit, LimitReading, Reading, Window
from qctl.worker.pace import UNBOUNDED, Allowance, Pace, allowance
from qctl.worker.sharing import IDLE_S, Sharing
from tests.unit.quota.model import S

HOLD_AFTER_S = 1.0


def paced(units: int, period_s: int, burst: int, *, processes: int = 1) -> dict[str, Reading]:
    window = Limit(units, period_s * S)
    bucket = Limit(burst, burst * period_s * S // units, Window.PACED)
    parts = (LimitReading(bucket), LimitReading(window))
    return {"api": Reading("api", parts, processes=processes)}


@pytest.mark.parametrize(
    ("rate_per_s", "burst", "run_s", "prefetch"),
    [
        (1000, 100, 0.01, 80),  # fast enough: as without a quota
        (100, 10, 0.01, 50),
        (5, 1, 0.01, 2),  # half of what is paid in the second that a task may wait
        (5, 5, 1.0, 6),  # beside those that run
        (5, 1, 1.0, 1),  # of which a small bucket allows one at a time
        (1, 1, 0.01, 1),
    ],
)
def test_of_a_paced_quota_what_it_pays_for_while_a_task_may_wait_is_held_and_not_more(
    rate_per_s: int, burst: int, run_s: float, prefetch: int
) -> None:
    # Given eight slots, and tasks that take so long
    pace = Pace()
    pace.add(1, run_s, 100)
    found = allowance(paced(rate_per_s * 1000, 1000, burst), {"api": 1}, HOLD_AFTER_S)

    assert pace.prefetch(8, 0.0, found) == prefetch


def test_processes_share_the_rate_and_costly_tasks_are_fewer() -> None:
    alone = allowance(paced(5000, 1000, 10), {"api": 1}, HOLD_AFTER_S)
    shared = allowance(paced(5000, 1000, 10, processes=2), {"api": 1}, HOLD_AFTER_S)
    costly = allowance(paced(5000, 1000, 10), {"api": 5}, HOLD_AFTER_S)

    assert alone.interval_s == pytest.approx(0.2, rel=1e-3)
    assert shared.interval_s == pytest.approx(0.4, rel=1e-3)
    assert (costly.interval_s, costly.burst) == (pytest.approx(1.0, rel=1e-3), 2.0)


def test_a_small_bucket_that_processes_share_lets_each_run_its_part_of_what_it_allows() -> None:
    # Given a bucket of three, from which 3 / (50 ms + 250 ms) = 10 tasks a second can be paid
    alone = allowance(paced(20_000, 1000, 3), {"api": 1}, HOLD_AFTER_S)
    shared = allowance(paced(20_000, 1000, 3, processes=2), {"api": 1}, HOLD_AFTER_S)

    # Then each of two processes holds half of what one would
    assert (alone.bound(500, 0.25), shared.bound(500, 0.25)) == (7, 3)


def test_consumers_that_share_a_quota_hold_their_part_each() -> None:
    # Given a consumer of two processes, beside one that costs twice as much and one that needs another quota
    readings = paced(20_000, 1000, 6, processes=2)
    alone = allowance(readings, {"api": 1}, HOLD_AFTER_S)
    shared = allowance(readings, {"api": 1}, HOLD_AFTER_S, [{"api": 2}, {"mail": 5}])
    costly = allowance(readings, {"api": 2}, HOLD_AFTER_S, [{"api": 1}, {"mail": 5}])

    # Then both have as many tasks, a third of what one would have alone, of the rate and of the bucket
    assert shared.interval_s == pytest.approx(3 * alone.interval_s)
    assert costly.interval_s == pytest.approx(shared.interval_s)
    assert (alone.bound(500, 0.25), shared.bound(500, 0.25), costly.bound(500, 0.25)) == (7, 2, 2)


def test_a_consumer_that_does_nothing_for_a_while_leaves_its_part_to_the_others() -> None:
    costs = {name: {"api": units} for units, name in enumerate(("timeline", "mail", "calls"), 1)}
    sharing = Sharing(costs, 100.0)
    assert sharing.beside("mail", 100.0 + IDLE_S - 1) == [{"api": 1}, {"api": 3}]

    # When one has a task, one has ended some, and one has neither
    for done in (0, 7):
        sharing.note("timeline", here=1, done=0, now_s=104.0 + done)
        sharing.note("mail", here=0, done=done, now_s=104.0 + done)
        sharing.note("calls", here=0, done=0, now_s=104.0 + done)

    assert sharing.beside("calls", 111.0) == [{"api": 1}, {"api": 2}]
    assert sharing.beside("mail", 111.0) == [{"api": 1}]
    sharing.note("mail", here=0, done=7, now_s=111.0 + IDLE_S)
    assert sharing.beside("calls", 111.0 + IDLE_S) == []


def test_of_several_quotas_the_slowest_counts() -> None:
    slow, fast = paced(1000, 1000, 1)["api"], paced(9000, 1000, 1)["api"]

    found = allowance({"slow": slow, "fast": fast}, {"slow": 1, "fast": 1}, HOLD_AFTER_S)

    assert found.interval_s == pytest.approx(1.0, rel=1e-3)


def test_where_nothing_is_paced_the_prefetch_is_that_of_the_slots() -> None:
    sliding = {"api": Reading("api", (LimitReading(Limit(10, S)),))}

    for readings, cost in ((sliding, {"api": 1}), (paced(1, 10, 1), {"api": 0}), ({}, {"api": 1}), ({}, {})):
        assert allowance(readings, cost, HOLD_AFTER_S) == UNBOUNDED
    assert UNBOUNDED.bound(500, 0.0) == 500
    assert Allowance(interval_s=10.0, patience_s=0.1).bound(500, 0.0) == 1
