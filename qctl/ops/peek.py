"""Looking at the messages of a queue without taking any."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qctl.broker.message import Properties, text
from qctl.broker.session import Connection
from qctl.broker.walk import NOT_COME, PATIENCE_S, Walk
from qctl.inventory.model import Inventory
from qctl.ops.dead import connected, waiting_or_none
from qctl.ops.harm import CLASSIC, QUORUM, STREAM, check_look
from qctl.ops.letters import SHOWN_BODY_BYTES, shown_headers
from qctl.ops.queues import no_such_queue

DEFAULT_COUNT = 10
MAX_COUNT = 1_000


@dataclass(frozen=True, slots=True)
class Message:
    """A message as it was seen. place: from 1, or its offset in a stream. body: its first SHOWN_BODY_BYTES."""

    place: int
    id: str
    type: str
    size_bytes: int
    body: bytes = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    properties: Mapping[str, str] = field(repr=False)
    redelivered: bool = False


@dataclass(frozen=True, slots=True)
class Looked:
    """What a look has seen. kind: of the queue, `classic`, `quorum` or `stream`. waiting: messages that nobody had.

    notes: what the look has changed, and what it could not see.
    """

    queue: str
    kind: str
    waiting: int
    messages: tuple[Message, ...]
    notes: tuple[str, ...] = ()


async def look(inventory: Inventory, queue: str, count: int = DEFAULT_COUNT, *, connect_timeout_s: float) -> Looked:
    """The first messages of a queue, at most `count`; all stay. Of a stream, its oldest.

    Raises BrokerRefused where looking could cost messages, UnknownName where the broker has no such queue,
    BrokerUnreachable, SecretError.
    """
    count = min(count, MAX_COUNT)
    async with connected(inventory, "qctl queues peek", connect_timeout_s) as connection:
        there = await waiting_or_none(connection, queue)
        if there is None:
            raise no_such_queue(inventory, queue)
        terms = await check_look(inventory, connection, queue)
        if terms.kind == STREAM:
            messages = await _of_stream(connection, queue, count)
            return Looked(queue, STREAM, there, messages)
        messages = await _held(connection, queue, min(count, there))
        notes = []
        if any(not one.redelivered for one in messages):
            notes.append("what was looked at is marked as redelivered from now on")
        if terms.kind == QUORUM and not terms.delivery_limits and messages:
            notes.append("a quorum queue without a delivery limit takes them back at its end: their order has changed")
        elif terms.kind == QUORUM and len(messages) < there and any(one.redelivered for one in messages):
            notes.append("what others gave back earlier may stand before them now: their order may have changed")
        if len(messages) < min(count, there):
            notes.append(f"{min(count, there) - len(messages)} {NOT_COME}")
        return Looked(queue, terms.kind or CLASSIC, there, messages, tuple(notes))


async def _held(connection: Connection, queue: str, count: int) -> tuple[Message, ...]:
    walk = Walk(connection, queue, expected=count)
    found: list[Message] = []
    try:
        while len(found) < count and (met := await walk.next()) is not None:
            walk.keep(met)
            found.append(_message(len(found) + 1, met.properties, met.body, redelivered=met.redelivered))
    finally:
        await walk.close()
    return tuple(found)


async def _of_stream(connection: Connection, queue: str, count: int) -> tuple[Message, ...]:
    """A stream gives what it has to whoever reads, and loses nothing by it. An empty one says nothing for a while."""
    found: list[Message] = []
    enough = asyncio.Event()

    def take(_channel: object, method: Any, properties: Properties, body: bytes) -> None:
        headers: Mapping[str, Any] = properties.headers or {}
        offset = headers.get("x-stream-offset")
        if len(found) < count:
            place = offset if isinstance(offset, int) else len(found) + 1
            found.append(_message(place, properties, body, redelivered=bool(method.redelivered)))
        if len(found) >= count:
            enough.set()

    channel = await connection.channel()
    await channel.call("basic_qos", prefetch_count=count)
    await channel.call("basic_consume", queue=queue, on_message_callback=take, arguments={"x-stream-offset": "first"})
    waiting: asyncio.Future[Any] = asyncio.ensure_future(enough.wait())
    ends: set[asyncio.Future[Any]] = {waiting, channel.closed}
    try:
        while not any(end.done() for end in ends) and (left_s := PATIENCE_S - connection.silent_s()) > 0:
            await asyncio.wait(ends, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
    if channel.closed.done():
        raise channel.closed.result()
    await channel.close()
    return tuple(found)


def _message(place: int, properties: Properties, body: bytes, *, redelivered: bool) -> Message:
    return Message(
        place=place,
        id=text(properties.message_id),
        type=text(properties.type),
        size_bytes=len(body),
        body=body[:SHOWN_BODY_BYTES],
        headers=shown_headers(properties),
        properties=_shown_properties(properties),
        redelivered=redelivered,
    )


#: Properties beside the id and the type, in the order in which they are shown.
_PROPERTIES = (
    "content_type",
    "content_encoding",
    "delivery_mode",
    "priority",
    "correlation_id",
    "reply_to",
    "expiration",
    "timestamp",
    "user_id",
    "app_id",
)


def _shown_properties(properties: Properties) -> dict[str, str]:
    return {name: text(value) for name in _PROPERTIES if (value := getattr(properties, name)) is not None}
