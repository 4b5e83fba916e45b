"""What tasks were seen to cost, beside what the inventory declares, and whether the declaration is right. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from qctl.control.host_quotas import together
from qctl.control.quota_reading import CostReading
from qctl.ops.status import QuotaRow

#: Fewer tasks say nothing: one of them may be the odd one.
MIN_TASKS = 20
#: Half of the tasks need so much less: what is reserved for the rest of them is reserved in vain.
FAR_BELOW = 2


class Verdict(StrEnum):
    """What is wrong with a declared cost."""

    TOO_LOW = "too low"
    TOO_HIGH = "too high"
    RIGHT = "right"
    UNKNOWN = "too few seen"


MEANS = {
    Verdict.TOO_LOW: "tasks need more than is reserved for them",
    Verdict.TOO_HIGH: "quota is reserved in vain while they run",
}


@dataclass(frozen=True, slots=True)
class Judged:
    """The cost of a type of tasks on some hosts that declare it alike. mean: None: nobody says. gave_up: how many of
    `tasks` could not be paid to their end. advised: units to declare, None where it is right: what 95 of 100 tasks of
    every type of that consumer were seen to need at most; corrected: the same, with what is advised for the other
    quotas of its tasks, since the inventory declares all in one line."""

    consumer: str
    type: str
    quota: str
    declared: int
    tasks: int
    p50: int
    p95: int
    hosts: tuple[str, ...]
    verdict: Verdict
    advised: int | None = None
    mean: float | None = None
    gave_up: int = 0
    corrected: tuple[tuple[str, int], ...] = ()

    @property
    def wrong(self) -> bool:
        """Whether the inventory should say something else."""
        return self.advised is not None


def judged(rows: Iterable[QuotaRow]) -> tuple[Judged, ...]:
    """The costs that are known of these quotas, those of all hosts together, by consumer."""
    found: dict[tuple[str, str, int, str], list[tuple[str, CostReading]]] = {}
    for row in rows:
        for cost in row.costs:
            found.setdefault((cost.consumer, cost.quota, cost.declared, cost.type), []).append((row.host, cost))
    costs = {key: together([cost for _, cost in told]) for key, told in found.items()}
    needed: dict[tuple[str, str, int], int] = {}
    for cost in costs.values():
        if cost.tasks >= MIN_TASKS:
            declaration = cost.consumer, cost.quota, cost.declared
            needed[declaration] = max(cost.p95, needed.get(declaration, 0))
    return _together(
        [
            _judged(cost, tuple(dict.fromkeys(host for host, _ in found[key])), needed.get(key[:3], 0))
            for key, cost in sorted(costs.items())
        ]
    )


def _together(costs: list[Judged]) -> tuple[Judged, ...]:
    """With what is advised for each consumer's other quotas, where a host of theirs is the same; at odds, the more."""
    wrong: dict[str, list[Judged]] = {}
    for cost in costs:
        if cost.wrong:
            wrong.setdefault(cost.consumer, []).append(cost)
    return tuple(replace(one, corrected=_corrected(one, wrong[one.consumer])) if one.wrong else one for one in costs)


def _corrected(cost: Judged, wrong: list[Judged]) -> tuple[tuple[str, int], ...]:
    most: dict[str, int] = {}
    for one in wrong:
        if not set(cost.hosts).isdisjoint(one.hosts):
            most[one.quota] = max(one.advised or 0, most.get(one.quota, 0))
    return tuple({**most, cost.quota: cost.advised or 0}.items())


def _judged(cost: CostReading, hosts: tuple[str, ...], needed: int) -> Judged:
    """needed: what tasks of every type of this declaration need; one cost is declared for all of them."""
    if cost.tasks < MIN_TASKS:
        verdict = Verdict.UNKNOWN
    elif cost.p95 > cost.declared:
        verdict = Verdict.TOO_LOW
    elif cost.p50 * FAR_BELOW <= cost.declared and needed < cost.declared:
        verdict = Verdict.TOO_HIGH
    else:
        verdict = Verdict.RIGHT
    return Judged(
        consumer=cost.consumer,
        type=cost.type,
        quota=cost.quota,
        declared=cost.declared,
        tasks=cost.tasks,
        p50=cost.p50,
        p95=cost.p95,
        hosts=hosts,
        verdict=verdict,
        advised=needed if verdict in MEANS else None,
        mean=cost.mean,
        gave_up=cost.gave_up,
    )


def words(cost: Judged) -> str:
    """What is wrong and why, and how many tasks gave up, in words; "" where nothing is."""
    means = MEANS.get(cost.verdict)
    words = f"{cost.verdict}: {means}" if means else str(cost.verdict)
    if cost.gave_up:
        return f"{words}; {cost.gave_up} gave up half-way"
    return "" if cost.verdict is Verdict.RIGHT else words


def given_up(costs: Iterable[Judged], consumer: str) -> str:
    """How many tasks of a consumer were not paid to their end, and what that says, in a sentence; "" where none."""
    mine = [cost for cost in costs if cost.consumer == consumer and cost.gave_up]
    if not mine:
        return ""
    worst = max(mine, key=lambda cost: cost.gave_up)
    return (
        f"{worst.gave_up} of {worst.tasks} tasks of {consumer} gave up half-way, since {worst.quota} could not pay for "
        f"more than the {worst.declared} that is declared: what they had used is lost"
    )


def advice(cost: Judged, declared: Mapping[str, int]) -> str:
    """The line to write in the inventory: the whole corrected cost of its tasks, the same at each of their quotas.

    declared: all that it declares for that consumer. "" where this cost is right.
    """
    if not cost.wrong:
        return ""
    costs = {**declared, **dict(cost.corrected)}
    return f"quota: {{{', '.join(f'{quota}: {units}' for quota, units in costs.items())}}}"
