"""Enqueueing from an application: one call a task, confirmed, from any thread.

All calls of a client share one connection. It is made by the first of them, kept by a background thread that alone
touches it, and made anew when it is lost. A forked child makes its own.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import threading
import time
import weakref
from collections.abc import Mapping
from concurrent.futures import TimeoutError as FutureTimeout
from pathlib import Path
from types import TracebackType
from typing import Any

from qctl.broker import topology
from qctl.broker.connect import backoff, connect_within
from qctl.broker.login import login_for
from qctl.broker.message import Outgoing
from qctl.broker.publisher import Published, Publisher
from qctl.broker.request import Request, encode_payload, message, request
from qctl.broker.session import ChannelLost, Connection
from qctl.errors import BrokerBlocked, BrokerRefused, BrokerUnreachable, QctlError
from qctl.inventory.load import find, load
from qctl.inventory.model import Inventory

#: How long one call may take, the connecting included, when the application says nothing else.
TIMEOUT_S = 10.0
#: A call that is over its time gets this long to say what is known.
LAST_WORDS_S = 1.0
#: An orderly end waits this long for the broker.
CLOSE_S = 5.0
#: What a full queue refused, and what a blocked broker did not take, is offered again after this pause.
PAUSE_S = 0.2
#: A refused task is not offered again when there is less time left than this: it would not be known what became of it.
MIN_TRY_S = 0.5

ALARM = "the broker takes nothing (memory or disk alarm)"


class Client:
    """Enqueues tasks for the consumers of an inventory. Thread-safe; make one and keep it.

    Also a context manager. Nothing is contacted before the first `enqueue`.
    """

    def __init__(self, inventory: Inventory | str | Path | None = None, *, timeout_s: float = TIMEOUT_S) -> None:
        """inventory: its path, or loaded already; None: where the commands find it. timeout_s: for each `enqueue`.

        Raises InventoryError.
        """
        if not isinstance(inventory, Inventory):
            inventory = load(find(None if inventory is None else Path(inventory)))
        self.inventory = inventory
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._link: _Link | None = None
        self._forgotten: weakref.finalize[..., Client] | None = None
        self._closed = False
        _clients.add(self)

    def enqueue(
        self,
        consumer: str,
        payload: Any,
        *,
        type: str | None = None,  # noqa: A002  (the property's name in AMQP)
        id: str | None = None,  # noqa: A002
        cost: Mapping[str, int] | None = None,
        delay: float | str | None = None,
        host: str | None = None,
    ) -> str:
        """Enqueue one task and wait until the broker has confirmed it; returns its id.

        payload: plain values, which become JSON. cost: units by quota, where the task needs more than declared.
        delay: seconds, or a duration such as "30s"; rounded up to a rung of the ladder. host: the only one that may run
        it, for consumers with `directed: true`.

        Raises UnknownName and UsageError before anything is contacted; BrokerUnreachable, BrokerRefused and
        TopologyMismatch; BrokerBlocked when the broker takes nothing at present. The task may be enqueued all the same
        where the message says so: enqueue it again under the same `id`.
        """
        wanted = request(self.inventory, consumer, type=type, id=id, cost=cost, delay=delay, host=host)
        outgoing = message(wanted, encode_payload(payload, self.inventory.worker.max_body_bytes))
        self._open().send(wanted, outgoing, self._timeout_s)
        return str(outgoing.properties.message_id)

    def close(self) -> None:
        """Close the connection; calls under way fail. May be called twice."""
        with self._lock:
            link, self._link, self._closed = self._link, None, True
            if self._forgotten is not None:
                self._forgotten.detach()
        if link is not None:
            link.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> _Link:
        with self._lock:
            if self._closed:
                raise QctlError("the client is closed", hint="Make a new one.")
            if self._link is None:
                self._link = _Link(self.inventory)
                self._forgotten = weakref.finalize(self, _end_soon, self._link)
                self._forgotten.atexit = False  # `_at_exit` ends it in order
            return self._link

    def _forked(self) -> None:
        """In a child: its parent's thread is not here, and its parent's socket is not ours to touch."""
        if self._link is not None:
            _abandoned.append(self._link)
        if self._forgotten is not None:
            self._forgotten.detach()
        self._link, self._lock = None, threading.Lock()


class _Link:
    """The connection and its thread. Everything that ends in `_async` runs on that thread."""

    def __init__(self, inventory: Inventory) -> None:
        self._inventory = inventory
        self._connection: Connection | None = None
        self._publisher: Publisher | None = None
        self._declared: set[tuple[str, float | None]] = set()
        self._loop = asyncio.new_event_loop()
        self._connecting = asyncio.Lock()
        self._thread = threading.Thread(target=self._loop.run_forever, name="qctl client", daemon=True)
        self._thread.start()

    def send(self, wanted: Request, outgoing: Outgoing, timeout_s: float) -> None:
        """Publish and wait for the confirm. Any thread but the link's own."""
        state = _Attempt(time.monotonic() + timeout_s)
        work = self._send_async(wanted, outgoing, state)
        try:
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError:
            work.close()
            raise _closed_meanwhile() from None
        try:
            future.result(timeout_s + LAST_WORDS_S)
        except FutureTimeout:
            future.cancel()
            raise state.failure(outgoing) from None

    def close(self) -> None:
        """End the connection and the thread."""
        future = asyncio.run_coroutine_threadsafe(self._close_async(), self._loop)
        try:
            future.result(CLOSE_S)
        except FutureTimeout:
            future.cancel()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CLOSE_S)
        if not self._thread.is_alive():
            self._loop.close()

    async def _close_async(self) -> None:
        mine = asyncio.current_task()
        for task in asyncio.all_tasks():
            if task is not mine:
                task.cancel()
        if self._connection is not None:
            await self._connection.close()

    async def _send_async(self, wanted: Request, outgoing: Outgoing, state: _Attempt) -> None:
        try:
            async with asyncio.timeout_at(self._loop.time() + state.left_s):
                await self._try_async(wanted, outgoing, state)
        except TimeoutError:
            raise state.failure(outgoing) from None
        except BrokerUnreachable as error:
            state.why = error.message
            raise state.failure(outgoing) from None
        except asyncio.CancelledError:
            raise _closed_meanwhile() from None

    async def _try_async(self, wanted: Request, outgoing: Outgoing, state: _Attempt) -> None:
        """Until it is confirmed: connect, declare, publish, and again under the same id."""
        for pause_s in backoff():
            try:
                publisher = await self._publisher_async(state)
                await self._declare_async(wanted, publisher)
                fate = await self._publish_async(publisher, outgoing, state)
            except ChannelLost as error:
                self._refuse(error)
                state.why, state.kind, fate = str(error), BrokerUnreachable, Published.LOST
            if fate is Published.CONFIRMED:
                return
            if fate is Published.UNROUTABLE:
                self._declared.clear()  # somebody deleted it meanwhile
                if state.unroutable:
                    raise QctlError(
                        f"no queue took the task: {wanted.queue} is not bound to {wanted.exchange}",
                        hint="Somebody unbinds or deletes it; see `rabbitmqctl list_bindings`.",
                    )
                state.unroutable = True
                continue
            await asyncio.sleep(PAUSE_S if fate is Published.REFUSED else pause_s)

    async def _publisher_async(self, state: _Attempt) -> Publisher:
        """The open publisher; the first who needs it makes it, with the login read anew. Raises as `connect`."""
        async with self._connecting:
            if self._publisher is not None and self._publisher.channel.is_open:
                return self._publisher
            if self._connection is None or not self._connection.is_open:
                self._declared.clear()
                login = login_for(self._inventory.broker, self._inventory.path, prefer_environment=True)
                state.why = f"{', '.join(map(str, login.addresses))} does not answer"
                self._connection = await connect_within(login, name="qctl client", timeout_s=state.left_s)
            self._publisher = await Publisher.open(self._connection)
            return self._publisher

    async def _declare_async(self, wanted: Request, publisher: Publisher) -> None:
        key = (wanted.queue, wanted.delay_s)
        if key not in self._declared:
            await topology.ensure(publisher.channel.connection, wanted.declarations)
            self._declared.add(key)

    async def _publish_async(self, publisher: Publisher, outgoing: Outgoing, state: _Attempt) -> Published:
        connection = publisher.channel.connection
        while publisher.channel.is_open and (connection.blocked or not publisher.room):
            state.why, state.kind = ALARM, BrokerBlocked
            await asyncio.sleep(PAUSE_S)
        if not state.refused:
            state.why, state.kind = "the broker has not confirmed it", BrokerUnreachable
        state.sent = state.sent or publisher.channel.is_open
        state.on = connection
        fate = await publisher.publish(outgoing)
        lost = publisher.why_lost
        if fate is Published.LOST and lost is not None:
            if _names(lost.text, outgoing):
                self._refuse(lost)
            if lost.code == topology.NOT_FOUND:
                self._declared.clear()  # somebody deleted the exchange
        if fate is Published.REFUSED:
            state.why, state.kind = f"queue {outgoing.routing_key} refuses tasks", BrokerBlocked
            state.refused, state.sent = True, False
            if state.left_s < PAUSE_S + MIN_TRY_S:
                raise state.failure(outgoing)
        return fate

    @staticmethod
    def _refuse(lost: ChannelLost) -> None:
        """Raises when the broker said that it will not have this task."""
        if lost.code in (topology.ACCESS_REFUSED, topology.PRECONDITION_FAILED):
            raise BrokerRefused(
                f"the broker refuses the task: {lost.text}",
                hint="Check the user's permission to write, and the broker's limit on the size of a message.",
            )


