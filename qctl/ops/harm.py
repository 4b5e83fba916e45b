"""Whether looking at a queue's messages could cost one: on queues with a delivery limit each look counts against it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable

from qctl.broker import management, topology
from qctl.broker.listing import QueueTerms
from qctl.broker.login import login_for
from qctl.broker.session import Connection
from qctl.errors import BrokerRefused, QctlError, TopologyMismatch
from qctl.inventory.model import Inventory
from qctl.ops.dead import declarations

CLASSIC, QUORUM, STREAM = "classic", "quorum", "stream"
#: A delivery limit below this is one that a few people looking could use up.
LEAST_LIMIT = 1_000
#: From this version on, a quorum queue without a limit has one of 20.
LIMITED_SINCE = (4, 0)
#: From this version on, a limit below 0 is none; before, it is 0.
UNLIMITED_SINCE = (4, 0)
BROKER_DEFAULT = 20
API_S = 2.5


def harm(terms: QueueTerms, version: tuple[int, int]) -> str:
    """Why looking could cost messages of such a queue, or ""."""
    if terms.kind in (CLASSIC, STREAM):
        return ""
    if terms.kind != QUORUM:
        return f"it is of the unknown type {terms.kind!r}"
    limits = [limit for limit in terms.delivery_limits if limit >= 0 or version < UNLIMITED_SINCE]
    if not terms.delivery_limits and version >= LIMITED_SINCE:
        limits = [BROKER_DEFAULT]
    if not limits or min(limits) >= LEAST_LIMIT:
        return ""
    return f"it gives a message up after {max(0, min(limits))} deliveries, and a look is one"


def version_of(text: str) -> tuple[int, int]:
    """`4.0.5` as (4, 0); (0, 0) for what is none."""
    found = re.match(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)


async def check_look(inventory: Inventory, connection: Connection, queue: str) -> QueueTerms:
    """What the queue is, as far as it is known. Raises BrokerRefused where looking could cost messages, or nobody
    knows; ChannelLost when the connection is gone.
    """
    terms, why_unknown = await _listed(inventory, queue)
    if terms is None and await _is_ours(inventory, connection, queue):
        terms = QueueTerms(QUORUM, (topology.DELIVERY_LIMIT,))
    words = f"its delivery limit is not known ({why_unknown})"
    if terms is not None:
        words = harm(terms, version_of(connection.server_version))
    if words or terms is None:
        raise BrokerRefused(
            f"queue {queue} was not looked into, since that could cost messages: {words}",
            hint=f"It is safe where its delivery limit, by argument and by policy, is {LEAST_LIMIT} or more.",
        )
    return terms


async def _listed(inventory: Inventory, queue: str) -> tuple[QueueTerms | None, str]:
    """What the management API says of a queue; else why it says nothing."""
    try:
        login = await asyncio.to_thread(login_for, inventory.broker, inventory.path, prefer_environment=True)
        api = management.api_of(inventory.broker, inventory.path, login)
        if api is None:
            return None, "there is no `broker.management` to ask"
        asked = management.Management(api)
        try:
            found = await management.in_thread(lambda: asked.queue_terms(queue), timeout_s=API_S)
        finally:
            asked.close()
    except QctlError as error:
        return None, error.message
    return found, "the management API does not list it"


def ours(inventory: Inventory) -> Iterable[topology.Queue]:
    """The queues that qctl declares and tasks can lie in."""
    for one in inventory.consumers.values():
        hosts = [host.name for host in inventory.hosts.values() if one.name in host.consumers]
        directed = [name for name in hosts if inventory.hosts[name].consumers[one.name].directed]
        wanted = topology.for_consumer(
            one.queue, directed_hosts=directed, persistent=one.persistent, declare=one.declare
        )
        yield from (each for each in (*wanted, *declarations(one)) if isinstance(each, topology.Queue))
    yield from (each for each in topology.ladder(inventory.ladder_s) if isinstance(each, topology.Queue))


async def _is_ours(inventory: Inventory, connection: Connection, queue: str) -> bool:
    """Whether qctl declares that queue, and it is as qctl declares it. Raises ChannelLost."""
    own = next((each for each in ours(inventory) if each.name == queue), None)
    if own is None and queue.endswith(topology.dead_queue("")):
        its = topology.work_queue(queue.removesuffix(topology.dead_queue("")))
        own = next((each for each in its if isinstance(each, topology.Queue) and each.name == queue), None)
    if own is None:
        return False
    try:
        await topology.ensure(connection, [own])
    except (TopologyMismatch, BrokerRefused):
        return False
    return True
