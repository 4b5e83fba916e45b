"""Giving a command to the control log: what is published, not under an alarm, and what is true when it fails."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection

from qctl.broker import topology
from qctl.broker.message import PERSISTENT, Outgoing, Properties
from qctl.broker.publisher import Published, Publisher
from qctl.broker.session import ChannelLost, Connection
from qctl.control.event import Command
from qctl.errors import BrokerBlocked, BrokerRefused, BrokerUnreachable, QctlError

#: A broker that lives confirms within milliseconds.
CONFIRM_S = 10.0
#: A confirm that does not come within this after an alarm was told of comes when the alarm is over, if ever.
ALARM_S = 1.0
#: How often it is looked whether the broker has told of an alarm.
LOOK_S = 0.01
#: Commands that are given at once: one for each host of a large group.
MAX_COMMANDS = 1_000


async def check_alarm(connection: Connection) -> None:
    """Raise BrokerBlocked while an alarm is on: the broker tells publishers alone, so something is published.

    A command that is sent into an alarm would lie in a buffer and be obeyed when the alarm ends. What is sent here
    is bound nowhere. Raises BrokerRefused, BrokerUnreachable as well.
    """
    answered: asyncio.Future[object] | None = None
    try:
        probe = await connection.channel()
        probe.raw.basic_publish(topology.REPLIES, "qctl.may-i", b"")
        # Answered after the publish was read; under an alarm it is not read at all.
        answered = asyncio.ensure_future(probe.call("basic_qos", prefetch_count=1))
        while not answered.done() and not connection.blocked:
            await asyncio.wait({answered}, timeout=LOOK_S)
        if connection.blocked:
            raise BrokerBlocked(
                "not given: the broker takes no events at present (memory or disk alarm)",
                hint="`rabbitmq-diagnostics alarms` shows which. On the host itself: `qctl pause` with --local.",
            )
        answered.result()
    except ChannelLost as error:
        if error.code == topology.ACCESS_REFUSED:
            raise refused(error) from None
        raise BrokerUnreachable(f"not given: the broker was lost before: {error}") from None
    finally:
        if answered is not None:
            answered.cancel()
    await probe.close()


def outgoing(command: Command, username: str, reply_to: str | None = None) -> Outgoing:
    """A command as it is published. username: of the connection, which the broker verifies; reply_to: who asks."""
    properties = Properties(
        message_id=command.id,
        correlation_id=command.id,
        user_id=username,
        type=str(command.verb),
        reply_to=reply_to,
        content_type="application/json",
        delivery_mode=PERSISTENT,
        timestamp=int(time.time()),
    )
    return Outgoing(topology.CONTROL, f"command.{command.verb}", command.body(), properties)


def not_given(publisher: Publisher, confirmed: int, commands: int, fates: Collection[Published]) -> QctlError:
    """What is true when not all were confirmed. fates: of those that have one."""
    done = f"{confirmed} of {commands} events confirmed" if commands > 1 else "not confirmed"
    unknown = "; an unconfirmed one may still take effect, and giving it again does no harm"
    why = publisher.why_lost
    if why is not None and why.code in (topology.ACCESS_REFUSED, topology.PRECONDITION_FAILED):
        return refused(why)
    if Published.UNROUTABLE in fates:
        return QctlError(
            f"{done}: exchange {topology.CONTROL} is not bound to {topology.CONTROL_LOG}",
            hint="Somebody unbound it meanwhile; give the command again, it declares what is missing.",
        )
    if Published.REFUSED in fates:
        return BrokerBlocked(
            f"{done}: the control log refused the event",
            hint="Is its node in trouble? See `rabbitmqctl list_queues name state`.",
        )
    if publisher.channel.connection.blocked:
        return BrokerBlocked(
            f"{done}: an alarm of the broker began as it was sent{unknown}",
            hint="`rabbitmq-diagnostics alarms` shows which; `qctl events` shows later what became of it.",
        )
    cause = f"the broker was lost: {why}" if why else f"the broker has confirmed nothing for {CONFIRM_S:g} s"
    return BrokerUnreachable(f"{done}: {cause}{unknown}", hint="Give the command again once the broker is back.")


def refused(error: ChannelLost) -> BrokerRefused:
    """The broker does not let this user."""
    return BrokerRefused(
        f"not given, the broker refuses it: {error.text}",
        hint=f"Its user needs to write {topology.CONTROL}, {topology.REPLIES}, and to configure, write and read "
        "qctl.replies.*",
    )
