"""Names on the broker, what must exist under them, and making it exist.

The declarations are plain values made by pure functions; `ensure` is the one place that sends them. Each is idempotent.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qctl.broker.session import Channel, ChannelLost, Connection
from qctl.errors import BrokerRefused, QctlError, TopologyMismatch
from qctl.units import format_duration

log = logging.getLogger(__name__)

TASKS = "qctl.tasks"
RETRY = "qctl.retry"
BACK = "qctl.back"
UNROUTABLE = "qctl.unroutable"
DEAD = "qctl.dead"
CONTROL = "qctl.control"
HELLO = "qctl.hello"
CONTROL_LOG = "qctl.control.log"
REPLIES = "qctl.replies"
TELEMETRY = "qctl.telemetry"
TELEMETRY_LOG = "qctl.telemetry.log"

#: How long readings are kept for those who ask what was, and how much of them at most.
TELEMETRY_MAX_AGE = "7D"
TELEMETRY_MAX_BYTES = 1 << 30
#: Only whole segments of a stream are ever cut off; the usual 500 MB would keep far more than wanted.
TELEMETRY_SEGMENT_BYTES = 16 << 20

#: Large and positive: 3.10 takes -1 for "dead at the first return", 4.x without one gives up after 20 deliveries.
DELIVERY_LIMIT = 1_000_000

NOT_FOUND, ACCESS_REFUSED, RESOURCE_LOCKED, PRECONDITION_FAILED = 404, 403, 405, 406


@dataclass(frozen=True, slots=True)
class Exchange:
    """An exchange to declare."""

    name: str
    kind: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Queue:
    """A durable queue to declare."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Existing:
    """A queue that is not ours: it must be there, its arguments are its owner's business."""

    name: str


@dataclass(frozen=True, slots=True)
class Binding:
    """A binding of a queue to an exchange."""

    queue: str
    exchange: str
    routing_key: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


Declaration = Exchange | Queue | Existing | Binding


def dead_queue(queue: str) -> str:
    """Where the dead letters of a work queue lie."""
    return f"{queue}.dead"


def directed_queue(queue: str, host: str) -> str:
    """The queue of one host's own tasks of a `directed: true` consumer."""
    return f"{queue}@{host}"


def retry_queue(delay_s: float) -> str:
    """The waiting room of one delay of the ladder."""
    return f"{RETRY}.{format_duration(delay_s)}"


def _quorum(**more: Any) -> dict[str, Any]:
    return {
        "x-queue-type": "quorum",
        "x-delivery-limit": DELIVERY_LIMIT,
        "x-overflow": "reject-publish",
        **{f"x-{name.replace('_', '-')}": value for name, value in more.items()},
    }


def exchanges() -> tuple[Declaration, ...]:
    """What every command and worker that handles tasks needs, whichever queues it uses."""
    return (
        Exchange(TASKS, "direct"),
        Exchange(DEAD, "direct"),
        Exchange(UNROUTABLE, "fanout"),
        Exchange(BACK, "direct", {"alternate-exchange": UNROUTABLE}),
        Exchange(RETRY, "headers"),
        Queue(UNROUTABLE, _quorum()),
        Binding(UNROUTABLE, UNROUTABLE, ""),
    )


def ladder(delays_s: Iterable[float]) -> tuple[Declaration, ...]:
    """One waiting room a delay: a queue with a TTL whose messages go back under the routing key they came with.

    The dead-lettering is at-least-once, so that a task whose work queue is unbound meanwhile is not dropped; the
    alternate exchange of the way back keeps such strays from blocking everybody else's delay.
    """
    found: list[Declaration] = []
    for delay_s in sorted(set(delays_s)):
        name = retry_queue(delay_s)
        found.append(
            Queue(
                name,
                _quorum(
                    message_ttl=round(delay_s * 1000),
                    dead_letter_exchange=BACK,
                    dead_letter_strategy="at-least-once",
                ),
            )
        )
        found.append(Binding(name, RETRY, "", {"x-match": "all", "qctl-delay": format_duration(delay_s)}))
    return tuple(found)


