"""How an API counts: the three kinds of window as exact counters in whole nanoseconds. Nothing in here knows qctl.

Instants are of any clock that never runs backwards; a counter is asked with instants that never decrease.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """How the window moves."""

    SLIDING = "sliding"
    FIXED = "fixed"
    PACED = "paced"


@dataclass(frozen=True, slots=True)
class Rule:
    """`units` in `period_ns`. burst: the capacity of a paced one. phase_ns: a fixed window begins at any multiple of
    the period plus this, on the API's own clock."""

    kind: Kind
    units: int
    period_ns: int
    burst: int = 1
    phase_ns: int = 0

    def __post_init__(self) -> None:
        if self.units < 1 or self.period_ns < 1 or self.burst < 1:
            raise ValueError(f"a rule's numbers are positive: {self}")

    def counter(self) -> Sliding | Fixed | Bucket:
        """A counter that has counted nothing yet."""
        match self.kind:
            case Kind.SLIDING:
                return Sliding(self)
            case Kind.FIXED:
                return Fixed(self)
            case Kind.PACED:
                return Bucket(self)


class Sliding:
    """At most `units` in any half-open window of the period."""

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        self._counted: deque[int] = deque()

    def count(self, now_ns: int) -> bool:
        """Count a call, or refuse it: what is refused does not count."""
        if not self.remaining(now_ns):
            return False
        self._counted.append(now_ns)
        return True

    def remaining(self, now_ns: int) -> int:
        """Calls that would be counted now."""
        while self._counted and self._counted[0] <= now_ns - self._rule.period_ns:
            self._counted.popleft()
        return self._rule.units - len(self._counted)

    def more_ns(self, now_ns: int) -> int:
        """When the first that counts leaves the window; now, when none does."""
        self.remaining(now_ns)
        return self._counted[0] + self._rule.period_ns if self._counted else now_ns


class Fixed:
    """At most `units` in each window; a window ends where the next begins."""

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        self._window: int | None = None
        self._used = 0

    def count(self, now_ns: int) -> bool:
        """Count a call, or refuse it: what is refused does not count."""
        if not self.remaining(now_ns):
            return False
        self._used += 1
        return True

    def remaining(self, now_ns: int) -> int:
        """Calls that would be counted now."""
        if (window := number_of(now_ns, self._rule)) != self._window:
            self._window, self._used = window, 0
        return self._rule.units - self._used

    def more_ns(self, now_ns: int) -> int:
        """When the present window ends."""
        return (number_of(now_ns, self._rule) + 1) * self._rule.period_ns + self._rule.phase_ns


class Bucket:
    """A leaky bucket: `burst` calls fill it, and it leaks `units` a period, evenly."""

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        # In parts of a call, `period_ns` of them each, of which `units` leak in a nanosecond: no fraction is lost.
        self._level = 0
        self._at_ns = 0

    def count(self, now_ns: int) -> bool:
        """Count a call, or refuse it: what is refused does not count."""
        if not self.remaining(now_ns):
            return False
        self._level += self._rule.period_ns
        return True

    def remaining(self, now_ns: int) -> int:
        """Calls that would be counted now."""
        self._leak(now_ns)
        return (self._rule.burst * self._rule.period_ns - self._level) // self._rule.period_ns

    def more_ns(self, now_ns: int) -> int:
        """When one more call fits than do now; now, when it is empty."""
        remaining = self.remaining(now_ns)
        too_much = self._level - (self._rule.burst - remaining - 1) * self._rule.period_ns
        return now_ns + max(0, -(-too_much // self._rule.units)) if self._level else now_ns

    def _leak(self, now_ns: int) -> None:
        self._level = max(0, self._level - (now_ns - self._at_ns) * self._rule.units)
        self._at_ns = now_ns


def number_of(now_ns: int, rule: Rule) -> int:
    """Which window an instant lies in, on the clock that the windows are aligned to."""
    return (now_ns - rule.phase_ns) // rule.period_ns
