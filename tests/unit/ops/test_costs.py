"""Whether the inventory declares what tasks cost, and what it should say."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qctl.control.quota_reading import CostReading
from qctl.ops.costs import MIN_TASKS, Verdict, advice, given_up, judged, words
from qctl.ops.status import QuotaRow


def cost(declared: int, p50: int, p95: int, *, tasks: int = 100, kind: str = "refresh") -> CostReading:
    return CostReading("timeline", kind, "twitter", declared, tasks, p50, p95)


def row(*costs: CostReading, host: str = "web-1") -> QuotaRow:
    return QuotaRow(host, "twitter", ("20000/h",), costs=costs)


@pytest.mark.parametrize(
    ("declared", "p50", "p95", "verdict", "advised"),
    [
        (1, 1, 1, Verdict.RIGHT, None),
        (1, 1, 2, Verdict.TOO_LOW, 2),
        (1, 3, 7, Verdict.TOO_LOW, 7),
        (12, 6, 12, Verdict.RIGHT, None),  # half need far less, and those that do not are right
        (12, 6, 11, Verdict.TOO_HIGH, 11),
        (12, 7, 11, Verdict.RIGHT, None),  # not far below
        (2, 0, 0, Verdict.TOO_HIGH, 0),
        (0, 0, 0, Verdict.RIGHT, None),
        (0, 1, 1, Verdict.TOO_LOW, 1),
    ],
)
def test_a_declaration_is_judged_by_what_most_tasks_need(
    declared: int, p50: int, p95: int, verdict: Verdict, advised: int | None
) -> None:
    (found,) = judged([row(cost(declared, p50, p95))])

    assert (found.verdict, found.advised, found.wrong) == (verdict, advised, advised is not None)
    assert words(found).startswith("" if verdict is Verdict.RIGHT else verdict)


def test_a_few_tasks_say_nothing() -> None:
    (found,) = judged([row(cost(1, 9, 9, tasks=MIN_TASKS - 1))])

    assert (found.verdict, found.wrong, words(found)) == (Verdict.UNKNOWN, False, "too few seen")


def test_one_cost_is_declared_for_all_types_so_the_dearest_decides() -> None:
    cheap, dear = cost(8, 1, 2, kind="cheap"), cost(8, 5, 8, kind="dear")

    assert [one.verdict for one in judged([row(cheap, dear)])] == [Verdict.RIGHT, Verdict.RIGHT]
    assert [one.advised for one in judged([row(cheap)])] == [2]
    low = judged([row(cost(1, 1, 2, kind="cheap"), cost(1, 5, 8, kind="dear"))])
    assert [one.advised for one in low] == [8, 8]


def test_hosts_that_declare_alike_are_judged_together_and_others_apart() -> None:
    alike = judged([row(cost(1, 1, 1, tasks=15)), row(cost(1, 3, 3, tasks=15), host="web-2")])
    apart = judged([row(cost(1, 3, 3)), row(cost(3, 3, 3), host="web-2")])

    assert [(one.tasks, one.p95, one.hosts, one.verdict) for one in alike] == [
        (30, 3, ("web-1", "web-2"), Verdict.TOO_LOW)
    ]
    assert [(one.declared, one.verdict) for one in apart] == [(1, Verdict.TOO_LOW), (3, Verdict.RIGHT)]


def test_tasks_that_gave_up_are_counted_in_words() -> None:
    low, right = replace(cost(1, 1, 5), gave_up=17), replace(cost(1, 1, 1), gave_up=2)

    assert [words(one) for one in judged([row(low)])] == [
        "too low: tasks need more than is reserved for them; 17 gave up half-way"
    ]
    assert [words(one) for one in judged([row(right)])] == ["right; 2 gave up half-way"]


def test_a_sentence_says_how_many_gave_up_and_for_want_of_what() -> None:
    found = judged([row(replace(cost(1, 1, 5), gave_up=17), cost(1, 1, 1, kind="cheap"))])

    assert given_up(found, "mail") == ""
    assert given_up(found, "timeline") == (
        "17 of 100 tasks of timeline gave up half-way, since twitter could not pay for more than the 1 that is "
        "declared: what they had used is lost"
    )


def test_the_line_to_write_is_one_for_all_quotas_of_a_consumer() -> None:
    # given a consumer that declares one quota too low and another too high, and others that are wrong too
    low, high = cost(1, 6, 12), replace(cost(2, 1, 1), quota="multi")
    other = replace(cost(1, 9, 9), consumer="mail")
    elsewhere = row(replace(cost(3, 9, 9), quota="multi"), host="web-2")

    found = judged([row(low, high, other), elsewhere])

    lines = {advice(one, {"twitter": 1, "multi": 2, "right": 1}) for one in found if one.consumer == "timeline"}
    assert lines == {"quota: {twitter: 12, multi: 1, right: 1}", "quota: {twitter: 1, multi: 9, right: 1}"}
    assert [advice(one, {"twitter": 1}) for one in found if one.consumer == "mail"] == ["quota: {twitter: 9}"]


def test_the_line_to_write_keeps_what_is_right() -> None:
    low, right = judged([row(cost(1, 3, 7))])[0], judged([row(cost(7, 7, 7))])[0]

    assert advice(low, {"twitter": 1, "mail": 2}) == "quota: {twitter: 7, mail: 2}"
    assert advice(right, {"twitter": 7}) == ""
