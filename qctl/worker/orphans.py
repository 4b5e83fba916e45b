"""Runs whose delivery was lost under them, and what their redelivery needs then: not a second run.

The broker takes a delivery back when its connection or channel ends, or when it is older than `consumer_timeout`; the
handler runs on. If the message comes back to this same process, it waits for that run and is settled with its outcome.
Without this, a task that takes longer than `consumer_timeout` would start again and again and never be done.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from qctl.broker.message import ATTEMPT, text
from qctl.worker.delivery import Delivery, Settled
from qctl.worker.outcome import Ending, Outcome

#: An outcome waits this long for its redelivery, and so many do, the latest.
KEPT_S = 60.0
MAX_KEPT = 1_000

#: Queue, message id, attempt and body: two messages alike in all of these are the same work.
Key: TypeAlias = tuple[str, str, object, int]


def key_of(delivery: Delivery) -> Key | None:
    """What a redelivery is recognised by; None for a message without an id."""
    identity = text(delivery.properties.message_id)
    if not identity:
        return None
    headers: Mapping[str, Any] = delivery.properties.headers or {}
    attempt = headers.get(ATTEMPT)
    return delivery.subscription.queue, identity, attempt if isinstance(attempt, int) else None, hash(delivery.body)


@dataclass(slots=True)
class _Orphan:
    redelivery: Delivery | None = None
    outcome: Outcome | None = None
    ended_s: float = 0.0


class Orphans:
    """The orphaned runs of one consumer. Use from the loop's thread."""

    def __init__(self) -> None:
        self._by_key: dict[Key, _Orphan] = {}

    def add(self, running: Iterable[Delivery]) -> None:
        """Their deliveries were lost while they ran; again, for those whose redelivery was lost as well."""
        for delivery in running:
            if not delivery.subscription.is_open and (key := key_of(delivery)) is not None:
                self._by_key.setdefault(key, _Orphan())

    def adopt(self, delivery: Delivery) -> Settled | bool:
        """Whether this redelivery is of an orphan. True: it waits for the run's end, hold on to it and do nothing.

        What the run came to, when it has ended meanwhile. False: it is a task like any other.
        """
        key = key_of(delivery) if self._by_key else None
        orphan = self._by_key.get(key) if key is not None else None
        if key is None or orphan is None:
            return False
        if orphan.outcome is not None:
            del self._by_key[key]
            fresh = time.monotonic() - orphan.ended_s < KEPT_S
            return Settled(delivery, orphan.outcome) if fresh else False
        if orphan.redelivery is not None and orphan.redelivery.subscription.is_open:
            return False  # two at once: another message that looks the same
        orphan.redelivery = delivery
        return True

    def ended(self, settled: Settled, *, new: bool = False) -> Settled | None:
        """A run's settlement that came too late for its own delivery: that of its redelivery, when it is here.

        None: there is nothing to settle now. What ran is kept for a redelivery that is still to come, unless it has
        more to send than an outcome. new: it ran, whether that was noted before or not.
        """
        if new:
            self.add([settled.delivery])
        key = key_of(settled.delivery)
        orphan = self._by_key.pop(key, None) if key is not None else None
        if key is None or orphan is None:
            return None
        if orphan.redelivery is not None and orphan.redelivery.subscription.is_open:
            return replace(settled, delivery=orphan.redelivery)
        if settled.outcome.ending is not Ending.GIVE_BACK and not settled.forwards:
            self._by_key[key] = _Orphan(None, settled.outcome, time.monotonic())
            self._forget()
        return None

    def _forget(self) -> None:
        """Drop what is too old, and the oldest of too many; a run that has not ended stays."""
        ended = [key for key, orphan in self._by_key.items() if orphan.outcome is not None]
        now_s = time.monotonic()
        for number, key in enumerate(ended):
            if len(ended) - number > MAX_KEPT or now_s - self._by_key[key].ended_s > KEPT_S:
                del self._by_key[key]
