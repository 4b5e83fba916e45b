"""What the tasks of a consumer were seen to use, by message type and quota: beside what the inventory declares.

Only tasks that tell: their calls were metered, they named no cost of their own, and they ended well or gave up half-way
since the host could not pay for more: else a cost declared far too low would look right, as only cheap tasks end. What
is learnt is shown and decides nothing: admission goes by the declaration.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from qctl.broker.message import short
from qctl.control.quota_reading import CostReading

#: The last tasks of a type that percentiles are taken from.
MAX_TASKS = 512
#: Types and quotas that are kept apart; whatever comes beyond is counted together, as OTHERS.
MAX_KINDS = 32
OTHERS = "…"
#: Characters of a type.
MAX_TYPE_CHARS = 80
#: A type of which nothing came for so long is forgotten.
KEPT_S = 3_600.0


@dataclass(slots=True)
class _Seen:
    """Tasks of one type: how many, how many of them gave up, when the last ended, what the newest of them used."""

    tasks: int = 0
    gave_up: int = 0
    last_s: float = 0.0
    units: deque[int] = field(default_factory=lambda: deque(maxlen=MAX_TASKS))


class Learned:
    """Of one consumer in one process. Thread-safe: tasks end in threads of their own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: dict[tuple[str, str], _Seen] = {}

    def add(self, kind: str, used: Mapping[str, int], now_s: float, *, gave_up: bool = False) -> None:
        """A task of this type has ended and used so much. now_s: of a clock that only goes forward.

        gave_up: it could not be paid to its end; `used` is what it would have needed at least, where it fell short.
        """
        with self._lock:
            for quota, units in used.items():
                seen = self._seen.get((kind, quota)) or self._new(kind, quota)
                seen.tasks += 1
                seen.gave_up += gave_up
                seen.last_s = now_s
                seen.units.append(units)

    def _new(self, kind: str, quota: str) -> _Seen:
        key = (kind if len(self._seen) < MAX_KINDS else OTHERS, quota)
        return self._seen.setdefault(key, _Seen())

    def readings(self, consumer: str, declared: Mapping[str, int], now_s: float) -> Iterator[CostReading]:
        """What was learnt by now, those first of which most came. declared: by quota, what the inventory says."""
        with self._lock:
            self._seen = {key: seen for key, seen in self._seen.items() if now_s - seen.last_s < KEPT_S}
            found = [(key, seen.tasks, seen.gave_up, sorted(seen.units)) for key, seen in self._seen.items()]
        for (kind, quota), tasks, gave_up, units in sorted(found, key=lambda each: -each[1]):
            if quota in declared:
                yield CostReading(
                    consumer,
                    _named(kind),
                    quota,
                    declared[quota],
                    tasks,
                    p50=percentile(units, 50),
                    p95=percentile(units, 95),
                    mean=round(sum(units) / len(units), 3),
                    gave_up=gave_up,
                )


def percentile(ordered: list[int], percent: int) -> int:
    """The least of these values that `percent` of 100 of them do not exceed; there is one at least."""
    return ordered[-(-percent * len(ordered) // 100) - 1]


def _named(kind: str) -> str:
    """A type as it is shown: whoever enqueues may call it what they want."""
    shown = short(kind)
    return shown if len(shown) <= MAX_TYPE_CHARS else f"{shown[: MAX_TYPE_CHARS - 1]}…"
