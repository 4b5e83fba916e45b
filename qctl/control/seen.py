"""Which commands were obeyed before, in bounded memory, so that one that arrives twice is obeyed once.

To forget must not undo a pause. A resume that is taken for new a second time would lift what was paused since, so what
lifts is never forgotten: its ids stand in a filter that may take a new id for an old one (then the operator is told so,
and gives it again under another), never an old one for new. A pause that is taken for new only pauses again.
"""

from __future__ import annotations

from dataclasses import dataclass

#: A Bloom filter of 2^23 bits: of 100,000 ids one in 200,000 is wrongly taken for seen, of 1,000,000 one in 50.
FILTER_BYTES = 1 << 20
#: Bits of the filter for each id, taken from the id itself, which is random.
_BITS_EACH = 4
#: Pauses whose ids are remembered.
MAX_PAUSES_SEEN = 1_000


@dataclass(frozen=True, slots=True)
class Seen:
    """What was obeyed. lifts: the filter, empty before the first; pauses: the last ids, in order."""

    lifts: bytes = b""
    pauses: tuple[str, ...] = ()


class Seeing:
    """A Seen that grows."""

    def __init__(self, seen: Seen) -> None:
        self._lifts = bytearray(seen.lifts)
        self._pauses = dict.fromkeys(seen.pauses)
        self._changed = False

    def has_lift(self, identity: str) -> bool:
        """Whether something that lifts came with this id, of 32 hexadecimal digits; sometimes True when none did."""
        lifts = self._lifts
        return bool(lifts) and all(lifts[at] & bit for at, bit in _places(identity))

    def has_pause(self, identity: str) -> bool:
        """Whether one of the last pauses came with this id."""
        return identity in self._pauses

    def add_lift(self, identity: str) -> None:
        """Something that lifts, with this id, is obeyed."""
        if not self._lifts:
            self._lifts = bytearray(FILTER_BYTES)
        for at, bit in _places(identity):
            self._lifts[at] |= bit
        self._changed = True

    def add_pause(self, identity: str) -> None:
        """A pause with this id is obeyed."""
        self._pauses[identity] = None
        if len(self._pauses) > MAX_PAUSES_SEEN:
            del self._pauses[next(iter(self._pauses))]
        self._changed = True

    def seen(self, before: Seen) -> Seen:
        """As it is now; `before` itself if nothing came since that."""
        if not self._changed:
            return before
        self._changed = False
        return Seen(bytes(self._lifts), tuple(self._pauses))


def _places(identity: str) -> list[tuple[int, int]]:
    """(byte, bit) of an id in the filter."""
    number = int(identity, 16)
    places = []
    for _ in range(_BITS_EACH):
        number, low = divmod(number, 1 << 32)
        place = low % (FILTER_BYTES * 8)
        places.append((place >> 3, 1 << (place & 7)))
    return places
