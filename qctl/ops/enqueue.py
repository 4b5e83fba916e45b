"""Enqueue tasks: confirmed, mandatory, pipelined, in constant memory, and true to the last about what was confirmed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from qctl.broker import topology
from qctl.broker.connect import Login, backoff, connect_within
from qctl.broker.message import Outgoing
from qctl.broker.publisher import Published, Publisher
from qctl.broker.request import Request, message
from qctl.broker.session import ChannelLost, Connection
from qctl.errors import BrokerBlocked, BrokerRefused, BrokerUnreachable, QctlError
from qctl.ops.lines import Line

#: A broker that is gone, or confirms nothing, for this long ends the command; what was unconfirmed is said.
STALL_S = 60.0
#: How often it is looked whether that has come.
LOOK_EVERY_S = 1.0
PROGRESS_EVERY_S = 0.2
#: What a full queue refused is offered again after this pause.
REFUSED_PAUSE_S = 0.2
#: A command that ends early waits this long for the confirms on their way, so that fewer tasks are sent twice.
LAST_CONFIRMS_S = 1.0


@dataclass(frozen=True, slots=True)
class Report:
    """What is true at the end: `confirmed` tasks are safe; after `skip` lines another run may go on, which would send
    up to `maybe_twice` of them a second time."""

    queue: str
    confirmed: int
    skip: int
    maybe_twice: int
    seconds: float


def stalled(queue: str, *, blocked: bool, refusing: bool) -> QctlError:
    """Why nothing has been confirmed for STALL_S: an alarm, a queue that refuses, or a broker that is in trouble."""
    if blocked:
        return BrokerBlocked(
            f"the broker has taken no tasks for {STALL_S:g} s (memory or disk alarm)",
            hint="See `rabbitmq-diagnostics alarms`; run the command again when the alarm is over.",
        )
    if refusing:
        return BrokerBlocked(
            f"queue {queue} has refused every task for {STALL_S:g} s",
            hint="Is it full, or its node in trouble? See `rabbitmqctl list_queues name messages policy`.",
        )
    return BrokerUnreachable(
        f"the broker has confirmed nothing for {STALL_S:g} s",
        hint="Has the queue lost its nodes? `rabbitmq-diagnostics status` says.",
    )


def gone(why: str) -> BrokerUnreachable:
    """The broker has not come back for STALL_S. why: what was heard of it last."""
    return BrokerUnreachable(
        f"the broker has been gone for {STALL_S:g} s: {why}",
        hint="Go on once it is back; `rabbitmq-diagnostics status` on its machine says how it is.",
    )


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
        self._confirmed = 0
        self._last_line = skip
        self._refused: list[int] = []
        self._refusing = False  # the last fate told was a refusal
        self._connection: Connection | None = None
        self._publisher: Publisher | None = None
        self._failure: QctlError | None = None
        self._moved: asyncio.Future[None] | None = None
        self._started_s = time.monotonic()
        self._moved_s = self._started_s  # when the broker last confirmed something, or owed nothing
        self._lost_s: float | None = None  # when the connection was lost, until something is confirmed again
        self._why_lost = ""
        self._pauses = backoff()

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
        """Send everything; `dial` is asked for the login at each connect.

        Raises what `batches` raises once all before it is confirmed; BrokerUnreachable, BrokerRefused, BrokerBlocked,
        and QctlError when no queue takes the tasks.
        """
        progress = asyncio.create_task(self._show_progress())
        try:
            await self._connect(dial(), connect_timeout_s)
            error = await self._send_all(dial, batches)
            while self._pending:
                await self._tend(dial)
            if error is not None:
                raise error
            return self.report
        finally:
            progress.cancel()
            await asyncio.shield(self._leave())

    async def _send_all(self, dial: Callable[[], Login], batches: AsyncIterator[list[Line]]) -> Exception | None:
        """Send all lines, and look after what is under way while the next ones are waited for; how the lines ended."""
        while True:
            coming: asyncio.Future[list[Line] | None] = asyncio.ensure_future(anext(batches, None))
            try:
                while not coming.done():
                    await self._tend(dial, coming)
            finally:
                coming.cancel()
            error = coming.exception()
            lines = None if error is not None else coming.result()
            if lines is None:
                return error if isinstance(error, Exception) else None
            for line in lines:
                while not self._may_send():
                    await self._tend(dial)
                self._send(line)

    def _may_send(self) -> bool:
        publisher = self._publisher
        return publisher is not None and publisher.room and not self._refused and self._failure is None

    def _send(self, line: Line) -> None:
        if not self._pending:
            self._moved_s = time.monotonic()  # a slow producer is not a slow broker
        self._sent += 1
        self._last_line = line.number
        self._pending[self._sent] = (line.number, message(self._wanted, line.body))
        self._publish(self._sent)

    def _publish(self, order: int) -> None:
        """Send, or send once more, what is pending under this number; without a connection it stays pending."""
        if self._publisher is None:
            return
        try:
            self._publisher.send(self._pending[order][1], partial(self._on_result, order))
        except ChannelLost as error:
            self._lose(error)

    def _on_result(self, order: int, fate: Published) -> None:
        if fate is Published.CONFIRMED:
            del self._pending[order]
            self._confirmed += 1
            self._moved_s = time.monotonic()
            self._lost_s = None
            self._refusing = False
        elif fate is Published.REFUSED:
            self._refused.append(order)
            self._refusing = True
        elif fate is Published.UNROUTABLE:
            self._failure = QctlError(
                f"no queue took the task: {self._wanted.queue} is not bound to {self._wanted.exchange}",
                hint="Somebody unbound or deleted it meanwhile; run the command again, it declares what is missing.",
            )
        if self._moved is not None and not self._moved.done():
            self._moved.set_result(None)

    async def _tend(self, dial: Callable[[], Login], *others: asyncio.Future[Any]) -> None:
        """Wait until something moved, or one of `others` is done; connect anew, offer again what was refused."""
        if self._failure is not None:
            raise self._failure
        if self._publisher is None:
            await self._reconnect(dial)
        elif self._refused:
            self._check_stall()
            await asyncio.sleep(REFUSED_PAUSE_S)
            refused, self._refused = self._refused, []
            for order in refused:
                self._publish(order)
        else:
            moved = self._moved = asyncio.get_running_loop().create_future()
            closed = self._publisher.channel.closed
            await asyncio.wait({moved, closed, *others}, timeout=LOOK_EVERY_S, return_when=asyncio.FIRST_COMPLETED)
            if closed.done():
                self._lose(closed.result())
            elif self._pending:
                self._check_stall()

    def _check_stall(self) -> None:
        if time.monotonic() - self._moved_s < STALL_S:
            return
        blocked = self._connection is not None and self._connection.blocked
        raise stalled(self._wanted.queue, blocked=blocked, refusing=self._refusing)

    async def _connect(self, login: Login, timeout_s: float) -> None:
        """Connect and send what is pending, once more under the same ids. Raises BrokerUnreachable, BrokerRefused."""
        name = f"qctl enqueue {self._wanted.consumer.name}"
        self._connection = await connect_within(login, name=name, timeout_s=timeout_s)
        try:
            await topology.ensure(self._connection, self._wanted.declarations)
            self._publisher = await Publisher.open(self._connection)
        except ChannelLost as error:
            self._lose(error)
            return
        self._moved_s = time.monotonic()
        if not self._pending:
            self._lost_s = None
        for order in list(self._pending):
            self._publish(order)

    async def _reconnect(self, dial: Callable[[], Login]) -> None:
        """Try once more, after a pause; for STALL_S from the loss on, whether or not it could connect meanwhile."""
        if self._connection is not None:
            await self._connection.close()
        self._refused.clear()
        await asyncio.sleep(next(self._pauses))
        assert self._lost_s is not None
        left_s = self._lost_s + STALL_S - time.monotonic()
        if left_s <= 0:
            raise gone(self._why_lost)
        try:
            await self._connect(dial(), left_s)
        except BrokerUnreachable as error:
            self._why_lost = error.message

    def _lose(self, lost: ChannelLost) -> None:
        """The channel is gone: for good when the broker said that it will not have these tasks."""
        self._publisher = None
        self._why_lost = str(lost)
        if self._lost_s is None:
            self._lost_s = time.monotonic()
            self._pauses = backoff()
        if lost.code in (topology.ACCESS_REFUSED, topology.PRECONDITION_FAILED):
            self._failure = BrokerRefused(
                f"the broker refuses the tasks: {lost.text}",
                hint="Check the user's permission to write, and the broker's limit on the size of a message.",
            )

    async def _leave(self) -> None:
        """Wait for the confirms on their way, but not for a broker that reads nothing any more."""
        if self._connection is None:
            return
        until_s = time.monotonic() + LAST_CONFIRMS_S
        while (
            self._publisher is not None
            and self._publisher.unconfirmed
            and self._publisher.channel.is_open
            and not self._connection.blocked
            and (left_s := until_s - time.monotonic()) > 0
        ):
            moved = self._moved = asyncio.get_running_loop().create_future()
            closed = self._publisher.channel.closed
            await asyncio.wait({moved, closed}, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
        if self._connection.blocked:
            self._connection.abort("the broker reads nothing at present")
        await self._connection.close()

    async def _show_progress(self) -> None:
        while True:
            await asyncio.sleep(PROGRESS_EVERY_S)
            state = ""
            if self._lost_s is not None and self._publisher is None:
                state = "broker lost, trying again"
            elif self._connection is not None and self._connection.blocked:
                state = "broker blocked"
            elif self._refusing:
                state = "queue full, trying again"
            self._on_progress(self.report, state)