def work_queue(
    queue: str, *, dead_for: str | None = None, persistent: bool = True, declare: bool = True
) -> tuple[Declaration, ...]:
    """A work queue with its dead-letter queue and its bindings.

    dead_for: the work queue whose `.dead` queue takes the dead letters (a directed queue's are its consumer's).
    persistent False: a durable classic queue. declare False: the queue is somebody else's and is used as it is.
    """
    dead_for = dead_for or queue
    net = {"x-dead-letter-exchange": DEAD, "x-dead-letter-routing-key": dead_for}
    own: Declaration = Existing(queue)
    if declare and persistent:
        own = Queue(queue, {**_quorum(dead_letter_strategy="at-least-once"), **net})
    elif declare:
        own = Queue(queue, {"x-queue-type": "classic", "x-overflow": "reject-publish", **net})
    return (
        Queue(dead_queue(dead_for), _quorum()),
        Binding(dead_queue(dead_for), DEAD, dead_for),
        own,
        Binding(queue, TASKS, queue),
        Binding(queue, BACK, queue),
    )


async def ensure(connection: Connection, declarations: Sequence[Declaration]) -> None:
    """Make everything exist, in order.

    Without the right to configure a thing its existence is checked instead. Raises TopologyMismatch when something
    exists with other arguments, BrokerRefused when it is missing and may not be made, ChannelLost when the connection
    is gone.
    """
    channel = await connection.channel()
    for one in declarations:
        try:
            await _declare(channel, one)
        except ChannelLost as error:
            if not connection.is_open or error.code not in (ACCESS_REFUSED, PRECONDITION_FAILED, NOT_FOUND):
                raise
            if error.code != ACCESS_REFUSED or not await exists(connection, one):
                raise _explain(one, error) from None
            channel = await connection.channel()
    await channel.close()


async def _declare(channel: Channel, one: Declaration) -> None:
    match one:
        case Exchange(name, kind, arguments):
            await channel.call(
                "exchange_declare", exchange=name, exchange_type=kind, durable=True, arguments=dict(arguments)
            )
        case Queue(name, arguments):
            await channel.call("queue_declare", queue=name, durable=True, arguments=dict(arguments))
        case Existing(name):
            await channel.call("queue_declare", queue=name, passive=True)
        case Binding(queue, exchange, routing_key, arguments):
            await channel.call(
                "queue_bind", queue=queue, exchange=exchange, routing_key=routing_key, arguments=dict(arguments)
            )


async def exists(connection: Connection, one: Declaration) -> bool:
    """True when the thing is there. A binding cannot be looked up over AMQP: it is believed to be there.

    Raises ChannelLost when the connection is gone.
    """
    if isinstance(one, Binding):
        log.info("no permission to bind queue=%s exchange=%s, taking it as bound", one.queue, one.exchange)
        return True
    channel = await connection.channel()
    try:
        if isinstance(one, Exchange):
            await channel.call("exchange_declare", exchange=one.name, passive=True)
        else:
            await channel.call("queue_declare", queue=one.name, passive=True)
    except ChannelLost as error:
        if error.code != NOT_FOUND and not connection.is_open:
            raise
        return False
    await channel.close()
    return True


async def check_write(connection: Connection, exchange: str) -> None:
    """Find out on a channel of its own whether this user may publish to an exchange of qctl's.

    Raises BrokerRefused when not, ChannelLost when the connection is gone. Nothing is bound by the key it uses.
    """
    channel = await connection.channel()
    channel.raw.basic_publish(exchange, "qctl.may-i", b"")
    try:
        await channel.call("basic_qos", prefetch_count=1)  # answered after the publish was judged
    except ChannelLost as error:
        if error.code != ACCESS_REFUSED:
            raise
        raise BrokerRefused(
            f"exchange {exchange} may not be published to: {error.text}",
            hint="Give the worker's user write permission on `qctl.*`.",
        ) from None
    await channel.close()


