"""What was: depths of queues and burn of quotas over the last minutes, in bounded memory."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from dataclasses import dataclass
from enum import StrEnum
from math import isnan, nan

from qctl.tui.snapshot import Snapshot

#: One point stands for this long.
STEP_S = 5.0
#: Points that are kept of each: ten minutes.
MAX_POINTS = 120
#: Queues and quotas that are remembered, a kilobyte each. Who is in neither of the last two snapshots goes first; where
#: all are, those that are there stay: each would else be forgotten before its next point.
MAX_KEYS = 5_000

#: Growth is measured over a minute.
GROWTH_POINTS = 13


class Kind(StrEnum):
    """What is remembered."""

    #: Tasks that wait in a queue.
    DEPTH = "depth"
    #: Units a second that are spent of a quota.
    BURN = "burn"


class History:
    """Not thread-safe: lives where the screen does."""

    def __init__(self) -> None:
        self._points: OrderedDict[tuple[Kind, str], _Points] = OrderedDict()
        self._newest = 0
        self._snapshots = 0

    def __len__(self) -> int:
        return len(self._points)

    def add(self, snapshot: Snapshot) -> None:
        """Remember what a snapshot tells; a number that is older than its point's time goes to its own time."""
        self._snapshots += 1
        for queue in (*snapshot.status.queues, *snapshot.dead):
            at_s = queue.seen.at_s if queue.seen else snapshot.at_s
            self._put((Kind.DEPTH, queue.queue), at_s, queue.ready)
        for quota in snapshot.status.quotas:
            at_s = quota.seen.at_s if quota.seen else snapshot.at_s
            self._put((Kind.BURN, quota.address), at_s, quota.spend_per_s)
        self._newest = max(self._newest, int(snapshot.at_s // STEP_S))

    def of(self, kind: Kind, key: str) -> tuple[float | None, ...]:
        """The points of one, the newest last, None where nothing is known; the last is the present one's."""
        found = self._points.get((kind, key))
        if found is None:
            return ()
        begin = max(found.first, self._newest - MAX_POINTS + 1)
        return tuple(found.at(step) for step in range(begin, self._newest + 1))

    def growth(self, queue: str) -> float | None:
        """Tasks a second by which a queue grew over the last minute; None where that is not known."""
        points = self.of(Kind.DEPTH, queue)[-GROWTH_POINTS:]
        known = [(at, value) for at, value in enumerate(points) if value is not None]
        if len(known) < 2:
            return None
        (begin, first), (end, last) = known[0], known[-1]
        return (last - first) / ((end - begin) * STEP_S)

    def _put(self, key: tuple[Kind, str], at_s: float, value: float | None) -> None:
        if value is None:
            return
        step = int(at_s // STEP_S)
        found = self._points.get(key)
        if found is None:
            if len(self._points) >= MAX_KEYS:
                if next(iter(self._points.values())).snapshot >= self._snapshots - 1:
                    return
                self._points.popitem(last=False)
            found = self._points[key] = _Points(array("d", [nan]) * MAX_POINTS, first=step, last=step)
        else:
            self._points.move_to_end(key)
        found.put(step, value)
        found.snapshot = self._snapshots
        self._newest = max(self._newest, step)


@dataclass(slots=True)
class _Points:
    """A ring of the last MAX_POINTS steps up to `last`; unknown ones are not numbers. snapshot: the last it was in."""

    ring: array[float]
    first: int
    last: int
    snapshot: int = 0

    def put(self, step: int, value: float) -> None:
        if step <= self.last - MAX_POINTS:
            return  # from before all that is kept
        for gap in range(max(self.last + 1, step - MAX_POINTS + 1), step):
            self.ring[gap % MAX_POINTS] = nan
        self.ring[step % MAX_POINTS] = value
        self.first = min(self.first, step)
        self.last = max(self.last, step)

    def at(self, step: int) -> float | None:
        value = self.ring[step % MAX_POINTS]
        return None if isnan(value) or not self.last - MAX_POINTS < step <= self.last else value
