"""Who is a suspect, who may be in the ward together, and who is to blame for its end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from qctl.broker.message import DeadReason
from qctl.inventory.model import RetryPolicy
from qctl.worker.isolation import culprits, is_suspect, next_in
from qctl.worker.outcome import Ending, crashed


@dataclass(frozen=True)
class One:
    name: str
    consumer: str = "calls"
    alone: bool = False
    started: bool = False


@pytest.mark.parametrize(
    ("headers", "redelivered", "suspect"),
    [
        (None, False, False),
        ({}, False, False),
        ({"x-delivery-count": 9}, False, False),  # a producer's own
        ({"x-delivery-count": 2}, True, False),
        ({"x-delivery-count": 3}, True, True),
        ({"x-delivery-count": "3", "x-acquired-count": 9}, True, False),
        ({"x-acquired-count": 9}, True, False),  # the queue counts, and has counted no crash
        (None, True, True),  # a classic queue does not count
        ({"tenant": "acme"}, True, True),
        ({"qctl-crashes": 1}, False, True),
        ({"qctl-crashes": "what"}, False, True),
        ({"qctl-crashes": 1, "x-delivery-count": 0}, True, True),
    ],
)
def test_given_headers_and_history_then_a_suspect_is_who_may_have_ended_processes(
    headers: dict[str, Any] | None, redelivered: bool, suspect: bool
) -> None:
    assert is_suspect(headers, redelivered=redelivered) is suspect


A, B, C, OTHER = One("a"), One("b"), One("c"), One("o", "mail")
LONER, SECOND = One("l", alone=True), One("m", alone=True)


@pytest.mark.parametrize(
    ("waiting", "inside", "next_one"),
    [
        ([], [], None),
        ([A, B], [], A),
        ([B], [A], B),
        ([C], [A, B], None),  # two slots
        ([C, OTHER], [A, B], OTHER),
        ([LONER], [A], None),
        ([LONER, B], [A], None),  # who is to be alone is not overtaken for ever
        ([LONER, B], [], LONER),
        ([B], [LONER], None),
        ([SECOND], [LONER], None),
        ([OTHER], [LONER], None),
    ],
)
def test_given_who_waits_and_who_is_inside_then_the_first_that_fits_goes_in(
    waiting: list[One], inside: list[One], next_one: One | None
) -> None:
    assert next_in(waiting, inside, {"calls": 2, "mail": 1}) is next_one


RUNS, ALSO = One("r", started=True), One("s", started=True)


@pytest.mark.parametrize(
    ("inside", "overdue", "blamed"),
    [
        ([RUNS], [], [RUNS]),
        ([RUNS, ALSO], [], [RUNS, ALSO]),
        ([RUNS, A], [], [RUNS]),  # nobody is blamed for what it did not live to see
        ([A, B], [], []),
        ([RUNS, ALSO], [ALSO], [ALSO]),
        ([A, RUNS], [A], []),  # it waited for the machine, and nobody who ran was over time
        ([RUNS], [ALSO], []),  # ended for one that was out by then: its neighbour did nothing
    ],
)
def test_given_the_end_of_the_ward_then_those_it_ended_for_are_to_blame_else_all_that_ran(
    inside: list[One], overdue: list[One], blamed: list[One]
) -> None:
    assert culprits(inside, overdue) == blamed


RETRY = RetryPolicy(attempts=5, delays_s=(2.0, 5.0))


@pytest.mark.parametrize(("before", "crashes", "delay_s"), [({}, 1, 2.0), ({"qctl-crashes": 1}, 2, 5.0)])
def test_given_a_crash_then_the_task_comes_back_with_its_count_and_no_attempt_used(
    before: dict[str, int], crashes: int, delay_s: float
) -> None:
    outcome = crashed("it died", before, RETRY, (1.0, 2.0, 5.0))

    assert (outcome.ending, outcome.delay_s) == (Ending.LATER, delay_s)
    assert outcome.headers == {"qctl-crashes": crashes, "qctl-error": f"it died, {crashes} of 3 times"}


@pytest.mark.parametrize("before", [2, 3, 1000])
def test_given_the_third_crash_then_the_task_is_dead_as_poison(before: int) -> None:
    outcome = crashed("it died", {"qctl-crashes": before}, RETRY, (1.0,))

    assert (outcome.ending, outcome.reason) == (Ending.DEAD, DeadReason.POISON)
    assert outcome.headers["qctl-crashes"] == before + 1
    assert outcome.headers["qctl-reason"] == "poison"
