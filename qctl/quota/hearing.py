"""What the API has said since the ledger was asked last: of each limit the answer that says most, and refusals.

Any thread notes, the ledger's thread takes; nothing here waits.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace

from qctl.quota.policy import Limit
from qctl.quota.upstream import Told

#: What is told, by quota and limit.
Answers = Mapping[tuple[str, Limit], Told]
#: Until when nothing is served, by quota; None: it was not said.
Blocks = Mapping[str, int | None]


class Hearing:
    """Of one process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._told: dict[tuple[str, Limit], Told] = {}
        self._blocks: Blocks = {}

    def note(self, quota: str, limit: Limit, told: Told) -> None:
        """An answer about one limit."""
        key = (quota, limit)
        with self._lock:
            known = self._told.get(key)
            self._told[key] = told if known is None else better(known, told)

    def refused(self, quota: str, until_ns: int | None) -> None:
        """A call was refused, and none will be served before `until_ns`; None: it did not say."""
        with self._lock:
            self._blocks = _later(self._blocks, {quota: until_ns})

    def blocks(self) -> Blocks:
        """Take the blocks that are to be written down."""
        with self._lock:
            taken, self._blocks = self._blocks, {}
            return taken

    def keep(self, blocks: Blocks) -> None:
        """They could not be written: the next time."""
        with self._lock:
            self._blocks = _later(self._blocks, blocks)

    def take(self) -> Answers:
        """Take what is to be told to the ledger."""
        with self._lock:
            taken, self._told = self._told, {}
            return taken

    def restore(self, taken: Answers) -> None:
        """The ledger was not told."""
        with self._lock:
            for key, told in taken.items():
                self._told[key] = better(told, self._told[key]) if key in self._told else told


def by_quota(answers: Answers) -> dict[str, tuple[Told, ...]]:
    """What is told of each quota."""
    found: dict[str, tuple[Told, ...]] = {}
    for (quota, _), told in answers.items():
        found[quota] = (*found.get(quota, ()), told)
    return found


def better(one: Told, other: Told) -> Told:
    """Of two answers about one limit the one that says more; the reset is what both say.

    Of two windows the newer counts. Within one, what remains only falls, so less is the later truth, whatever the order
    in which answers came. Where no window is said, what was sent later is.
    """
    if one.reset is not None and other.reset is not None:
        if one.reset.hi_ns < other.reset.lo_ns:
            return other
        if other.reset.hi_ns < one.reset.lo_ns:
            return one
        reset = one.reset.meets(other.reset)
        return replace(min(one, other, key=lambda it: (_remaining(it), -it.sent_ns)), reset=reset)
    return max(one, other, key=lambda it: (it.remaining_units is not None, it.sent_ns, -_remaining(it)))


def _remaining(told: Told) -> float:
    return float("inf") if told.remaining_units is None else told.remaining_units


def _later(one: Blocks, other: Blocks) -> Blocks:
    merged = dict(one)
    for quota, until_ns in other.items():
        known_ns = merged.get(quota)
        merged[quota] = until_ns if known_ns is None else known_ns if until_ns is None else max(known_ns, until_ns)
    return merged
