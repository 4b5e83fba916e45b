"""Letters that are done with, while nobody knows whether the broker has had the acknowledgement. Pure."""

from __future__ import annotations

from collections import Counter, deque

from qctl.broker.walk import WINDOW

#: Letters whose acknowledgement may still be on its way when the connection is lost: the newest.
MAX_IN_DOUBT = 20 * WINDOW


class Doubt:
    """Which letters, by key, may lie in their queue though they are done with.

    Only what was done when a connection was lost can come back; what is alike and was never touched is another letter.
    """

    def __init__(self) -> None:
        self._done: deque[str] = deque(maxlen=MAX_IN_DOUBT)
        self._may_return: Counter[str] = Counter()
        self._alike: set[str] = set()
        self._ids: dict[str, list[str]] = {}

    def note_done(self, key: str) -> None:
        """Its acknowledgement was sent."""
        self._done.append(key)

    def note_proven(self) -> None:
        """The broker has all acknowledgements of this connection."""
        self._done.clear()

    def note_lost(self) -> None:
        """The connection is gone, and with it perhaps acknowledgements."""
        self._may_return.update(self._done)
        self._done.clear()
        while len(self._may_return) > MAX_IN_DOUBT:
            del self._may_return[next(iter(self._may_return))]
        self._alike = {key for key, count in self._may_return.items() if count > 1}

    def take_back(self, key: str) -> bool:
        """Whether a letter that was delivered again may be one that is done with; each counts once."""
        if not self._may_return.get(key):
            return False
        self._may_return[key] -= 1
        return True

    def is_alike(self, key: str) -> bool:
        """Whether several that say the same were done, so that nobody knows which one this is."""
        return key in self._alike

    @property
    def count(self) -> int:
        """So many may be there still: the broker hands out WINDOW beyond what it knows to be acknowledged."""
        return min(len(self._done) + self._may_return.total(), WINDOW)

    def note_sent(self, key: str, name: str) -> None:
        """A letter without an id went out as `name`, and may be there by now."""
        if key not in self._ids and len(self._ids) >= MAX_IN_DOUBT:
            del self._ids[next(iter(self._ids))]
        self._ids.setdefault(key, []).append(name)

    def name_of(self, key: str) -> str | None:
        """What a letter without an id went out as when it was sent before."""
        names = self._ids.get(key)
        if not names:
            return None
        name = names.pop()
        if not names:
            del self._ids[key]
        return name
