"""The end of a run: what it cost is settled, and from what happened follows what becomes of the message."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from qctl.broker.message import ATTEMPT, Malformed, Message, Properties, text
from qctl.quota import Grant, Leases
from qctl.worker.exceptions import RateLimited, Reject, Signal, TimedOut, Unpaid
from qctl.worker.meter import block
from qctl.worker.outcome import ACK, Ending, Outcome, decide
from qctl.worker.upstream import SERVED, Seen

if TYPE_CHECKING:
    from qctl.worker.execute import Run
    from qctl.worker.rules import Rules

log = logging.getLogger(__name__)


def judge(
    rules: Rules,
    leases: Leases,
    grant: Grant,
    run: Run,
    message: Message,
    failure: BaseException | None,
    run_s: float,
) -> tuple[Outcome, Seen | None]:
    """Settle the units; how the task ends, unless the upstream turns out to be the cause, and what it saw of that one.

    failure: what the handler raised. run_s: how long it took.
    """
    followups = run.task.followups()  # first: what the handler left behind opens no meter that nobody settles
    meter = run.task.metered
    if meter is not None and meter.limited is not None and not isinstance(failure, RateLimited):
        failure = meter.limited  # swallowed by the handler; the task is deferred all the same
    elif run.overdue and not isinstance(failure, Signal):  # a result too late, or what it met when it was cut off
        timeout_s = rules.consumer.timeout_s
        failure = TimedOut(f"the task ran {run_s:.1f} s, longer than its timeout of {timeout_s:g} s")
    if failure is not None and not (meter is not None and meter.limited is failure):
        _note(rules, leases, failure)
    if meter is not None:
        leases.settle(grant, meter.close(proven=rules.proven))
        if message.cost is None and (failure is None or meter.short):  # it tells what its like will need
            gave_up = failure is not None
            used = meter.short if gave_up else meter.used()
            rules.learned.add(message.type, used, time.monotonic(), gave_up=gave_up)
    else:
        leases.settle(grant, {} if rules.proven else None)
    outcome = Outcome(Ending.ACK, followups=followups) if followups.messages else ACK
    if failure is not None:
        outcome = decide(failure, message, rules.consumer.retry, rules.ladder_s)
        log.debug("", exc_info=failure)
    seen = None if meter is None or meter.seen is None else _evidence(rules, meter.seen, failure)
    if failure is not None and (seen is None or seen is SERVED):
        tell(outcome, message.properties)
    return outcome, seen


def _evidence(rules: Rules, seen: Seen, failure: BaseException | None) -> Seen | None:
    """What a task's last call says about the upstream.

    Trouble that the handler coped with, or knows what to make of, says nothing. The `http` handler rejects what it is
    refused only because it cannot know better.
    """
    if seen is SERVED:
        return seen
    coped = failure is None or isinstance(failure, RateLimited | Malformed)
    return None if coped or (isinstance(failure, Reject) and not rules.proven) else seen


def _note(rules: Rules, leases: Leases, failure: BaseException) -> None:
    """A handler that was refused by other means than `task.http` says so by raising RateLimited itself."""
    if isinstance(failure, RateLimited) and not isinstance(failure, Unpaid) and failure.retry_after_s is not None:
        for quota in [failure.quota] if failure.quota else rules.consumer.cost:
            if quota in rules.consumer.cost:
                block(leases, quota, failure.retry_after_s)


def tell(outcome: Outcome, properties: Properties) -> None:
    """Say in the log how a task that did not succeed ends."""
    level = logging.ERROR if outcome.ending is Ending.DEAD else logging.WARNING
    attempt = properties.headers.get(ATTEMPT, 1) if properties.headers else 1
    identity = text(properties.message_id) or "-"
    log.log(level, "task %s id=%s attempt=%s: %s", words(outcome), identity, attempt, outcome.error)


def words(outcome: Outcome) -> str:
    """What becomes of a task that did not succeed."""
    if outcome.ending is Ending.DEAD:
        return f"dead ({outcome.reason})"
    return f"runs again in {outcome.delay_s:g} s"
