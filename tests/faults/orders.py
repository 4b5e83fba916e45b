"""Control events given by a program that shares no code with qctl, and what is answered: any AMQP client can do this.

What is false about an event (whose it is, how it came, what it says) is false by the caller's own doing.
"""

from __future__ import annotations

import json
import secrets
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pika
import pika.exceptions
from pika.adapters.blocking_connection import BlockingChannel

from tests.brokers import Vhost

CONTROL, HELLO, REPLIES, LOG = "qctl.control", "qctl.hello", "qctl.replies", "qctl.control.log"
#: The log has been read to its end when nothing came for this long.
QUIET_S = 0.5


@dataclass(frozen=True, slots=True)
class Given:
    """An event that the broker confirmed, and when."""

    id: str
    body: bytes
    confirmed_ns: int
    confirmed_at_s: float


@dataclass(frozen=True, slots=True)
class Answer:
    """What a process said about an event, and when it was heard here."""

    heard_ns: int
    user: str
    said: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of the control log."""

    exchange: str
    id: str
    user: str
    body: bytes

    @property
    def verb(self) -> str:
        """The verb of a control event; "" of anything else."""
        try:
            found = json.loads(self.body)
        except ValueError:
            return ""
        return str(found.get("verb", "")) if self.exchange == CONTROL and isinstance(found, dict) else ""


class Orders:
    """A connection that gives events with confirms, and hears the answers on a queue of its own."""

    def __init__(self, connection: pika.BlockingConnection, user: str) -> None:
        self.user = user
        self.connection = connection
        self.channel = connection.channel()
        self.channel.confirm_delivery()
        self.channel.exchange_declare(REPLIES, "direct", durable=True)
        self.replies = str(self.channel.queue_declare("", exclusive=True).method.queue)
        self.channel.queue_bind(self.replies, REPLIES, self.replies)
        self.channel.basic_consume(self.replies, self._heard, auto_ack=True)
        self._answers: defaultdict[str, list[Answer]] = defaultdict(list)

    def _heard(self, _channel: BlockingChannel, _method: object, properties: pika.BasicProperties, body: bytes) -> None:
        at_ns = time.monotonic_ns()
        self._answers[properties.correlation_id].append(Answer(at_ns, properties.user_id or "", json.loads(body)))

    def give(self, verb: str, target: Mapping[str, str], /, **fields: Any) -> Given:
        """Give an event as it should be; fields: more of its body."""
        event = event_of(verb, target, **fields)
        return self.send(json.dumps(event).encode(), id=event["id"], verb=verb)

    def send(
        self,
        body: bytes,
        *,
        id: str | None = None,  # noqa: A002
        verb: str = "pause",
        exchange: str = CONTROL,
        key: str | None = None,
        user: str | None = None,
        reply_to: str | None = None,
        mandatory: bool = True,
    ) -> Given:
        """Give any body as an event. user "": unsigned; user and reply_to None: as they should be.

        Raises pika's errors when the broker does not take it.
        """
        found = secrets.token_hex(16) if id is None else id
        properties = pika.BasicProperties(
            message_id=found,
            correlation_id=found,
            type=verb,
            user_id=(self.user if user is None else user) or None,
            reply_to=(self.replies if reply_to is None else reply_to) or None,
            content_type="application/json",
            delivery_mode=2,
        )
        routing_key = f"command.{verb}" if key is None else key
        self.channel.basic_publish(exchange, routing_key, body, properties, mandatory=mandatory)
        return Given(found, body, time.monotonic_ns(), time.time())

    def answers(self, given: Given | str, count: int = 1, timeout_s: float = 10.0) -> list[Answer]:
        """Wait for so many answers to an event. Raises AssertionError when fewer come."""
        found = self._answers[given if isinstance(given, str) else given.id]
        deadline_s = time.monotonic() + timeout_s
        while len(found) < count and time.monotonic() < deadline_s:
            self.connection.process_data_events(time_limit=max(0.0, min(0.5, deadline_s - time.monotonic())))
        assert len(found) >= count, f"{len(found)} of {count} answers to {given} within {timeout_s:g} s"
        return list(found)

    def heard(self, given: Given | str, seconds: float) -> list[Answer]:
        """What comes within some seconds, however many."""
        deadline_s = time.monotonic() + seconds
        while (left_s := deadline_s - time.monotonic()) > 0:
            self.connection.process_data_events(time_limit=left_s)  # returns as soon as anything has come
        return list(self._answers[given if isinstance(given, str) else given.id])

    def log(self) -> list[Entry]:
        """Every entry of the control log."""
        return read_log(self.connection)


def event_of(verb: str, target: Mapping[str, str], /, **fields: Any) -> dict[str, Any]:
    """A control event as it should be, but for `fields`."""
    event = {
        "v": 1,
        "id": secrets.token_hex(16),
        "at": iso(time.time()),
        "verb": verb,
        "target": dict(target),
        "reason": None,
        "until": None,
        "as": "somebody@somewhere",
        "args": {},
    }
    return {**event, **fields}


def iso(at_s: float) -> str:
    """An instant as events have it, UTC."""
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def seconds_of(text: str) -> float:
    """The instant that `iso` wrote."""
    return datetime.fromisoformat(text).timestamp()


def read_log(connection: pika.BlockingConnection) -> list[Entry]:
    """Every entry of the control log, until nothing more comes."""
    found: list[Entry] = []
    channel = connection.channel()
    channel.basic_qos(prefetch_count=100)
    first = {"x-stream-offset": "first"}
    for method, properties, body in channel.consume(LOG, arguments=first, inactivity_timeout=QUIET_S):
        if method is None:
            break
        found.append(Entry(method.exchange, properties.message_id or "", properties.user_id or "", body))
        channel.basic_ack(method.delivery_tag)
    channel.cancel()
    channel.close()
    return found


@contextmanager
def orders(vhost: Vhost, *, user: str | None = None, password: str | None = None) -> Iterator[Orders]:
    """Log in inside the block, as the administrator or as another user."""
    where = pika.URLParameters(vhost.amqp_url)
    where.credentials = pika.PlainCredentials(user or vhost.username, password or vhost.password)
    connection = pika.BlockingConnection(where)
    try:
        yield Orders(connection, user or vhost.username)
    finally:
        with suppress(pika.exceptions.AMQPError):  # the broker may have gone away in the test
            connection.close()
