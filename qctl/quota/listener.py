"""Hearing all answers of one API: its clock becomes known, and what one answer alone cannot say."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from qctl.quota.policy import NS_PER_S
from qctl.quota.upstream import (
    MAX_TOLD,
    SECONDARY_FIRST_NS,
    Answer,
    Heard,
    Offset,
    Span,
    Style,
    Told,
    clock_reset,
    read,
)

#: An API whose answers turn from one limit to another and back has several, for so long since it last did.
SEVERAL_NS = 3_600 * NS_PER_S
#: The longest wait for a secondary limit that says nothing, and how long it takes to start from the first one again.
SECONDARY_LAST_NS = 3_600 * NS_PER_S


@dataclass(slots=True)
class Listener:
    """Hears all answers of one quota's API. Thread-safe; never waits for anything but another answer.

    style: the inventory's `headers`. periods_ns: of the quota's limits. by_clock: where no reset is reported, windows
    end at multiples of the period by the API's clock.
    """

    style: Style = Style.AUTO
    periods_ns: tuple[int, ...] = ()
    by_clock: bool = False
    _offset: Offset | None = None
    _limits: list[int] = field(default_factory=list)
    _several_until_ns: int = 0
    _secondary_ns: int = 0
    _secondary_until_ns: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def hear(self, answer: Answer) -> Heard:
        """What the answer says, in the light of those before."""
        with self._lock:
            heard = read(answer, style=self.style, offset=self._offset, periods_ns=self.periods_ns)
            self._offset = heard.offset
            if heard.told:
                heard = replace(heard, told=tuple(self._several(one) for one in heard.told))
            if self.by_clock and self._offset is not None:
                heard = replace(heard, told=(*heard.told, *self._clock_told(answer, heard.told)))
            return self._longer(answer, heard) if heard.secondary else heard

    def _several(self, told: Told) -> Told:
        """The same, but exact for an API that reports now one limit, now another, as Twitter does for each endpoint."""
        if told.exact or told.limit_units is None or told.period_ns is not None:
            return told
        if not self._limits or self._limits[-1] != told.limit_units:
            if told.limit_units in self._limits:
                self._several_until_ns = told.received_ns + SEVERAL_NS
            self._limits = [*self._limits, told.limit_units][-MAX_TOLD:]
        return replace(told, exact=told.received_ns < self._several_until_ns)

    def _clock_told(self, answer: Answer, told: tuple[Told, ...]) -> Iterator[Told]:
        assert self._offset is not None
        if any(one.reset is not None for one in told):
            return
        for period_ns in self.periods_ns:
            if (reset := clock_reset(self._offset, period_ns, answer.received_ns)) is not None:
                yield Told(None, None, period_ns, reset, answer.sent_ns, answer.received_ns, from_clock=True)

    def _longer(self, answer: Answer, heard: Heard) -> Heard:
        """A secondary limit that does not say how long, and refuses what was sent after the wait: twice as long."""
        if "retry-after" in answer.headers:
            return heard
        if answer.sent_ns >= self._secondary_until_ns + SECONDARY_LAST_NS:
            self._secondary_ns = 0
        if answer.sent_ns >= self._secondary_until_ns:
            self._secondary_ns = min(max(SECONDARY_FIRST_NS, 2 * self._secondary_ns), SECONDARY_LAST_NS)
        wait = Span(answer.sent_ns, answer.received_ns).moved(self._secondary_ns)
        self._secondary_until_ns = max(self._secondary_until_ns, wait.hi_ns)
        return replace(heard, wait=wait)
