"""One message in a process's hands, from when it comes in until it leaves."""

from __future__ import annotations

from dataclasses import dataclass, field

from qctl.broker.message import Properties
from qctl.broker.subscription import Subscription
from qctl.worker.handlers import Answer
from qctl.worker.outcome import Outcome
from qctl.worker.upstream import Seen


@dataclass(slots=True, eq=False)
class Delivery:
    """One message in this process's hands."""

    subscription: Subscription
    tag: int
    redelivered: bool
    properties: Properties = field(repr=False)
    body: bytes = field(repr=False)
    received_s: float


@dataclass(frozen=True, slots=True, eq=False)
class Settled:
    """A delivery that is done with.

    run_s: how long the handler took, None when it did not run. seen: what that says about the upstream, if anything.
    """

    delivery: Delivery
    outcome: Outcome
    answer: Answer | None = None
    run_s: float | None = None
    seen: Seen | None = None

    @property
    def forwards(self) -> bool:
        """True when something is published for an ACK first: what the task enqueued, or its answer."""
        answers = self.answer is not None and self.delivery.properties.reply_to
        return bool(answers or self.outcome.followups.messages)
