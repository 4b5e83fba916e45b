"""What is known of the windows of a `fixed` limit, learned from the resets that the upstream announces. Pure.

A fixed limit counts as a sliding one, which is always enough, and forgets at a reset what was counted before it. It
forgets only at a reset that was announced before it came: so an upstream that in truth slides, and announces a reset a
period ahead with each answer, never makes it forget anything, and a clock that jumps costs caution and no call.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from qctl.quota.foreign import spread_ns
from qctl.quota.policy import Limit
from qctl.quota.upstream import Span, Told

#: Before any boot: of a limit of which no reset has passed.
NEVER_NS = -(2**62)


@dataclass(frozen=True, slots=True)
class Reset:
    """since_ns: what was counted before does not count any more. next: where the end of the present window lies; None:
    not known. reported: `next` is the upstream's word, and not read off its clock. spread_ns: how much later than
    necessary this host believes that the next window has begun, so that not all do at one instant. doubt_ns: a reset
    before this makes nothing be forgotten, since one was put off less than a window before."""

    since_ns: int = NEVER_NS
    next: Span | None = None
    reported: bool = False
    spread_ns: int = 0
    doubt_ns: int = NEVER_NS

    @property
    def believed(self) -> Span | None:
        """Where the end of the present window lies, if that is to be trusted."""
        return self.next if self.next and self.next.lo_ns >= self.doubt_ns else None

    @property
    def opens_ns(self) -> int | None:
        """When the next window has begun for certain, and this host uses it."""
        return self.believed.hi_ns + self.spread_ns if self.believed else None

    def start_ns(self, now_ns: int) -> int:
        """What was counted before this is not of the present window, nor of a later one."""
        return (
            self.believed.lo_ns if self.believed and now_ns >= self.believed.hi_ns + self.spread_ns else self.since_ns
        )

    def floor_ns(self, limit: Limit, now_ns: int) -> int:
        """What expires at this instant or before does not count at `now_ns`, though it may not have expired yet."""
        return max(now_ns, self.start_ns(now_ns) + limit.kept_ns - 1)


def learned(before: Reset, told: Told, limit: Limit, *, chance: float) -> Reset:
    """What is known after an answer that names a reset. chance: from 0 to 1, for the spread of a new window.

    | the reported end of the window          | then                                                          |
    |-----------------------------------------|---------------------------------------------------------------|
    | is past, or too far ahead               | is not of this limit, and is ignored                          |
    | may be the known one                    | is where both are, unless it may as well be the next          |
    | is a window later, the known one passed | a new window: what was counted before the old end is forgotten |
    | is later                                | the upstream has put it off, and nothing is forgotten at a    |
    |                                         | reset for a window from now                                   |
    | may be the end of the window before     | an answer that was overtaken, and is ignored                  |
    | is earlier                              | they contradict each other: nothing is known                  |
    """
    found = told.reset
    if found is None or (told.from_clock and _is_reported(before, limit, told.received_ns)):
        return before
    if found.hi_ns <= told.received_ns or found.lo_ns > told.received_ns + limit.kept_ns:
        return before
    reported = not told.from_clock
    known = before.next
    if known is None or (reported and not before.reported):
        return replace(before, next=found, reported=reported, spread_ns=spread_ns(limit.period_ns, chance))
    if (both := known.meets(found)) is not None:
        either_ns = max(known.hi_ns, found.hi_ns) - min(known.lo_ns, found.lo_ns)
        return replace(before, next=both) if either_ns < limit.period_ns else before
    if found.lo_ns > known.hi_ns:
        if told.received_ns >= known.lo_ns and found.hi_ns >= known.lo_ns + limit.period_ns:
            spread = spread_ns(limit.period_ns, chance)
            since_ns = before.since_ns if before.believed is None else known.lo_ns
            return replace(before, since_ns=since_ns, next=found, reported=reported, spread_ns=spread)
        return replace(before, next=found, doubt_ns=told.received_ns + limit.kept_ns)
    if found.overlaps(Span(known.lo_ns - limit.kept_ns, known.hi_ns - limit.period_ns)):
        return before
    return replace(before, next=None, reported=False)


def _is_reported(reset: Reset, limit: Limit, now_ns: int) -> bool:
    """Whether the upstream itself named a reset, a period ago at most."""
    return reset.reported and reset.next is not None and now_ns < reset.next.hi_ns + limit.kept_ns
