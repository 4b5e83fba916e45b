"""Whether the inventory declares what tasks cost, and what it should say."""

from __future__ import annotations

import pytest

from qctl.control.quota_reading import CostReading
from qctl.ops.costs import MIN_TASKS, Verdict, advice, judged, words
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


def test_the_line_to_write_keeps_what_is_right() -> None:
    low, right = judged([row(cost(1, 3, 7))])[0], judged([row(cost(7, 7, 7))])[0]

    assert advice(low, {"twitter": 1, "mail": 2}) == "quota: {twitter: 7, mail: 2}"
    assert advice(right, {"twitter": 7}) == ""
