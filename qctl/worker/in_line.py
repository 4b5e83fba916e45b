"""A consumer's place in line for its quotas: it has one exactly while it is to consume, or would but for the quota."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from qctl.quota import Cause, Leases

#: What its hold is called.
CAUSE = "quota"


class InLine:
    """Of one consumer of this process. Use from the loop's thread.

    priced: the price of its usual task; it stays good while the place is given up.
    """

    def __init__(
        self,
        leases: Leases,
        consumer: str,
        cost: Mapping[str, int],
        *,
        backlog: Callable[[], Mapping[str, int]],
        hold: Callable[[str, str, str], None],
        release: Callable[[str], None],
    ) -> None:
        """backlog: see Leases.register. hold(cause, words, for now) and release(cause): of the consumer, called at once
        and whenever that changes. Raises UnknownName, LedgerError."""
        self._leases = leases
        self._consumer = consumer
        self._backlog = backlog
        self._hold = hold
        self._release = release
        self.priced = leases.register(consumer, cost, backlog=backlog)
        self.judge()

    def leave(self) -> None:
        """Paused or draining: it claims nothing, and who waits in a slot is told so at once. What the quota would say
        is not known meanwhile, and no reason for anything."""
        self._leases.withdraw(self._consumer)
        self._release(CAUSE)

    def come_back(self) -> None:
        """It is to consume again, if the quota lets it."""
        self._leases.enter_again(self.priced, backlog=self._backlog)
        self.judge()

    def judge(self) -> None:
        """The standing may have changed; it is asked for here, since who was told of it may have been so long ago."""
        held = self._leases.standing(self._consumer).held
        if held is None:
            self._release(CAUSE)
        elif held.cause is not Cause.WITHDRAWN:
            until = ""
            if held.until_ns is not None:
                left_s = max(0.0, (held.until_ns - self._leases.clock.now_ns()) / 1e9)
                until = f", returns in about {left_s:.0f} s"
            self._hold(CAUSE, f"{held.cause} {held.quota}" if held.quota else str(held.cause), until)
