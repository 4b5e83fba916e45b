"""Looking at dead letters: how many lie in each queue of them, and what each says. Nothing is taken by looking."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from qctl.broker import topology
from qctl.broker.connect import connect_within
from qctl.broker.login import login_for
from qctl.broker.session import ChannelLost, Connection
from qctl.broker.walk import MAX_HELD, NOT_COME, Walk, waiting
from qctl.errors import BrokerRefused, BrokerUnreachable, QctlError, UnknownName
from qctl.inventory.model import Consumer, Inventory
from qctl.inventory.nearest import did_you_mean
from qctl.ops.letters import DeadLetter, Which, letter_of
from qctl.ops.status import QueueRow

#: Letters that a look gives unless more are asked for.
DEFAULT_LIMIT = 1_000
MAX_LIMIT = MAX_HELD
#: Of further ones neither body nor headers are kept.
MAX_BODIES = 1_000
ALL = Which()
SUFFIX = topology.dead_queue("")


@dataclass(frozen=True, slots=True)
class Letters:
    """What a look has found. met: letters that were looked at; waiting: how many there were when it began."""

    queue: str
    letters: tuple[DeadLetter, ...]
    met: int
    waiting: int
    notes: tuple[str, ...] = ()


def work_queue_of(dead_queue: str) -> str:
    """`NAME` of `NAME.dead`."""
    return dead_queue.removesuffix(SUFFIX)


def dead_queues(inventory: Inventory) -> tuple[str, ...]:
    """The queues of dead letters of all consumers."""
    return tuple(dict.fromkeys(topology.dead_queue(one.queue) for one in inventory.consumers.values()))


def dead_queue_of(inventory: Inventory, name: str) -> str:
    """The queue of dead letters that is meant: by its own name, its work queue's or its consumer's.

    A queue `NAME.dead` of which the inventory knows nothing is taken at its word. Raises UnknownName with the nearest.
    """
    known = dead_queues(inventory)
    consumer = inventory.consumers.get(name)
    queue = topology.dead_queue(name.partition("@")[0])
    if queue in known:
        return queue
    if consumer is not None:
        return topology.dead_queue(consumer.queue)
    if name in known or (name.endswith(SUFFIX) and name != SUFFIX and not did_you_mean(name, known)):
        return name
    if name == topology.UNROUTABLE:
        raise UnknownName(
            f"{name} holds no dead letters, but tasks that no queue took",
            hint=f"`qctl queues peek {name}` shows them; whoever moves them needs the routing key of each.",
        )
    names = (*inventory.consumers, *(work_queue_of(one) for one in known), *known)
    raise UnknownName(
        f"{inventory.path} has no queue or consumer {name!r}",
        hint=did_you_mean(name, names) or f"Dead letters lie in: {', '.join(known[:8])}.",
    )


def consumer_of(inventory: Inventory, dead_queue: str) -> Consumer | None:
    """The consumer whose dead letters lie there."""
    work = work_queue_of(dead_queue)
    return next((one for one in inventory.consumers.values() if one.queue == work), None)


@asynccontextmanager
async def connected(inventory: Inventory, name: str, connect_timeout_s: float) -> AsyncIterator[Connection]:
    """A connection for one command, its end in words. Raises BrokerUnreachable, BrokerRefused, SecretError."""
    login = await asyncio.to_thread(login_for, inventory.broker, inventory.path, prefer_environment=True)
    connection = await connect_within(login, name=name, timeout_s=connect_timeout_s)
    try:
        yield connection
    except ChannelLost as error:
        raise lost(connection, error) from None
    finally:
        await connection.close()


def lost(connection: Connection, error: ChannelLost) -> QctlError:
    """What it means that a channel is gone."""
    if error.code == topology.ACCESS_REFUSED:
        return BrokerRefused(
            f"the broker does not let user {connection.username!r} do that: {error.text}",
            hint="Give it permission to read the queue (`rabbitmqctl set_permissions`).",
        )
    if error.code in (topology.NOT_FOUND, topology.RESOURCE_LOCKED):
        return BrokerRefused(
            f"the broker refuses it: {error.text}", hint="Does the queue exist, and is it nobody's own?"
        )
    return BrokerUnreachable(
        f"the connection to {connection.address} was lost: {error}", hint="Try again; is the broker up?"
    )


async def waiting_or_none(connection: Connection, queue: str) -> int | None:
    """How many messages nobody has; None when there is no such queue. Raises ChannelLost."""
    try:
        return await waiting(connection, queue)
    except ChannelLost as error:
        if error.code != topology.NOT_FOUND or not connection.is_open:
            raise
        return None


async def counts(inventory: Inventory, *, connect_timeout_s: float) -> tuple[QueueRow, ...]:
    """Every queue of dead letters of the inventory, with how many lie in it; also of what has nowhere to go.

    Raises as `connected`.
    """
    async with connected(inventory, "qctl dead ls", connect_timeout_s) as connection:
        rows = []
        for queue in (*dead_queues(inventory), topology.UNROUTABLE):
            found = await waiting_or_none(connection, queue)
            why = "" if found is not None else "it does not exist: nothing has died there yet"
            if found and queue == topology.UNROUTABLE:
                why = f"no queue took them; `qctl queues peek {queue}` shows them"
            rows.append(QueueRow(queue=queue, work=False, ready=found, why=why))
        return tuple(rows)


async def waiting_letters(inventory: Inventory, queues: Iterable[str], *, connect_timeout_s: float) -> dict[str, int]:
    """How many letters wait in each of these `NAME.dead`; 0 where there is no such queue. Raises as `connected`."""
    async with connected(inventory, "qctl dead", connect_timeout_s) as connection:
        return {queue: await waiting_or_none(connection, queue) or 0 for queue in queues}


async def letters(
    inventory: Inventory,
    queue: str,
    *,
    which: Which = ALL,
    limit: int = DEFAULT_LIMIT,
    connect_timeout_s: float,
) -> Letters:
    """The letters of `NAME.dead` that fit, the one that comes next first, at most `limit`; all stay where they are.

    Raises as `connected`, and BrokerRefused where looking could cost letters.
    """
    from qctl.ops.harm import check_look

    async with connected(inventory, "qctl dead", connect_timeout_s) as connection:
        there = await waiting_or_none(connection, queue)
        if not there:
            return Letters(queue, (), 0, 0)
        await check_look(inventory, connection, queue)
        found: list[DeadLetter] = []
        now_s = time.time()
        walk = Walk(connection, queue, expected=min(there, MAX_LIMIT))
        try:
            while len(found) < limit and (met := await walk.next()) is not None:
                letter = letter_of(queue, met.properties, met.body, redelivered=met.redelivered)
                walk.keep(met)
                if which.matches(letter, now_s):
                    found.append(letter if len(found) < MAX_BODIES else replace(letter, body=b"", headers={}))
        finally:
            await walk.close()
        notes: list[str] = []
        if len(found) < limit:
            notes = unseen(walk.met, there)
        return Letters(queue, tuple(found), walk.met, there, tuple(notes))


def unseen(met: int, there: int) -> list[str]:
    """Why a look has not seen all, as far as that is known."""
    within = min(there, MAX_LIMIT)
    notes = [f"{within - met} of {there} letters {NOT_COME}"] if met < within else []
    if there > MAX_LIMIT:
        notes.append(f"a look goes through the first {MAX_LIMIT} letters; {there - MAX_LIMIT} lie behind them")
    return notes


def declarations(consumer: Consumer) -> tuple[topology.Declaration, ...]:
    """What has to be there so that a replayed letter gets to its consumer."""
    return (
        *topology.exchanges(),
        *topology.for_consumer(consumer.queue, persistent=consumer.persistent, declare=consumer.declare),
    )
