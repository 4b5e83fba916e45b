"""What a task costs in a plan: what its like were seen to use, where enough were seen, else what is declared. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from qctl.ops.costs import MIN_TASKS, Judged

#: A consumer, a quota, and the units that are declared for it: hosts may declare otherwise.
Declared = tuple[str, str, int]


@dataclass(frozen=True, slots=True)
class Seen:
    """Tasks of all types of a declaration: how many were seen, what one of them used on the average, how many of them
    gave up."""

    tasks: int
    mean: float
    gave_up: int = 0


def seen(costs: Iterable[Judged]) -> Mapping[Declared, Seen]:
    """What is known of each declaration, from few tasks too. A process that tells no mean is taken by its median."""
    found: dict[Declared, Seen] = {}
    for cost in costs:
        key = cost.consumer, cost.quota, cost.declared
        before = found.get(key, Seen(0, 0.0))
        tasks = before.tasks + cost.tasks
        mean = float(cost.p50) if cost.mean is None else cost.mean
        units = before.mean * before.tasks + mean * cost.tasks
        found[key] = Seen(tasks, units / tasks if tasks else 0.0, before.gave_up + cost.gave_up)
    return found


def units(declared_units: int, known: Seen | None) -> float:
    """What a task is taken to use."""
    return known.mean if known is not None and known.tasks >= MIN_TASKS else declared_units


def words(declared: Declared, known: Seen | None) -> str:
    """What is assumed of it, in a sentence; "" where tasks were seen to use what is declared."""
    consumer, quota, declared_units = declared
    if known is None or known.tasks < MIN_TASKS:
        few = f"; only {known.tasks} were seen" if known is not None and known.tasks else ""
        return f"a task of {consumer} costs {declared_units} of {quota} as declared{few}"
    if known.mean == declared_units and not known.gave_up:
        return ""
    gave_up = f", {known.gave_up} of which gave up half-way" if known.gave_up else ""
    least = " at least" if known.gave_up else ""
    mean = f"{known.mean:.3g} of {quota}{least}, the mean of {known.tasks} seen{gave_up}"
    return f"a task of {consumer} costs {mean}; {declared_units} is declared"
