"""The broker seen from outside qctl: what is really in a queue, and a connection of qctl's own to try things with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import wraps
from typing import Any, NamedTuple, ParamSpec

import pika
from pika.adapters.blocking_connection import BlockingChannel

from qctl.broker.connect import Login, connect
from qctl.broker.message import Outgoing
from qctl.broker.session import Connection
from qctl.inventory.model import Endpoint
from tests.brokers import Vhost

#: No step of a scenario takes this long.
STEP_TIMEOUT_S = 60.0

P = ParamSpec("P")


class Found(NamedTuple):
    """A message as a stranger finds it."""

    properties: pika.BasicProperties
    body: bytes
    redelivered: bool


def scenario(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run a test written as a coroutine on a loop of its own."""

    @wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **kwargs), STEP_TIMEOUT_S))

    return run


def login(vhost: Vhost, *, username: str | None = None, password: str | None = None) -> Login:
    """The administrator's login, or another user's."""
    address = Endpoint(vhost.broker.host, vhost.broker.amqp_port, False, vhost.name)
    return Login((address,), username or vhost.username, password or vhost.password)


@asynccontextmanager
async def connected(vhost: Vhost, **user: str) -> AsyncIterator[Connection]:
    """A connection of qctl's, closed at the end."""
    connection = await connect(login(vhost, **user), name="test")
    try:
        yield connection
    finally:
        if connection.blocked:
            connection.abort("the broker reads nothing at present")
        await connection.close()


@contextmanager
def stranger(vhost: Vhost) -> Iterator[BlockingChannel]:
    """A plain channel, as any program has it."""
    parameters = pika.ConnectionParameters(
        vhost.broker.host,
        vhost.broker.amqp_port,
        vhost.name,
        pika.PlainCredentials(vhost.username, vhost.password),
        client_properties={"connection_name": "stranger"},
    )
    connection = pika.BlockingConnection(parameters)
    try:
        yield connection.channel()
    finally:
        if connection.is_open:
            connection.close()


def depth(vhost: Vhost, queue: str) -> int:
    """How many messages wait in a queue, said by the queue itself."""
    with stranger(vhost) as channel:
        return int(channel.queue_declare(queue, passive=True).method.message_count)


def fill(vhost: Vhost, queue: str, count: int, *, size_bytes: int = 0) -> list[bytes]:
    """Put `count` different messages into a queue, each of at least that size, and return their bodies."""
    bodies = [(b"%d" % number).ljust(size_bytes) for number in range(count)]
    with stranger(vhost) as channel:
        for body in bodies[:-1]:
            channel.basic_publish("", queue, body, pika.BasicProperties(delivery_mode=2))
        # On one channel messages are taken in order: with the last one confirmed, all are there.
        channel.confirm_delivery()
        channel.basic_publish("", queue, bodies[-1], pika.BasicProperties(delivery_mode=2), mandatory=True)
    return bodies


def take_all(vhost: Vhost, queue: str) -> list[Found]:
    """Everything that waits in a queue, taken out of it, in order."""
    found: list[Found] = []
    with stranger(vhost) as channel:
        count = channel.queue_declare(queue, passive=True).method.message_count
        if not count:
            return found
        for method, properties, body in channel.consume(queue, auto_ack=True, inactivity_timeout=STEP_TIMEOUT_S):
            assert method is not None, f"{len(found)} of {count} messages of {queue} came"
            found.append(Found(properties, body, method.redelivered))
            if len(found) == count:
                break
        channel.cancel()
        assert channel.queue_declare(queue, passive=True).method.message_count == 0
    return found


def message(queue: str, body: bytes = b"{}", *, exchange: str = "", **properties: Any) -> Outgoing:
    """A message for a queue, straight or through an exchange."""
    return Outgoing(
        exchange, queue, body, pika.BasicProperties(**{"message_id": "id", "delivery_mode": 2, **properties})
    )


async def until(what: str, condition: Callable[[], Any], timeout_s: float = STEP_TIMEOUT_S) -> Any:
    """Let the loop run until `condition` says something true, and return that."""
    deadline = asyncio.get_running_loop().time() + timeout_s
    while not (found := condition()):
        assert asyncio.get_running_loop().time() < deadline, f"not within {timeout_s:g} s: {what}"
        await asyncio.sleep(0.005)
    return found
