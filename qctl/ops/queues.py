"""Queues, seen and emptied: which there are, how deep each is, and purging one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TypeVar

from qctl.broker import management
from qctl.broker.login import login_for
from qctl.errors import QctlError, UnknownName
from qctl.inventory.model import Inventory
from qctl.inventory.nearest import did_you_mean
from qctl.ops.backlog import corrected, work_queues
from qctl.ops.dead import connected, dead_queues, waiting_or_none, work_queue_of
from qctl.ops.depths import look_at, queues_to_look_at
from qctl.ops.found import Depth
from qctl.ops.listed import queue_row, takers
from qctl.ops.picture import picture
from qctl.ops.sources import listen_to
from qctl.ops.status import QueueRow

T = TypeVar("T")
LISTED_NAMES = 8
#: All pages of it.
API_S = 30.0
#: One queue of it.
ONE_S = 2.5


class Scope(StrEnum):
    """Which queues: those with tasks for somebody; these and qctl's own; every one of the virtual host."""

    WORK = "work"
    OURS = "ours"
    ALL = "all"


@dataclass(frozen=True, slots=True)
class Listed:
    """Queues as they were at `at_s`. notes: what could not be learnt."""

    at_s: float
    rows: tuple[QueueRow, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Purged:
    """What a purge took away. unacked: what consumers had in hand just before, which stays; None: not known."""

    queue: str
    count: int
    unacked: int | None = None


def known_queues(inventory: Inventory) -> tuple[str, ...]:
    """Every queue of tasks that an inventory speaks of, and those of qctl's own; not its logs."""
    return tuple(dict.fromkeys((*queues_to_look_at(inventory), *dead_queues(inventory))))


def check_queue(inventory: Inventory, name: str) -> None:
    """Raise UnknownName, with the nearest name, for a queue of which the inventory knows nothing."""
    known = known_queues(inventory)
    if name in known or work_queue_of(name) in known:
        return
    of_consumer = inventory.consumers.get(name)
    listed = f"It has: {', '.join(work_queues(inventory)[:LISTED_NAMES])}; `qctl queues ls --all` lists the broker's."
    near = f"The queue of consumer {name} is {of_consumer.queue}." if of_consumer else did_you_mean(name, known)
    raise UnknownName(f"{inventory.path} has no queue {name!r}", hint=near or listed)


async def listed(inventory: Inventory, scope: Scope = Scope.OURS, *, connect_timeout_s: float) -> Listed:
    """The queues, by the management API, else by asking each over AMQP, which knows depths alone.

    Where that names an end of a queue, its consumers are listened to: who is kept from it takes nothing, and what comes
    back later is not done.

    Raises BrokerUnreachable, BrokerRefused, SecretError; and ManagementError for ALL, which only that API knows.
    """
    names = work_queues(inventory) if scope is Scope.WORK else known_queues(inventory)
    taken = takers(inventory)
    try:
        looks = await _asked(inventory, lambda api: api.queues(lasting=True), API_S)
    except QctlError as error:
        if scope is Scope.ALL:
            raise
        depths: dict[str, Depth] = {}
        async with connected(inventory, "qctl queues", connect_timeout_s) as connection:
            await look_at(connection, names, depths)
        by_depth = (_by_depth(name, depth, taken) for name, depth in depths.items())
        return Listed(time.time(), _shown(by_depth), (f"rates are not known: {error.message}",))
    at_s = time.time()
    found = {look.name: queue_row(replace(look, in_per_s=look.lasting_in_per_s), taken, at_s) for look in looks}
    if scope is Scope.ALL:
        rows = tuple(found.values())
    else:
        missing = Depth(None, "it does not exist")
        rows = _shown(found.get(name) or _by_depth(name, missing, taken) for name in names)
    if not any(row.work and row.empty_at_s is not None for row in rows):
        return Listed(at_s, rows)
    try:
        heard = picture(await listen_to(inventory, connect_timeout_s=connect_timeout_s), inventory)
    except QctlError as error:
        return Listed(at_s, rows, (f"what consumers say is not known: {error.message}",))
    return Listed(at_s, corrected(rows, heard.consumers, at_s, inventory=inventory))


def _shown(rows: Iterable[QueueRow]) -> tuple[QueueRow, ...]:
    """Work queues, and of the others those that hold something."""
    return tuple(row for row in rows if row.work or row.ready or row.unacked)


def _by_depth(name: str, depth: Depth, taken: Mapping[str, tuple[str, ...]]) -> QueueRow:
    of = taken.get(name, ())
    return QueueRow(queue=name, work=bool(of), ready=depth.ready, consumers=of, why=depth.why)


async def _asked(inventory: Inventory, ask: Callable[[management.Management], T], timeout_s: float) -> T:
    """What the management API says. Raises ManagementError, BrokerUnreachable, SecretError."""
    login = await asyncio.to_thread(login_for, inventory.broker, inventory.path, prefer_environment=True)
    api = management.api_of(inventory.broker, inventory.path, login)
    if api is None:
        raise management.ManagementError(
            "the inventory names no management API", hint="Set `broker.management` to its address."
        )
    asked = management.Management(api)
    try:
        return await management.in_thread(lambda: ask(asked), timeout_s=timeout_s)
    finally:
        asked.close()


async def depth(inventory: Inventory, queue: str, *, connect_timeout_s: float) -> int:
    """How many messages nobody has. Raises UnknownName where the broker has no such queue, and as `connected`."""
    async with connected(inventory, "qctl queues", connect_timeout_s) as connection:
        found = await waiting_or_none(connection, queue)
    if found is None:
        raise no_such_queue(inventory, queue)
    return found


def no_such_queue(inventory: Inventory, queue: str) -> UnknownName:
    """The broker does not have it."""
    near = "" if queue in known_queues(inventory) else did_you_mean(queue, known_queues(inventory))
    return UnknownName(
        f"the broker has no queue {queue!r}", hint=near or "`qctl queues ls --all` lists those that it has."
    )


async def purge(
    inventory: Inventory,
    queue: str,
    *,
    connect_timeout_s: float,
    on_purged: Callable[[Purged], None] = lambda _: None,
) -> Purged:
    """Throw away every message of a queue that no consumer has in hand.

    on_purged: called as soon as it is done, before anything that could still fail or be interrupted.

    Raises UnknownName where the broker has no such queue, BrokerRefused for a stream or without permission, and as
    `connected`.
    """
    async with connected(inventory, "qctl queues purge", connect_timeout_s) as connection:
        if await waiting_or_none(connection, queue) is None:
            raise no_such_queue(inventory, queue)
        try:
            look = await _asked(inventory, lambda api: api.queue(queue), ONE_S)
        except QctlError:
            look = None
        channel = await connection.channel()
        frame = await channel.call("queue_purge", queue=queue)
        done = Purged(queue, int(frame.method.message_count), look.unacked if look else None)
        on_purged(done)
        await channel.close()
    return done
