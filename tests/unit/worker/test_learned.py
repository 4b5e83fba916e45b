"""What tasks were seen to cost: percentiles of the last ones, in bounded memory, whatever their types are called."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qctl.control.quota_reading import CostReading
from qctl.worker.learned import KEPT_S, MAX_KINDS, MAX_TASKS, MAX_TYPE_CHARS, OTHERS, Learned, percentile


def costs(learned: Learned, now_s: float = 1.0) -> dict[tuple[str, str], CostReading]:
    """By type and quota, of a consumer that declares 1 of twitter and 2 of mail."""
    found = learned.readings("timeline", {"twitter": 1, "mail": 2}, now_s)
    return {(cost.type, cost.quota): cost for cost in found}


def test_each_type_has_its_own_cost_for_each_quota() -> None:
    learned = Learned()
    for units in range(1, 101):
        learned.add("refresh", {"twitter": units, "mail": 1}, 0.0)
    learned.add("", {"twitter": 3}, 0.0)

    assert costs(learned) == {
        ("refresh", "twitter"): CostReading("timeline", "refresh", "twitter", 1, 100, 50, 95, 50.5),
        ("refresh", "mail"): CostReading("timeline", "refresh", "mail", 2, 100, 1, 1, 1.0),
        ("", "twitter"): CostReading("timeline", "", "twitter", 1, 1, 3, 3, 3.0),
    }


def test_a_task_that_gave_up_counts_with_what_it_would_have_needed() -> None:
    # given tasks of one call that end, and some that could not be paid for their fifth
    learned = Learned()
    for _ in range(65):
        learned.add("refresh", {"twitter": 1}, 0.0)
    for _ in range(17):
        learned.add("refresh", {"twitter": 5}, 0.0, gave_up=True)

    (found,) = costs(learned).values()

    assert (found.tasks, found.gave_up, found.p50, found.p95) == (82, 17, 1, 5)


def test_percentiles_are_of_the_last_tasks_and_all_are_counted() -> None:
    # given tasks that cost 9 once, and 1 since
    learned = Learned()
    for number in range(3 * MAX_TASKS):
        learned.add("refresh", {"twitter": 9 if number < 2 * MAX_TASKS else 1}, 0.0)

    (found,) = costs(learned).values()

    assert (found.tasks, found.p50, found.p95) == (3 * MAX_TASKS, 1, 1)


@given(st.lists(st.integers(0, 12), min_size=1), st.integers(1, 100))
def test_so_many_of_a_hundred_need_no_more_and_one_less_would_not_do(units: list[int], percent: int) -> None:
    found = percentile(sorted(units), percent)

    wanted = math.ceil(percent * len(units) / 100)
    assert sum(one <= found for one in units) >= wanted
    assert sum(one < found for one in units) < wanted


def test_types_without_number_are_counted_together() -> None:
    learned = Learned()
    for number in range(10 * MAX_KINDS):
        learned.add(f"task-{number}", {"twitter": number % 3}, 0.0)

    found = costs(learned)

    assert len(found) == MAX_KINDS + 1
    assert found[OTHERS, "twitter"].tasks == 9 * MAX_KINDS


def test_a_type_that_does_not_come_any_more_is_forgotten() -> None:
    learned = Learned()
    learned.add("old", {"twitter": 1}, 0.0)
    learned.add("new", {"twitter": 1}, KEPT_S)

    assert [kind for kind, _ in costs(learned, KEPT_S)] == ["new"]


@pytest.mark.parametrize("kind", ["a\x1b[2Jb", "x" * 10_000, "\ud800\n\n"])
def test_a_hostile_type_is_one_short_line(kind: str) -> None:
    learned = Learned()
    learned.add(kind, {"twitter": 1}, 0.0)

    (found,) = costs(learned).values()

    assert len(found.type) <= MAX_TYPE_CHARS
    assert not any(ord(character) < 32 for character in found.type)
    found.type.encode()


def test_what_the_consumer_does_not_declare_is_left_out() -> None:
    learned = Learned()
    learned.add("refresh", {"gone": 1, "twitter": 1}, 0.0)

    assert list(costs(learned)) == [("refresh", "twitter")]


def in_threads(work: Callable[[], None], meanwhile: Callable[[], object]) -> None:
    """Four threads that work and take turns as often as they can; `meanwhile` goes on here until they have ended."""
    before_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            meanwhile()
    finally:
        sys.setswitchinterval(before_s)


def test_tasks_of_many_threads_are_all_counted_while_somebody_looks() -> None:
    learned = Learned()

    def work() -> None:
        for _ in range(2_000):
            learned.add("refresh", {"twitter": 2}, 0.0)

    in_threads(work, lambda: costs(learned))

    assert costs(learned)["refresh", "twitter"].tasks == 8_000


def test_types_may_come_and_go_while_somebody_looks() -> None:
    learned = Learned()

    def work() -> None:
        for number in range(20_000):
            learned.add(f"task-{number % MAX_KINDS}", {"twitter": 2}, 0.0)

    in_threads(work, lambda: costs(learned, KEPT_S - 1) and costs(learned, KEPT_S + 1))

    learned.add("last", {"twitter": 2}, KEPT_S)
    assert list(costs(learned, KEPT_S)) == [("last", "twitter")]
