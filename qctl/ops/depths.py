"""How many tasks are ready in each queue, by the queues themselves: the management API may be five seconds late."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, MutableMapping

from qctl.broker import topology
from qctl.broker.session import Channel, ChannelLost, Connection
from qctl.inventory.model import Inventory
from qctl.ops.backlog import work_queues
from qctl.ops.found import Depth

#: Queues that are looked at one by one, over so many channels.
MAX_QUEUES = 1_000
CHANNELS = 4


def queues_to_look_at(inventory: Inventory, *, hosts: Iterable[str] = ()) -> tuple[str, ...]:
    """Work queues of these hosts, or of all, and those of qctl's own in which tasks may wait or lie."""
    work = work_queues(inventory, hosts=hosts)
    dead = dict.fromkeys(topology.dead_queue(name.partition("@")[0]) for name in work)
    retry = [topology.retry_queue(delay_s) for delay_s in inventory.ladder_s]
    return (*work, *retry, topology.UNROUTABLE, *dead)


async def look_at(connection: Connection, names: Iterable[str], found: MutableMapping[str, Depth]) -> None:
    """Put the depth of each queue into `found` as it comes. Raises ChannelLost when the connection is gone."""
    waiting = list(reversed(list(names)))
    lookers = [_look(connection, waiting, found) for _ in range(min(CHANNELS, len(waiting)))]
    await asyncio.gather(*lookers)


async def _look(connection: Connection, waiting: list[str], found: MutableMapping[str, Depth]) -> None:
    channel: Channel | None = None
    while waiting:
        name = waiting.pop()
        channel = channel if channel is not None and channel.is_open else await connection.channel()
        try:
            frame = await channel.call("queue_declare", queue=name, passive=True)
            found[name] = Depth(int(frame.method.message_count), at_s=time.time())
        except ChannelLost as error:
            if not connection.is_open:
                raise
            found[name] = Depth(None, "it does not exist" if error.code == topology.NOT_FOUND else error.text)
    if channel is not None:
        await channel.close()
