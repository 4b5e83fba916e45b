"""One machine per host name: an exclusive queue on the broker, whose holder answers who it is.

The broker does not say who holds an exclusive queue, and keeps that of a dead connection until it notices. So whoever
finds the name taken asks through the queue itself: an answer is proof of a living holder, silence is waited out.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qctl.broker.message import Outgoing, Properties, decode_json, short, text
from qctl.broker.publisher import Published, Publisher
from qctl.broker.session import HEARTBEAT_S, ChannelLost, Connection
from qctl.broker.topology import ACCESS_REFUSED, PRECONDITION_FAILED, RESOURCE_LOCKED
from qctl.control.host_answer import MAX_ANSWER_BYTES, HostAnswer, host_queue
from qctl.errors import BrokerRefused, HostTaken

log = logging.getLogger(__name__)

#: The broker looks every heartbeat whether it heard anything and gives up at the second look without news: 20 to 30 s.
PATIENCE_S = 3.0 * HEARTBEAT_S + 5
RETRY_S = 1.0
#: A holder answers within milliseconds; one that is stopped or gone never does.
ANSWER_S = 1.0
#: Questions that wait for an answer; more than a few machines do not ask at once.
MAX_QUESTIONS = 100
#: The broker's pseudo-queue for answers, good for the channel that asks.
REPLY_TO = "amq.rabbitmq.reply-to"


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a host's name. run: made anew for each start; since: wall clock, as text."""

    machine: str
    pid: int
    since: str
    run: str

    def __str__(self) -> str:
        return f"machine {self.machine}, process {self.pid}, since {self.since}"


def parse_holder(body: bytes) -> Holder | None:
    """The holder that an answer names; None when it is no answer."""
    try:
        fields = decode_json(body[:MAX_ANSWER_BYTES])
        machine, since, run = (short(str(fields[name])) for name in ("machine", "since", "run"))
        return Holder(machine, int(fields["pid"]), since, run)
    except (ValueError, KeyError, TypeError, OverflowError):
        return None


async def claim(
    connection: Connection, host: str, run: str, answer: Callable[[], HostAnswer], *, patience_s: float
) -> None:
    """Take the name of `host` and keep it with the connection, answering who asks.

    run: of this start, which tells another living holder from ourselves. answer: asked anew for each question. Raises
    HostTaken at once when a living holder answers, after patience_s when nobody does and the name is still taken;
    BrokerRefused when the broker will not have the queue, ChannelLost when the connection goes.
    """
    deadline = time.monotonic() + patience_s
    told = False
    while not await _take(connection, host, answer):
        holder = await ask(connection, host)
        if holder is not None and holder.run != run:
            raise HostTaken(
                f"host {host} is already run by {holder}",
                hint="Each machine needs its own name (--host); stop that worker first if it is this host's.",
            )
        if time.monotonic() > deadline:
            raise HostTaken(
                f"host {host} is already run from another connection to {connection.address}, which does not answer",
                hint="Each machine needs its own name (--host); `rabbitmqctl list_queues name owner_pid` shows who.",
            )
        if not told:
            told = True
            log.warning("host %s is taken on the broker; waiting for a dead connection to be noticed", host)
        await asyncio.sleep(RETRY_S)


async def _take(connection: Connection, host: str, answer: Callable[[], HostAnswer]) -> bool:
    channel = await connection.channel()
    arguments = {"x-max-length": MAX_QUESTIONS}
    try:
        await channel.call("queue_declare", queue=host_queue(host), exclusive=True, durable=False, arguments=arguments)
    except ChannelLost as error:
        if error.code == RESOURCE_LOCKED:
            return False
        if error.code == PRECONDITION_FAILED:
            raise BrokerRefused(
                f"the name of host {host} cannot be taken on the broker: {error.text}",
                hint="See the limits of the virtual host with `rabbitmqctl list_vhost_limits`.",
            ) from None
        if error.code != ACCESS_REFUSED:
            raise
        log.warning("no permission on queue %s: two machines under this name go unnoticed", host_queue(host))
        return True
    try:
        answering = await Publisher.open(connection)
        await channel.call(
            "basic_consume",
            queue=host_queue(host),
            on_message_callback=_answerer(answering, answer),
            auto_ack=True,
            consumer_tag=host_queue(host),  # in the broker's list it is not to be taken for a consumer of tasks
        )
    except ChannelLost as error:
        if error.code != ACCESS_REFUSED:
            raise
        log.warning("no permission to read queue %s: who asks for this host's holder gets no answer", host_queue(host))
    return True


def _answerer(
    publisher: Publisher, answer: Callable[[], HostAnswer]
) -> Callable[[object, Any, Properties, bytes], None]:
    connection = publisher.channel.connection

    def on_question(_channel: object, _method: object, asked: Properties, _body: bytes) -> None:
        # Under an alarm an answer would go out when it ends, and be old by then.
        if not asked.reply_to or not publisher.room or connection.blocked:
            return
        properties = Properties(
            content_type="application/json", correlation_id=asked.correlation_id, user_id=connection.username
        )
        try:
            publisher.send(Outgoing("", text(asked.reply_to), answer().body(), properties), _forget)
        except (ChannelLost, ValueError) as error:
            log.debug("no answer to who asks for the holder: %s", error)

    return on_question


def _forget(_fate: Published) -> None:
    """Who asked may be gone."""


async def ask(connection: Connection, host: str) -> Holder | None:
    """The living holder of a host's name, in its own words; None when nobody answers within ANSWER_S.

    Raises ChannelLost when the connection is gone.
    """
    if connection.blocked:
        return None  # nothing that is published now is read
    answered: asyncio.Future[Holder | None] = asyncio.get_running_loop().create_future()

    def on_answer(_channel: object, _method: object, _properties: object, body: bytes) -> None:
        if not answered.done():
            answered.set_result(parse_holder(body))

    try:
        publisher = await Publisher.open(connection)
        await publisher.channel.call("basic_consume", queue=REPLY_TO, on_message_callback=on_answer, auto_ack=True)
        publisher.send(Outgoing("", host_queue(host), b"", Properties(reply_to=REPLY_TO)), _forget)
        ends: set[asyncio.Future[Any]] = {answered, publisher.channel.closed}
        await asyncio.wait(ends, timeout=ANSWER_S, return_when=asyncio.FIRST_COMPLETED)
        await publisher.channel.close()
    except ChannelLost as error:
        if not connection.is_open:
            raise
        log.debug("cannot ask who holds host %s: %s", host, error)
    return answered.result() if answered.done() else None
