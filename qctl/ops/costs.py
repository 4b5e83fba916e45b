"""What tasks were seen to cost, beside what the inventory declares, and whether the declaration is right. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
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
    """The cost of a type of tasks on some hosts that declare it alike. advised: units to declare, None where it is
    right: what 95 of 100 tasks of every type of that consumer were seen to need at most."""

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
    return tuple(
        _judged(cost, tuple(dict.fromkeys(host for host, _ in found[key])), needed.get(key[:3], 0))
        for key, cost in sorted(costs.items())
    )


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
    )


def words(cost: Judged) -> str:
    """What is wrong and why, in words; "" where nothing is."""
    means = MEANS.get(cost.verdict)
    return f"{cost.verdict}: {means}" if means else "" if cost.verdict is Verdict.RIGHT else str(cost.verdict)


def advice(cost: Judged, declared: Mapping[str, int]) -> str:
    """The line to write in the inventory; declared: all that it declares for that consumer. "" where it is right."""
    if cost.advised is None:
        return ""
    costs = {**declared, cost.quota: cost.advised}
    return f"quota: {{{', '.join(f'{quota}: {units}' for quota, units in costs.items())}}}"
