"""What a task wants enqueued: collected while it runs; sent when it has returned, and confirmed before it is acked.

So a run that fails, is deferred or is over time enqueues nothing, and its next run does not do it twice; and a handler
never waits for the broker, in a thread or on an event loop.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qctl.broker.message import Outgoing
from qctl.broker.request import encode_payload, message, request
from qctl.broker.topology import Declaration
from qctl.errors import UsageError
from qctl.inventory.model import Inventory
from qctl.worker.exceptions import TimedOut

#: What one task may enqueue; it is all in memory until the task has ended.
MAX_ENQUEUED = 10_000
MAX_ENQUEUED_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Followups:
    """What a task that returned has enqueued, in order, and what must exist on the broker for it."""

    messages: tuple[Outgoing, ...] = ()
    declarations: tuple[Declaration, ...] = ()


NONE = Followups()


class Outbox:
    """Collects for one task. Thread-safe: a handler may use threads of its own."""

    def __init__(self, inventory: Inventory) -> None:
        self._inventory = inventory
        self._lock = threading.Lock()
        self._messages: list[Outgoing] = []
        self._declarations: dict[tuple[str, float | None], tuple[Declaration, ...]] = {}
        self._bytes = 0
        self._over = ""

    def add(self, consumer: str, payload: Any, options: Mapping[str, Any]) -> str:
        """Check and collect; returns the message's id. options: of `qctl.broker.request.request`.

        Raises UnknownName, UsageError, and TimedOut once nothing is collected any more.
        """
        wanted = request(self._inventory, consumer, **options)
        outgoing = message(wanted, encode_payload(payload, self._inventory.worker.max_body_bytes))
        with self._lock:
            self.check()
            self._bytes += len(outgoing.body)
            if len(self._messages) >= MAX_ENQUEUED or self._bytes > MAX_ENQUEUED_BYTES:
                raise UsageError(
                    f"a task may enqueue {MAX_ENQUEUED:,} others, {MAX_ENQUEUED_BYTES >> 20} MiB in all",
                    hint="Enqueue a task that goes on where this one stops.",
                )
            self._messages.append(outgoing)
            self._declarations.setdefault((wanted.queue, wanted.delay_s), wanted.declarations)
        return str(outgoing.properties.message_id)

    def check(self) -> None:
        """Raises TimedOut once nothing is collected any more."""
        if self._over:
            raise TimedOut(f"the task is {self._over}; nothing more is enqueued")

    def close(self, over: str) -> Followups:
        """No more; what was collected. over: what the task is, in words."""
        with self._lock:
            self._over = self._over or over
            declarations = tuple(one for several in self._declarations.values() for one in several)
            return Followups(tuple(self._messages), declarations)
