"""Which of a consumer's queues are paused, and by what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping

from qctl.control.desired import Pause


class Pauses:
    """Those in force, by queue. queues: that are paused. whole: every queue is, so that nothing is left to consume."""

    def __init__(self, every: Collection[str], found: Mapping[str, tuple[Pause, ...]] | None = None) -> None:
        """every: all queues of the consumer; found: by queue, the others are not paused."""
        self._found = {queue: pauses for queue, pauses in (found or {}).items() if pauses}
        self.queues = frozenset(self._found)
        self.whole = bool(every) and self.queues.issuperset(every)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pauses) and self._found == other._found

    __hash__ = None  # type: ignore[assignment]

    def of(self, queue: str) -> tuple[Pause, ...]:
        """What pauses this queue."""
        return self._found.get(queue, ())

    @property
    def all(self) -> tuple[Pause, ...]:
        """What pauses any of the queues, each once."""
        return tuple({one.id: one for found in self._found.values() for one in found}.values())


def in_words(pauses: Iterable[Pause]) -> str:
    """Who paused what, and why. What was given several times is told once, with how often."""
    alike = Counter((_words(one), one.until_s) for one in pauses)
    return "; ".join(words + (f" ({times} times)" if times > 1 else "") for (words, _), times in alike.items())


def _words(pause: Pause) -> str:
    return f"{pause.target}, by {pause.user}" + (f": {pause.reason}" if pause.reason else "")