def _names(text: str, outgoing: Outgoing) -> bool:
    """Whether a channel was lost for this message: of those on their way, another may have cost it."""
    return f"exchange '{outgoing.exchange}'" in text or f"message size {len(outgoing.body)} " in text


class _Attempt:
    """How far one call has come; what is said when its time is up."""

    def __init__(self, deadline_s: float) -> None:
        self._deadline_s = deadline_s
        self._started_s = time.monotonic()
        self.sent = False
        self.refused = False
        self.unroutable = False
        self.on: Connection | None = None
        self.why = "the broker does not answer"
        self.kind: type[QctlError] = BrokerUnreachable

    @property
    def left_s(self) -> float:
        """Seconds until its time is up."""
        return max(0.0, self._deadline_s - time.monotonic())

    def failure(self, outgoing: Outgoing) -> QctlError:
        """What to raise."""
        if self.kind is BrokerUnreachable and self.on is not None and self.on.is_open and self.on.blocked:
            self.why, self.kind = ALARM, BrokerBlocked  # it came after the task was sent
        took_s = self._deadline_s - self._started_s
        known = "it may be enqueued" if self.sent else "it is not enqueued"
        return self.kind(
            f"task {outgoing.properties.message_id} was not confirmed within {took_s:.3g} s: {self.why}; {known}",
            hint="Enqueue it again later, under the same id." if self.sent else "Enqueue it again later.",
        )


def _closed_meanwhile() -> QctlError:
    return QctlError("the client was closed meanwhile", hint="Make a new one.")


_clients: weakref.WeakSet[Client] = weakref.WeakSet()
#: A parent's connection in a forked child: kept, since to forget it would close what the parent still uses.
_abandoned: list[_Link] = []


def _end_soon(link: _Link) -> None:
    """Of a client that was forgotten without a `close`; that waits, and the collector must not."""
    with contextlib.suppress(RuntimeError):  # the interpreter ends, and with it the connection
        threading.Thread(target=link.close, name="qctl client closing", daemon=True).start()


def _after_fork() -> None:
    for client in tuple(_clients):
        client._forked()  # noqa: SLF001


def _at_exit() -> None:
    for client in tuple(_clients):
        client.close()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
