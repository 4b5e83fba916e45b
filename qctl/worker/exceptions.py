"""What a handler raises to say how its task should end.

Anything else that a handler raises counts as a failure and is retried like `Retry` without a delay.
"""

from __future__ import annotations

from qctl.units import parse_duration


def _seconds(delay: float | str | None) -> float | None:
    if delay is None:
        return None
    seconds = parse_duration(delay) if isinstance(delay, str) else float(delay)
    if not seconds >= 0:
        raise ValueError(f"a delay is zero or more seconds, found {delay!r}")
    return seconds


class Signal(Exception):
    """Base of the three; not for raising."""


class Retry(Signal):
    """The task failed and should run again; uses up an attempt.

    delay: seconds, or a duration such as "30s"; rounded up to a rung of the ladder; None: the consumer's next delay.
    """

    def __init__(self, delay: float | str | None = None, reason: str = "the handler asked for a retry") -> None:
        super().__init__(reason)
        self.delay_s = _seconds(delay)


class RateLimited(Signal):
    """The upstream's limit is reached; the task goes back unharmed and uses no attempt.

    retry_after: seconds, or a duration, after which the upstream said it would serve again; None when it said nothing.
    quota: whose limit it was; None: every quota of the consumer.
    """

    def __init__(
        self, retry_after: float | str | None = None, reason: str = "rate limited", *, quota: str | None = None
    ) -> None:
        super().__init__(reason)
        self.retry_after_s = _seconds(retry_after)
        self.quota = quota


class Unpaid(RateLimited):
    """A call was not made because this host's own quota could not pay for it. Raised by qctl, not by handlers."""


class Reject(Signal):
    """The task must never run again; it becomes a dead letter with this reason."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)


class TimedOut(Signal):
    """The task ran longer than its timeout. Raised into calls of a task that is over time."""