#: inequivalent arg 'x-max-length' for queue 'q' in vhost '/': received none but current is the value '5' of type 'long'
_INEQUIVALENT = re.compile(
    r"inequivalent arg '(?P<name>[^']*)'.*?: received (?P<ours>.*) but current is (?P<theirs>.*)"
)
_VALUE = re.compile(r"(?:the value )?'(?P<value>.*?)'(?: of type '\w*'?)?$")


def difference(text: str) -> str:
    """What the broker says differs, as `x-max-length is 5, wanted none`; its own words where they are others."""
    found = _INEQUIVALENT.search(text)
    if found is None:
        return text.partition(" - ")[2] or text
    ours, theirs = (_VALUE.sub(r"\g<value>", found[side].strip()) for side in ("ours", "theirs"))
    return f"{found['name']} is {theirs}, wanted {ours}"


def _explain(one: Declaration, error: ChannelLost) -> QctlError:
    name = one.queue if isinstance(one, Binding) else one.name
    what = f"exchange {name}" if isinstance(one, Exchange) else f"queue {name}"
    if error.code == PRECONDITION_FAILED and "inequivalent arg" not in error.text:
        return BrokerRefused(
            f"{what} cannot be made: {difference(error.text)}",
            hint="It needs quorum queues and streams (RabbitMQ 3.10 or newer), and room in the vhost's limits.",
        )
    if error.code == PRECONDITION_FAILED:
        hint = "Move its messages and delete it, or set `declare: false` on its consumer to use it as it is."
        if name == CONTROL_LOG:
            hint = "qctl needs this name for its own stream; it is not the one that qctl made."
        return TopologyMismatch(
            f"{what} exists with other arguments than qctl declares: {difference(error.text)}",
            hint=hint,
        )
    if error.code == ACCESS_REFUSED:
        return BrokerRefused(
            f"{what} is missing and this user may not make it: {error.text}",
            hint="Run the command once as a user with configure permission on `qctl.*` and the queue.",
        )
    if isinstance(one, Existing):
        return BrokerRefused(
            f"{what} does not exist: {error.text}",
            hint="Its consumer says `declare: false`, so its owner must make it; without that line qctl declares it.",
        )
    return BrokerRefused(f"{what} cannot be used: {error.text}", hint="Is every node of the broker up?")


def for_consumer(
    queue: str, *, directed_hosts: Iterable[str] = (), persistent: bool = True, declare: bool = True
) -> tuple[Declaration, ...]:
    """Everything one consumer needs: its work queue, and the directed queue of each host named."""
    found = work_queue(queue, persistent=persistent, declare=declare)
    for host in directed_hosts:
        found += work_queue(directed_queue(queue, host), dead_for=queue, persistent=persistent)[2:]
    return found


def control_log() -> tuple[Declaration, ...]:
    """The control log: a stream of everything operators command and every process's hello, in one order."""
    return (
        Exchange(CONTROL, "topic"),
        Exchange(HELLO, "fanout"),
        # No limit of size or age: what was cut off could be the pause that still holds.
        Queue(CONTROL_LOG, {"x-queue-type": "stream"}),
        Binding(CONTROL_LOG, CONTROL, "#"),
        Binding(CONTROL_LOG, HELLO, ""),
    )


def replies() -> tuple[Declaration, ...]:
    """Where the answers to control events go; each asker binds an exclusive queue of its own."""
    return (Exchange(REPLIES, "direct"),)


def telemetry() -> tuple[Declaration, ...]:
    """The readings of the processes, live, and the log of one a host every half minute."""
    arguments = {
        "x-queue-type": "stream",
        "x-max-age": TELEMETRY_MAX_AGE,
        "x-max-length-bytes": TELEMETRY_MAX_BYTES,
        "x-stream-max-segment-size-bytes": TELEMETRY_SEGMENT_BYTES,
    }
    return (Exchange(TELEMETRY, "topic"), Queue(TELEMETRY_LOG, arguments))
