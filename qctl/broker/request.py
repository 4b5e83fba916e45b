"""What somebody wants to enqueue: checked against the inventory before anything is contacted, then made into messages.

The same rules and the same wire format for `qctl enqueue`, for applications and for tasks that enqueue others.
"""

from __future__ import annotations

import json
import math
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qctl.broker import topology
from qctl.broker.message import COST, DELAY, PERSISTENT, TRANSIENT, Outgoing, Properties, short
from qctl.errors import UsageError
from qctl.inventory.model import Consumer, Host, Inventory
from qctl.inventory.nearest import did_you_mean
from qctl.units import MAX_UNITS, format_duration, format_size, parse_duration

#: Longest short string of AMQP, in bytes: ids and types.
MAX_SHORT_BYTES = 255


@dataclass(frozen=True, slots=True)
class Request:
    """What to enqueue, checked. `queue` is the work queue or a host's own; `delay_s` is a rung of the ladder."""

    consumer: Consumer
    queue: str
    declarations: tuple[topology.Declaration, ...]
    cost: Mapping[str, int]
    type: str | None
    id: str | None
    delay_s: float | None

    @property
    def exchange(self) -> str:
        """Where its messages are published."""
        return topology.RETRY if self.delay_s else topology.TASKS


def request(
    inventory: Inventory,
    consumer_name: str,
    *,
    host: str | None = None,
    cost: Mapping[str, int] | None = None,
    type: str | None = None,  # noqa: A002  (the property's name in AMQP)
    id: str | None = None,  # noqa: A002
    delay: float | str | None = None,
) -> Request:
    """Check names and values. delay: seconds, or a duration such as "30s". Raises UnknownName, UsageError."""
    consumer = inventory.consumer(consumer_name)
    queue, hosts, payer = consumer.queue, [], consumer
    if host is not None:
        running = inventory.host(host).consumers.get(consumer_name)
        if running is None or not running.directed:
            why = "does not run it" if running is None else "has no queue of its own for it"
            raise UsageError(
                f"{consumer_name} cannot be sent to {host}: the host {why}",
                hint=f"Set `directed: true` on consumer {consumer_name}, or name no host.",
            )
        queue, hosts, payer = topology.directed_queue(queue, host), [host], running
    _check_cost(payer, cost or {})
    _check_payable(inventory, consumer_name, [host] if host is not None else list(inventory.hosts), cost or {})
    for what, value in (("type", type), ("id", id)):
        if value is not None and not _is_short(value):
            raise UsageError(f"the {what} must be UTF-8 text of 1 to {MAX_SHORT_BYTES} bytes")
    rung_s = _rung(inventory, delay)
    declarations = (
        *topology.exchanges(),
        *topology.ladder([rung_s] if rung_s else []),
        *topology.for_consumer(
            consumer.queue, directed_hosts=hosts, persistent=consumer.persistent, declare=consumer.declare
        ),
    )
    return Request(consumer, queue, declarations, dict(cost or {}), type, id, rung_s)


def _check_cost(consumer: Consumer, cost: Mapping[str, int]) -> None:
    for quota, units in cost.items():
        if quota not in consumer.cost:
            known = ", ".join(sorted(consumer.cost)) or "none"
            raise UsageError(
                f"consumer {consumer.name} has no quota {quota!r}",
                hint=did_you_mean(quota, list(consumer.cost)) or f"Its quotas are: {known}.",
            )
        if isinstance(units, bool) or not isinstance(units, int) or not 0 <= units <= MAX_UNITS:  # type: ignore[redundant-expr]
            raise UsageError(f"the cost in {quota} must be a whole number from 0 to 10^12, found {units!r}")


def _check_payable(inventory: Inventory, consumer: str, hosts: Sequence[str], cost: Mapping[str, int]) -> None:
    """What no host that runs it can ever pay for would be a dead letter. Judged by the inventory's limits."""
    for quota, units in cost.items():
        running = [inventory.hosts[name] for name in hosts if quota in _cost_on(inventory.hosts[name], consumer)]
        most = max((host.quotas[quota].most_units for host in running), default=units)
        if units > most:
            raise UsageError(
                f"a cost of {units} in {quota} is more than any host that runs {consumer} can ever pay: {most} at most",
                hint="Lower it, or raise the limit in the inventory: what `qctl quota set` has set is not known here.",
            )


def _cost_on(host: Host, consumer: str) -> Mapping[str, int]:
    running = host.consumers.get(consumer)
    return running.cost if running is not None else {}


def _is_short(value: object) -> bool:
    try:
        return isinstance(value, str) and 1 <= len(value.encode()) <= MAX_SHORT_BYTES
    except UnicodeEncodeError:
        return False


def _rung(inventory: Inventory, delay: float | str | None) -> float | None:
    """The delay in seconds, rounded up to a rung; None for none."""
    try:
        delay_s = parse_duration(delay) if isinstance(delay, str) else float(delay or 0.0)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if not 0 <= delay_s < math.inf:
        raise UsageError(f"a delay is zero or more seconds, found {delay!r}")
    longest_s = inventory.ladder_s[-1]
    if delay_s > longest_s:
        raise UsageError(
            f"a delay of {format_duration(delay_s)} is longer than the longest, {format_duration(longest_s)}",
            hint="Enqueue it later.",
        )
    return next(step_s for step_s in inventory.ladder_s if step_s >= delay_s) if delay_s else None


def encode_payload(payload: Any, max_bytes: int) -> bytes:
    """A payload as a body: compact JSON in UTF-8. Raises UsageError for what is not JSON or longer than max_bytes.

    NaN and infinities are not JSON: a worker would take the task for malformed.
    """
    try:
        body = json.dumps(payload, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(
            f"the payload cannot be written as JSON: {short(str(error))}",
            hint="Send plain values: None, bool, int, float, str, list, dict with str keys.",
        ) from None
    if len(body) > max_bytes:
        raise UsageError(
            f"the payload is longer than {format_size(max_bytes)} (`worker.max_body`)",
            hint="Send where the data is instead of the data.",
        )
    return body


def message(wanted: Request, body: bytes) -> Outgoing:
    """One message of a request, with an id of its own where the request names none."""
    headers: dict[str, object] = {}
    if wanted.cost:
        headers[COST] = dict(wanted.cost)
    if wanted.delay_s:
        headers[DELAY] = format_duration(wanted.delay_s)
    properties = Properties(
        content_type="application/json",
        headers=headers or None,
        delivery_mode=PERSISTENT if wanted.consumer.persistent else TRANSIENT,
        message_id=wanted.id or str(uuid.uuid4()),
        timestamp=int(time.time()),
        type=wanted.type,
    )
    return Outgoing(wanted.exchange, wanted.queue, body, properties)
