"""What a rate-limited server grants: so many calls in any sliding window. Pure, the clock is passed in."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ruling:
    """The answer to one call: granted or not, what is left, the ns until the oldest counted call leaves the window."""

    granted: bool
    remaining_units: int
    reset_in_ns: int


class SlidingLimit:
    """At most `limit_units` calls in any half-open window of `window_ns`; calls exactly one window apart share none.

    Memory is bounded by the limit: one instant for each call that was granted within the last window.
    """

    __slots__ = ("_granted_ns", "limit_units", "window_ns")

    def __init__(self, *, limit_units: int, window_ns: int) -> None:
        if limit_units < 1 or window_ns < 1:
            raise ValueError(f"a limit and its window are positive, found {limit_units} in {window_ns} ns")
        self.limit_units = limit_units
        self.window_ns = window_ns
        self._granted_ns: deque[int] = deque()

    def call(self, now_ns: int) -> Ruling:
        """Rule on a call at `now_ns`, never earlier than the call before. A refused call does not count."""
        granted_ns = self._granted_ns
        while granted_ns and granted_ns[0] <= now_ns - self.window_ns:
            granted_ns.popleft()
        granted = len(granted_ns) < self.limit_units
        if granted:
            granted_ns.append(now_ns)
        return Ruling(granted, self.limit_units - len(granted_ns), granted_ns[0] + self.window_ns - now_ns)
