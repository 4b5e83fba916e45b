"""Who is suspected of killing processes, who may run beside whom, and who is to blame. Pure decisions.

A task that was in a process when it died may have killed it, or was an innocent neighbour. After a few deaths it runs
in a process of its own kind, the *ward*, whose death costs nobody else. Suspects share the ward, because most of them
are innocent: RabbitMQ before 4.3 counts a task that was merely given back like one whose process died. Only when the
ward dies with several in it does each of them run alone, and only who was alone is to blame.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from qctl.broker.message import CRASHES

#: A task delivered again so often is a suspect.
SUSPECT_DELIVERIES = 3
#: The broker's count of deliveries that came back, on quorum queues; 4.3 leaves out what was nacked.
DELIVERIES = "x-delivery-count"
#: 4.3's other count, there also when the first is not.
ACQUIRED = "x-acquired-count"


def is_suspect(headers: Mapping[str, Any] | None, *, redelivered: bool) -> bool:
    """Whether a task may have killed processes.

    | qctl-crashes | redelivered | the queue counts              | suspect     |
    |--------------|-------------|-------------------------------|-------------|
    | there        | any         | any                           | yes         |
    | none         | no          | any (a producer may lie)      | no          |
    | none         | yes         | yes                           | from 3 on   |
    | none         | yes         | no: a classic queue           | yes         |
    """
    if headers and CRASHES in headers:
        return True
    if not redelivered:
        return False
    count = headers.get(DELIVERIES) if headers else None
    if isinstance(count, int):
        return count >= SUSPECT_DELIVERIES
    return not (headers and ACQUIRED in headers)


class Suspect(Protocol):
    """What the rules look at. consumer: its name. alone: nobody may be in the ward with it. started: it runs."""

    @property
    def consumer(self) -> str: ...
    @property
    def alone(self) -> bool: ...
    @property
    def started(self) -> bool: ...


S = TypeVar("S", bound=Suspect)


def next_in(waiting: Iterable[S], inside: Collection[S], slots: Mapping[str, int]) -> S | None:
    """Who of those who wait, first come first served, may go into the ward now. slots: of each consumer."""
    if any(one.alone for one in inside):
        return None
    for one in waiting:
        if one.alone:
            return None if inside else one
        if sum(other.consumer == one.consumer for other in inside) < slots[one.consumer]:
            return one
    return None


def culprits(inside: Sequence[S], overdue: Collection[S]) -> Sequence[S]:
    """Who may have ended the ward: all that ran, and only those it was ended for, if it was; one alone is to blame.

    Who was over its time before it began has waited for the machine, and did nothing itself.
    """
    return [one for one in inside if one.started and (not overdue or one in overdue)]
