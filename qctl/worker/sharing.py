"""Which consumers of a process have work: they share what a quota pays for, and an idle one leaves them its part."""

from __future__ import annotations

from collections.abc import Mapping

#: A consumer that did nothing for so long leaves its part to the others.
IDLE_S = 5.0


class Sharing:
    """The consumers of one process. Instants are of a clock that only goes forward, in s."""

    def __init__(self, costs: Mapping[str, Mapping[str, int]], now_s: float) -> None:
        """costs: of a task, by consumer. Until it is known that they are idle, all have work."""
        self._costs = costs
        self._done = dict.fromkeys(costs, 0)
        self._worked_s = dict.fromkeys(costs, now_s)

    def note(self, consumer: str, *, here: int, done: int, now_s: float) -> None:
        """here: deliveries that it has, waiting or running; done: tasks that it has ended so far."""
        if here or done != self._done[consumer]:
            self._done[consumer], self._worked_s[consumer] = done, now_s

    def beside(self, consumer: str, now_s: float) -> list[Mapping[str, int]]:
        """What a task costs of each other consumer that has work."""
        return [
            cost for name, cost in self._costs.items() if name != consumer and now_s - self._worked_s[name] < IDLE_S
        ]
