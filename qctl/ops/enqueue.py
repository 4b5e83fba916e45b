"""Enqueue tasks: confirmed, mandatory, pipelined, in constant memory, and true to the last about what was confirmed."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from functools import partial

from qctl.broker import topology
from qctl.broker.message import COST, DELAY, PERSISTENT, TRANSIENT, Outgoing, Properties
from qctl.broker.publisher import Published, Publisher
from qctl.broker.session import ChannelLost, Connection, Login, backoff, connect, connect_within
from qctl.errors import BrokerBlocked, BrokerRefused, BrokerUnreachable, QctlError, UsageError
from qctl.inventory.model import Consumer, Inventory
from qctl.inventory.nearest import did_you_mean
from qctl.ops.lines import Line
from qctl.units import format_duration

#: A broker that confirms nothing for this long ends the command; what was unconfirmed is said.
STALL_S = 60.0
PROGRESS_EVERY_S = 0.2
#: What a full queue refused is offered again after this pause.
REFUSED_PAUSE_S = 0.2


@dataclass(frozen=True, slots=True)
class Request:
    """What to enqueue, checked against the inventory. `queue` is the work queue or a host's own."""

    consumer: Consumer
    queue: str
    declarations: tuple[topology.Declaration, ...]
    cost: Mapping[str, int]
    type: str | None
    id: str | None
    delay_s: float | None


@dataclass(frozen=True, slots=True)
class Report:
    """What is true at the end: `confirmed` tasks are safe; after `skip` lines another run may go on, which would send
    up to `maybe_twice` of them a second time."""

    queue: str
    confirmed: int
    skip: int
    maybe_twice: int
    seconds: float


def request(
    inventory: Inventory,
    consumer_name: str,
    *,
    host: str | None = None,
    cost: Mapping[str, int] | None = None,
    type: str | None = None,  # noqa: A002  (the property's name in AMQP)
    id: str | None = None,  # noqa: A002
    delay_s: float | None = None,
) -> Request:
    """Check names and costs before anything is contacted. Raises UnknownName, UsageError."""
    consumer = inventory.consumer(consumer_name)
    queue, hosts = consumer.queue, []
    if host is not None:
        running = inventory.host(host).consumers.get(consumer_name)
        if running is None or not running.directed:
            why = "does not run it" if running is None else "has no queue of its own for it"
            raise UsageError(
                f"{consumer_name} cannot be sent to {host}: the host {why}",
                hint=f"Set `directed: true` on consumer {consumer_name}, or leave out --host.",
            )
        queue, hosts = topology.directed_queue(queue, host), [host]
    for quota in cost or {}:
        if quota not in consumer.cost:
            known = ", ".join(sorted(consumer.cost)) or "none"
            raise UsageError(
                f"consumer {consumer_name} has no quota {quota!r}",
                hint=did_you_mean(quota, list(consumer.cost)) or f"Its quotas are: {known}.",
            )
    rung_s = next((step_s for step_s in inventory.ladder_s if step_s >= delay_s), None) if delay_s else None
    if delay_s and rung_s is None:
        raise UsageError(
            f"a delay of {format_duration(delay_s)} is longer than the longest, "
            f"{format_duration(inventory.ladder_s[-1])}",
            hint="Enqueue it later.",
        )
    declarations = (
        *topology.exchanges(),
        *topology.ladder([rung_s] if rung_s else []),
        *topology.for_consumer(
            consumer.queue, directed_hosts=hosts, persistent=consumer.persistent, declare=consumer.declare
        ),
    )
    return Request(consumer, queue, declarations, dict(cost or {}), type, id, rung_s)


