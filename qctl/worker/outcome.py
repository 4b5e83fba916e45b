"""How a run ends: pure decisions from what happened to what becomes of the message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from qctl.broker import message as wire
from qctl.broker.message import DeadReason, Malformed, Message
from qctl.inventory.model import RetryPolicy
from qctl.worker.exceptions import RateLimited, Reject, Retry, TimedOut
from qctl.worker.outbox import NONE, Followups
from qctl.worker.upstream import without_queries

#: A task that was deferred this often is given up on.
MAX_DEFERRALS = 20
#: A task that ended the process it ran in alone this often is given up on.
MAX_CRASHES = 3
#: What an error says beyond that is not looked at: no more than its beginning is kept.
MAX_EXPLAINED_CHARS = 4_000


class Ending(Enum):
    """What becomes of the message."""

    ACK = "ack"
    GIVE_BACK = "give back"  # nack: it was not started; unharmed, at once, for whoever can pay
    LATER = "later"  # published to the retry ladder, then acked
    DEAD = "dead"  # published to the dead-letter queue, then acked


@dataclass(frozen=True, slots=True)
class Outcome:
    """An ending with what the republished message says. `delay_s` is a rung of the ladder, for LATER alone.

    followups: what the task enqueued, for ACK alone; confirmed before the acknowledgement.
    """

    ending: Ending
    error: str = ""
    delay_s: float = 0.0
    reason: DeadReason | None = None
    headers: Mapping[str, Any] = field(default_factory=dict)
    followups: Followups = NONE


ACK = Outcome(Ending.ACK)
GIVE_BACK = Outcome(Ending.GIVE_BACK)


def rung(delay_s: float, ladder_s: Sequence[float]) -> float:
    """The shortest rung that is at least `delay_s`, the longest where none is. `ladder_s` ascends and is not empty."""
    return next((step_s for step_s in ladder_s if step_s >= delay_s), ladder_s[-1])


def dead(reason: DeadReason, error: str) -> Outcome:
    """Give the task up."""
    error = wire.short(error)
    return Outcome(Ending.DEAD, error, reason=reason, headers={wire.ERROR: error, wire.REASON: reason.value})


def explain(error: BaseException) -> str:
    """One line for a failure: `ValueError: no such user`. It goes into logs and dead letters, and no query does."""
    kind = type(error).__name__
    try:
        words = wire.short(without_queries(str(error)[:MAX_EXPLAINED_CHARS]))
    # The error is the user's code too; one that cannot say what it is must not take the task's ending with it.
    except Exception:  # noqa: BLE001
        words = ""
    if words and isinstance(error, Retry | RateLimited | Reject | TimedOut | Malformed):
        return words
    return wire.short(f"{kind}: {words}" if words else kind)


def decide(error: BaseException | None, message: Message, retry: RetryPolicy, ladder_s: Sequence[float]) -> Outcome:
    """What becomes of a task whose handler returned (`error` None) or raised `error`.

    | handler                       | while attempts (deferrals) remain    | else             |
    |-------------------------------|--------------------------------------|------------------|
    | returned                      | ack                                  |                  |
    | Retry(delay), any exception   | later, attempt + 1                   | dead, attempts   |
    | RateLimited, also Unpaid      | later, deferrals + 1, same attempt   | dead, deferrals  |
    | Reject                        | dead, rejected                       |                  |
    | Malformed                     | dead, with its reason                |                  |
    """
    if error is None:
        return ACK
    if isinstance(error, Malformed):
        return dead(error.reason, explain(error))
    if isinstance(error, Reject):
        return dead(DeadReason.REJECTED, explain(error))
    text = explain(error)
    if isinstance(error, RateLimited):
        deferrals = message.deferrals + 1
        if deferrals > MAX_DEFERRALS:
            return dead(DeadReason.DEFERRALS, f"deferred {message.deferrals} times, too often; last: {text}")
        wanted_s = ladder_s[min(deferrals, len(ladder_s)) - 1] if error.retry_after_s is None else error.retry_after_s
        return Outcome(
            Ending.LATER, text, rung(wanted_s, ladder_s), headers={wire.DEFERRALS: deferrals, wire.ERROR: text}
        )
    if message.attempt >= retry.attempts:
        outcome = dead(DeadReason.ATTEMPTS, text)
        return Outcome(
            Ending.DEAD, outcome.error, 0.0, outcome.reason, {**outcome.headers, wire.ATTEMPT: message.attempt}
        )
    wanted_s = retry.delay_s(message.attempt)
    if isinstance(error, Retry) and error.delay_s is not None:
        wanted_s = error.delay_s
    return Outcome(
        Ending.LATER, text, rung(wanted_s, ladder_s), headers={wire.ATTEMPT: message.attempt + 1, wire.ERROR: text}
    )


def spared(error: str, pause_s: float, ladder_s: Sequence[float]) -> Outcome:
    """The upstream is in trouble, not the task: later, unharmed, and nothing is counted, however long it lasts."""
    return Outcome(Ending.LATER, error, rung(pause_s, ladder_s), headers={wire.ERROR: error})


def crashed(how: str, headers: Mapping[str, Any], retry: RetryPolicy, ladder_s: Sequence[float]) -> Outcome:
    """The task ended the process in which it ran alone; it runs again, alone, or is dead. how: it ended, in words.

    headers: the task's. Uses no attempt: nobody knows how the task itself would have ended.
    """
    before = headers.get(wire.CRASHES)
    crashes = 1 + (before if isinstance(before, int) else 0)
    error = wire.short(f"{how}, {crashes} of {MAX_CRASHES} times")
    if crashes >= MAX_CRASHES:
        outcome = dead(DeadReason.POISON, error)
        return Outcome(Ending.DEAD, error, 0.0, outcome.reason, {**outcome.headers, wire.CRASHES: crashes})
    delay_s = rung(retry.delay_s(crashes), ladder_s)
    return Outcome(Ending.LATER, error, delay_s, headers={wire.CRASHES: crashes, wire.ERROR: error})