class Enqueuer:
    """Sends one stream of lines. `report` is true at any moment, also after an error or an interrupt."""

    def __init__(
        self, wanted: Request, *, skip: int = 0, on_progress: Callable[[Report, str], None] = lambda *_: None
    ) -> None:
        """skip: lines that the reader leaves out. on_progress(report, state): about every PROGRESS_EVERY_S; state is ""
        or what is being waited for."""
        self._wanted = wanted
        self._on_progress = on_progress
        #: by order of sending, ascending: (line number, message) that is not confirmed
        self._pending: dict[int, tuple[int, Outgoing]] = {}
        self._sent = 0
        self._refused: list[int] = []
        self._publisher: Publisher | None = None
        self._connection: Connection | None = None
        self._confirmed = 0
        self._last_line = skip
        self._failure: QctlError | None = None
        self._moved = asyncio.Event()
        self._moved_s = self._started_s = time.monotonic()
        headers: dict[str, object] = {}
        if wanted.cost:
            headers[COST] = dict(wanted.cost)
        if wanted.delay_s:
            headers[DELAY] = format_duration(wanted.delay_s)
        self._headers = headers or None

    @property
    def report(self) -> Report:
        """What is true now."""
        first = next(iter(self._pending), None)
        skip = self._last_line if first is None else self._pending[first][0] - 1
        maybe_twice = 0 if first is None else self._sent - first + 1
        return Report(self._wanted.queue, self._confirmed, skip, maybe_twice, time.monotonic() - self._started_s)

    async def run(
        self, dial: Callable[[], Login], batches: AsyncIterator[list[Line]], connect_timeout_s: float
    ) -> Report:
        """Send everything. Raises BadLine from `batches` once all before it is confirmed, BrokerUnreachable,
        BrokerRefused, BrokerBlocked, and QctlError when the queue does not take it."""
        name = f"qctl enqueue {self._wanted.consumer.name}"
        self._connection = await connect_within(dial(), name=name, timeout_s=connect_timeout_s)
        progress = asyncio.create_task(self._show_progress())
        try:
            await self._open()
            error: Exception | None = None
            try:
                async for lines in batches:
                    for line in lines:
                        await self._send(dial, line)
            except QctlError:
                raise
            except Exception as failure:  # noqa: BLE001  (a bad line: what came before it is still finished)
                error = failure
            while self._pending:
                await self._progress(dial)
            if error is not None:
                raise error
            return self.report
        finally:
            progress.cancel()
            if self._connection is not None:
                await asyncio.shield(self._connection.close())

    async def _open(self) -> None:
        assert self._connection is not None
        await topology.ensure(self._connection, self._wanted.declarations)
        self._publisher = await Publisher.open(self._connection)

    async def _send(self, dial: Callable[[], Login], line: Line) -> None:
        while self._publisher is None or not self._publisher.room:
            await self._progress(dial)
        wanted = self._wanted
        properties = Properties(
            content_type="application/json",
            headers=self._headers,
            delivery_mode=PERSISTENT if wanted.consumer.persistent else TRANSIENT,
            message_id=wanted.id or str(uuid.uuid4()),
            timestamp=int(time.time()),
            type=wanted.type,
        )
        exchange = topology.RETRY if wanted.delay_s else topology.TASKS
        outgoing = Outgoing(exchange, wanted.queue, line.body, properties)
        if not self._pending:
            self._moved_s = time.monotonic()  # a slow producer is not a slow broker
        self._sent += 1
        self._last_line = line.number
        self._pending[self._sent] = (line.number, outgoing)
        self._publish(self._sent)

    def _publish(self, order: int) -> None:
        """Send, or send once more, what is pending under this number; without a connection it stays pending."""
        if self._publisher is None:
            return
        try:
            self._publisher.send(self._pending[order][1], partial(self._on_result, order))
        except ChannelLost:
            self._publisher = None

    def _on_result(self, order: int, fate: Published) -> None:
        if fate is Published.CONFIRMED:
            del self._pending[order]
            self._confirmed += 1
            self._moved_s = time.monotonic()
        elif fate is Published.REFUSED:
            self._refused.append(order)
        elif fate is Published.UNROUTABLE:
            self._failure = QctlError(
                f"no queue took the task: {self._wanted.queue} is not bound to {topology.TASKS}",
                hint="Somebody unbound or deleted it meanwhile; run the command again, it declares what is missing.",
            )
        elif fate is Published.LOST:
            self._publisher = None
        self._moved.set()

    async def _progress(self, dial: Callable[[], Login]) -> None:
        """Wait until something moved; reconnect and send again when the connection is gone."""
        if self._failure is not None:
            raise self._failure
        if self._publisher is None:
            await self._reconnect(dial)
            return
        self._moved.clear()
        try:
            await asyncio.wait_for(self._moved.wait(), 1.0)
        except TimeoutError:
            self._check_stall("the broker confirms nothing")
        if self._refused:
            self._check_stall("the queue refuses every task")
            await asyncio.sleep(REFUSED_PAUSE_S)
            refused, self._refused = self._refused, []
            for order in refused:
                self._publish(order)

    def _check_stall(self, why: str) -> None:
        if time.monotonic() - self._moved_s < STALL_S:
            return
        if self._refused:
            raise BrokerBlocked(
                f"queue {self._wanted.queue} has refused every task for {STALL_S:g} s",
                hint="Is it full, or its node in trouble? See `rabbitmqctl list_queues name messages policy`.",
            )
        if self._connection is not None and self._connection.is_open and self._connection.blocked:
            raise BrokerBlocked(
                f"the broker has taken no publishes for {STALL_S:g} s (memory or disk alarm)",
                hint="See `rabbitmq-diagnostics alarms`; run the command again when the alarm is over.",
            )
        raise BrokerUnreachable(f"{why} for {STALL_S:g} s", hint="Is it running? `rabbitmq-diagnostics status` says.")

    async def _reconnect(self, dial: Callable[[], Login]) -> None:
        """Connect anew for at most STALL_S and send what is unconfirmed once more, under the same ids."""
        for pause_s in backoff():
            try:
                if self._connection is not None:
                    await self._connection.close()
                self._connection = await connect(dial(), name=f"qctl enqueue {self._wanted.consumer.name}")
                await self._open()
                break
            except BrokerRefused:
                raise
            except (BrokerUnreachable, ChannelLost) as error:
                self._check_stall(f"the broker is gone ({error})")
            await asyncio.sleep(pause_s)
        self._refused.clear()
        for order in list(self._pending):
            self._publish(order)

    async def _show_progress(self) -> None:
        while True:
            await asyncio.sleep(PROGRESS_EVERY_S)
            state = ""
            if self._publisher is None:
                state = "broker lost, trying again"
            elif self._connection is not None and self._connection.blocked:
                state = "broker blocked"
            self._on_progress(self.report, state)
